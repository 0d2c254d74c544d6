"""Kafka behind locked doors: both clients over TLS with SCRAM and with certificates, and what is said when refused."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from features.errors import BrokerError, UsageError
from service import kafka, simulator
from service.settings import Settings
from tests import secured, servers
from tests.integration.conftest import World, until
from tests.secured import Locked

COMMAND = [sys.executable, "-c", "from service.cli import main; main()"]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """Run the broker."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(secured.locked(tmp_path_factory.mktemp("locked")))
        except servers.MissingServerError as error:
            pytest.skip(str(error))


@pytest.fixture
def broker(locked: Locked) -> str:
    """Return its address in the clear, which the tests themselves use."""
    return locked.broker.address


Doors = Callable[[Locked], dict[str, object]]


@pytest.mark.parametrize(
    "door",
    [
        pytest.param(lambda k: k.scram(), id="scram-512"),
        pytest.param(lambda k: k.scram(sasl_mechanism="SCRAM-SHA-256"), id="scram-256"),
        pytest.param(lambda k: k.mutual(), id="mutual"),
        pytest.param(
            lambda k: k.mutual(k.client_locked, ssl_key_password=secured.KEY_PASSWORD), id="mutual-encrypted-key"
        ),
    ],
)
def test_service_goes_through_locked_doors(world: World, locked: Locked, door: Doors) -> None:
    """Every transaction gets its score over TLS with a SCRAM login and with a client certificate."""
    world.create(world.settings.transactions_topic)
    world.publish(simulator.messages(1, 40))
    with world.serving(world.but(**door(locked))):
        scores = world.scores(40)

    assert sorted(offset for offset, _ in scores) == list(range(40))


REFUSALS = [
    pytest.param(lambda k: k.scram(sasl_password="wrong"), "refuses the login of 'falconet'", id="wrong-password"),
    pytest.param(lambda k: k.scram(sasl_username="nobody"), "refuses the login of 'nobody'", id="unknown-user"),
    pytest.param(lambda k: k.scram(sasl_mechanism="PLAIN"), "does not offer sasl_mechanism PLAIN", id="mechanism"),
    pytest.param(
        lambda k: k.scram(ssl_cafile=str(k.stranger_cafile)), "certificate that is not accepted: ", id="foreign-broker"
    ),
    pytest.param(lambda k: k.tls(secured.EXPIRED), "not accepted: certificate has expired", id="expired-broker"),
    pytest.param(lambda k: k.tls(secured.ELSEWHERE), "not accepted: IP address mismatch", id="other-host"),
    pytest.param(lambda k: k.tls(secured.MUTUAL), "ssl_certfile is not set", id="no-certificate"),
    pytest.param(lambda k: k.mutual(k.stranger), "refuses the TLS connection", id="foreign-client"),
    pytest.param(
        lambda k: k.mutual(k.client_expired), "refused here, too: certificate has expired", id="expired-client"
    ),
    pytest.param(
        lambda k: k.mutual(bootstrap_servers=k.broker.address), "it may not speak TLS there", id="tls-to-clear"
    ),
    pytest.param(
        lambda k: k.scram(security_protocol="SASL_PLAINTEXT", ssl_cafile=None), "may not speak", id="clear-to-tls"
    ),
]


@pytest.mark.parametrize(("door", "said"), REFUSALS)
def test_refusal_is_told_at_once_with_its_reason(library: str, locked: Locked, door: Doors, said: str) -> None:
    """Whatever the door refuses ends the start with what is wrong: it is no outage, which would be retried."""
    with pytest.raises(BrokerError) as caught:
        kafka.connect(Settings(kafka_client=library, **door(locked)))  # type: ignore[arg-type]

    assert type(caught.value) is BrokerError
    assert said in str(caught.value)
    assert secured.PASSWORD not in str(caught.value)


def test_certificate_files_that_cannot_be_used_are_wrong_usage(locked: Locked, tmp_path: Path) -> None:
    """A missing file, one that is no PEM, another certificate's key, and an encrypted key without its password."""
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\x80\x04\x95 no certificate")
    certfile, _ = locked.client
    wrong = {
        "No such file": locked.mutual(ssl_cafile=str(tmp_path / "none.pem")),
        "must be PEM": locked.mutual(ssl_cafile=str(garbage)),
        "another certificate": locked.mutual((certfile, locked.stranger[1])),
        "needs its ssl_key_password": locked.mutual(locked.client_locked),
    }

    for said, door in wrong.items():
        with pytest.raises(UsageError, match=said):
            kafka.connect(Settings(**door))  # type: ignore[arg-type]


