"""What is deployed agrees with itself and with the code: image, Compose, Kubernetes, systemd.

`python -m tests.image` runs the image's own steps.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from deploy.prometheus.configuration import configuration
from service import settings
from service.settings import PREFIX, Settings
from tests import image, validators
from tests.servers import MissingServerError

ROOT = image.ROOT
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RUNTIME_EXTRAS = ("confluent", "ingest", "sign")
"""What the image can do beside `serve`: the fast client, `ingest`, signed models."""

FOLDERS_THAT_STAY = {"/var/lib/falconet", "/run/falconet", "/tmp"}
"""Where a container writes; the rest of it is read-only."""


def pins(name: str) -> dict[str, str]:
    """Return a lock's lines by package, hashes included."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9._-]+)(==\S+)[^\n]*\\\n((?:    --hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    return {package: version + "".join(sorted(re.findall(r"sha256:\w+", hashes))) for package, version, hashes in found}


def compose() -> dict[str, Any]:
    """Return the Compose file."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return content


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every Kubernetes object with its file."""
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for content in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield str(path.relative_to(KUBERNETES)), content


def built(folder: Path) -> list[dict[str, Any]]:
    """Return the objects that kustomize makes of a folder."""
    try:
        program = validators.kustomize()
    except MissingServerError as error:
        pytest.skip(str(error))
    done = subprocess.run([program, "build", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(kind: str) -> dict[str, Any]:
    """Return the one object of a kind."""
    (found,) = (content for _, content in objects() if content["kind"] == kind)
    return found


def container() -> dict[str, Any]:
    """Return the container of the StatefulSet."""
    (found,) = only("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("name", ["deploy/image.lock", "deploy/build.lock"])
def test_locks_of_the_image_are_part_of_the_lock(name: str) -> None:
    """The image installs what was tested: each of its pins is the same, with the same hashes, as the project's."""
    whole = pins("requirements.lock")

    found = pins(name)

    assert found != {}
    assert {package: pin for package, pin in found.items() if whole.get(package) != pin} == {}
    assert re.findall(r"://|--(?:extra-)?index-url|--find-links|@ ", (ROOT / name).read_text(encoding="utf-8")) == []


def test_lock_of_the_image_holds_what_the_service_imports() -> None:
    """Every run-time requirement is in it, and nothing that only tests need."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(line for e in RUNTIME_EXTRAS for line in project["optional-dependencies"][e])]
    held = pins("deploy/image.lock")

    assert {Requirement(line).name for line in asked} - set(held) == set()
    assert {"pytest", "mypy", "ruff", "hypothesis"} & set(held) == set()
    assert {Requirement(line).name for line in ["hatchling"]} - set(pins("deploy/build.lock")) == set()


def test_image_copies_what_there_is() -> None:
    """Each file that a step copies exists and is let into the context."""
    copied = {source for stage in image.stages() for source in stage.copied()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert copied == allowed


def test_image_is_pinned_and_not_root() -> None:
    """Bases carry a version, the last stage ends as a user by number, and starts the program itself as process 1."""
    build, final = image.stages()

    assert {re.fullmatch(r"python:3\.11\.\d+-slim-\w+", stage.base) is not None for stage in (build, final)} == {True}
    assert final.last("USER") == "10001:10001"
    assert final.last("ENTRYPOINT") == '["entrypoint.sh"]'
    assert "exec falconet" in (DEPLOY / "entrypoint.sh").read_text()
    assert final.last("EXPOSE") == str(Settings().metrics_port)


def test_entrypoint_starts_with_the_kernels_of_the_image(tmp_path: Path) -> None:
    """It fills the folder of kernels, then becomes the program with the container's arguments."""
    kernels, cache, programs = (tmp_path / name for name in ("kernels", "cache", "bin"))
    for folder in (kernels / "release", cache, programs):
        folder.mkdir(parents=True)
    (kernels / "release" / "kernel.nbi").write_text("compiled")
    (programs / "falconet").write_text('#!/bin/sh\necho "falconet $*"\n')
    (programs / "falconet").chmod(0o755)
    script = tmp_path / "entrypoint.sh"
    script.write_text((DEPLOY / "entrypoint.sh").read_text().replace("/opt/falconet/kernels", str(kernels)))

    done = subprocess.run(
        ["sh", str(script), "serve", "--fresh-state"],
        env={"PATH": f"{programs}:/usr/bin:/bin", "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "falconet serve --fresh-state\n"
    assert (cache / "release" / "kernel.nbi").read_text() == "compiled"


def test_settings_that_are_deployed_exist() -> None:
    """Every FALCONET_ variable in deploy/ is a setting, and the ConfigMap is accepted."""
    texts = [path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*") if path.is_file() and is_deployed(path)]
    named = {name for text in texts for name in re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", text)}
    known = {PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)} | {settings.CONFIG_VARIABLE}

    loaded = settings.load(config=KUBERNETES / "base" / "falconet.toml", environment={})

    assert named - known == set()
    assert loaded.bootstrap_servers == "kafka:9092"


def is_deployed(path: Path) -> bool:
    """Whether a file is no code of ours and nothing fetched."""
    return path.suffix in {".yaml", ".yml", ".toml", ".service", ".sh", ""} and not {"target", "node_modules"} & set(
        path.parts
    )


def test_compose_is_whole() -> None:
    """Images carry versions, bound files exist, volumes are declared, ports stay on this machine."""
    content = compose()
    services = content["services"]
    volumes = [text.split(":") for each in services.values() for text in each.get("volumes", ())]
    bound = [source for source, *_ in volumes if source.startswith(".")]

    assert [name for name, each in services.items() if not re.search(r":v?\d+\.\d+\.\d+$", each["image"])] == []
    assert [source for source in bound if not (DEPLOY / source).exists()] == []
    assert {source for source, *_ in volumes if not source.startswith(".")} == set(content["volumes"])
    assert [port for each in services.values() for port in each.get("ports", ()) if port[:10] != "127.0.0.1:"] == []
    assert {name for each in services.values() for name in each.get("depends_on", ())} - set(services) == set()


def test_compose_answers_where_prometheus_looks() -> None:
    """The names in Prometheus's and Grafana's configuration are services, and exemplars are kept."""
    services = compose()["services"]
    wanted = configuration()
    targets = [
        target for job in wanted["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]

    assert {target.split(":")[0] for target in targets} <= set(services)
    assert {*targets} == {f"falconet:{Settings().metrics_port}"}
    assert source["url"] == "http://prometheus:9090"
    assert "--enable-feature=exemplar-storage" in services["prometheus"]["command"]


def test_containers_write_where_they_may() -> None:
    """Root file systems are read-only, and every folder that is written has a volume or memory."""
    service = compose()["services"]["falconet"]
    mounted = {text.split(":")[0] for text in service["tmpfs"]} | {text.split(":")[1] for text in service["volumes"]}
    pod = container()

    assert service["read_only"] is True
    assert mounted == FOLDERS_THAT_STAY
    assert pod["securityContext"]["readOnlyRootFilesystem"] is True
    assert {each["mountPath"] for each in pod["volumeMounts"] if not each.get("readOnly")} == FOLDERS_THAT_STAY


def test_a_stop_has_its_time() -> None:
    """Compose, Kubernetes and systemd wait longer than a stop may take to drain and to save."""
    least_s = Settings().drain_seconds + 30
    unit = (DEPLOY / "systemd/falconet.service").read_text()

    assert int(compose()["services"]["falconet"]["stop_grace_period"][:-1]) >= least_s
    assert only("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= least_s
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) >= least_s


def test_kustomizations_name_their_files() -> None:
    """Each file of the folder is named by its kustomization, and each name is a file or folder."""
    for path in sorted(KUBERNETES.rglob("kustomization.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        named = {*content["resources"], *(f for g in content.get("configMapGenerator", ()) for f in g["files"])}

        assert {name for name in named if not (path.parent / name).exists()} == set()
        assert {f.name for f in path.parent.iterdir() if f.is_file()} - named == {"kustomization.yaml"}


@pytest.mark.parametrize("components", [(), ("keda", "monitoring")])
@pytest.mark.parametrize("name", ["base", "single"])
def test_kubernetes_accepts_what_kustomize_builds(name: str, components: tuple[str, ...], tmp_path: Path) -> None:
    """An overlay of each folder, with the components or without, holds objects that Kubernetes's schemas allow."""
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: `make tools`")
    # As in a repository of the operator's: kustomize takes no absolute paths.
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    asked = {"resources": [f"../kubernetes/{name}"], "components": [f"../kubernetes/{each}" for each in components]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({**asked, "namespace": "fraud"}))

    found = {content["kind"]: content for content in built(overlay)}
    unknown = set()
    for kind, content in found.items():
        try:
            schemas.validate(content, schemas.latest_version(), strict=True)
        except schemas.SchemaNotFoundError:
            unknown.add(kind)

    assert unknown == ({"ScaledObject", "ServiceMonitor", "PrometheusRule"} if components else set())
    assert found["StatefulSet"]["spec"]["replicas"] == {"base": 2, "single": 1}[name]
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == [
        {"base": "ReadWriteMany", "single": "ReadWriteOnce"}[name]
    ]
    (volume,) = (each for each in found["StatefulSet"]["spec"]["template"]["spec"]["volumes"] if "configMap" in each)
    assert volume["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]


def test_hadolint_has_nothing_to_say_of_the_image() -> None:
    """No rule of hadolint's is broken but those that a line of the file names."""
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("hadolint is not installed: `make tools`")

    done = subprocess.run([program, "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("", 0)


def test_pods_are_found_by_what_selects_them() -> None:
    """Service, budget, network policy and scraping select the pods by their labels, and ports have the same names."""
    labels = only("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    service, policy = only("Service")["spec"], only("NetworkPolicy")["spec"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}

    assert service["selector"] == labels
    assert policy["podSelector"]["matchLabels"] == labels
    assert only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert only("ServiceMonitor")["spec"]["selector"]["matchLabels"] == labels
    assert ports == {service["ports"][0]["targetPort"]: Settings().metrics_port}
    assert only("StatefulSet")["spec"]["serviceName"] == only("Service")["metadata"]["name"] == "falconet"


def test_probes_let_a_standby_be() -> None:
    """No probe asks /ready, which a standby never is: a rolling update would wait for it."""
    paths = {container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}

    assert paths == {"/live"}
    assert "/live" in image.stages()[1].last("HEALTHCHECK")


def test_lag_never_starts_a_second_replica() -> None:
    """KEDA's example goes between none and one, as one process has the whole past."""
    spec = only("ScaledObject")["spec"]
    trigger = spec["triggers"][0]["metadata"]

    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 1)
    assert (trigger["consumerGroup"], trigger["topic"]) == (Settings().group_id, Settings().transactions_topic)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_unit_is_what_systemd_accepts(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, where the program is in its place."""
    program = tmp_path / "falconet"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "falconet.service"
    text = (DEPLOY / "systemd/falconet.service").read_text()
    unit.write_text(text.replace("/opt/falconet/bin/falconet", str(program)))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--generators=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert [line for line in done.stderr.splitlines() if "falconet" in line] == []
    assert done.returncode == 0, done.stderr