def environment(world: World, door: dict[str, object], **changes: object) -> dict[str, str]:
    """Return the environment of a command that goes through a door."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FALCONET_")}
    names = ("kafka_client", "group_id", "transactional_id", "transactions_topic", "scores_topic", "alerts_topic")
    names += ("dlq_topic", "model", "state_dir", "accounts_max", "pairs_max", "metrics_port", "shadow_share")
    values = {name: getattr(world.settings, name) for name in names} | door | changes
    return kept | {f"FALCONET_{name.upper()}": str(value) for name, value in values.items()}


def run(*arguments: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=90, check=False
    )


def holds_secret(text: str, *files: Path) -> bool:
    """Say whether a text holds a password, or a line of a key."""
    secrets = [secured.PASSWORD, secured.KEY_PASSWORD, "wr0ng-p4ssw0rd"]
    for file in files:
        secrets += [line for line in file.read_text().splitlines() if line and "-----" not in line]
    return any(secret in text for secret in secrets)


@pytest.mark.parametrize(
    ("door", "said"),
    [
        pytest.param(lambda k: k.tls(secured.EXPIRED), "certificate has expired", id="expired-broker"),
        pytest.param(lambda k: k.mutual(k.client_expired), "certificate has expired", id="expired-client"),
        pytest.param(lambda k: k.mutual(k.stranger), "refuses the TLS connection", id="foreign-client"),
    ],
)
def test_serve_with_a_certificate_that_is_not_accepted_fails(
    world: World, locked: Locked, door: Doors, said: str
) -> None:
    """Exit code 1 and one line that says why."""
    done = run("serve", environment=environment(world, door(locked)))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("falconet: Kafka at ")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "check", "export"])
def test_command_with_a_wrong_password_fails_and_keeps_it(
    world: World, locked: Locked, command: str, tmp_path: Path
) -> None:
    """Exit code 1, one line that says why, and no password anywhere, neither the wrong one nor a part of it."""
    options = ["--output", str(tmp_path / "archive")] if command == "export" else []
    done = run(command, *options, environment=environment(world, locked.scram(sasl_password="wr0ng-p4ssw0rd")))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("falconet: Kafka at ")
    assert "refuses the login" in done.stderr
    assert "Traceback" not in done.stderr
    assert not holds_secret(done.stdout + done.stderr)


def test_commands_share_the_settings_and_log_no_secret(world: World, locked: Locked, tmp_path: Path) -> None:
    """`check`, `serve` and `export` go through with a login from a file and a key from another; neither is logged."""
    (tmp_path / "password").write_text(secured.PASSWORD + "\n")
    (tmp_path / "key-password").write_text(secured.KEY_PASSWORD + "\n")
    world.create(world.settings.transactions_topic)
    world.publish(simulator.messages(1, 20))
    scram = locked.scram(sasl_password_file=tmp_path / "password")
    del scram["sasl_password"]
    mutual = locked.mutual(locked.client_locked, ssl_key_password_file=tmp_path / "key-password")
    checked = run("check", environment=environment(world, mutual))
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        serving = subprocess.Popen([*COMMAND, "serve"], env=environment(world, scram), stdout=file, stderr=file)
    try:
        until(lambda: "serving offsets=" in log.read_text() or serving.poll() is not None)
        n_scores = len(world.scores(20))
    finally:
        serving.send_signal(signal.SIGTERM)
        code = serving.wait(40)
    exported = run("export", "--output", str(tmp_path / "archive"), environment=environment(world, mutual))

    assert (checked.returncode, code, exported.returncode) == (0, 0, 0), checked.stderr + log.read_text()
    assert n_scores == 20
    assert "holds 20 transactions" in exported.stderr
    said = checked.stdout + checked.stderr + log.read_text() + exported.stdout + exported.stderr
    assert '"sasl_password":"***"' in said
    assert not holds_secret(said, locked.client[1], locked.client_locked[1])


def test_demo_goes_through_a_locked_door(world: World, locked: Locked) -> None:
    """The demo's own clients, its sender and its service use the settings of the environment."""
    door = locked.scram()
    servers_of_door = str(door.pop("bootstrap_servers"))
    options = ["--bootstrap-servers", servers_of_door, "--seconds", "1", "--rate", "100"]
    done = run("demo", *options, environment=environment(world, door))

    assert done.returncode == 0, done.stderr
    assert not holds_secret(done.stdout + done.stderr)
