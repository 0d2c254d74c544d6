"""The `falconet model` commands: which versions a registry holds, what is known of each, and which one is served."""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import ArtifactError, UsageError
from service import settings

if TYPE_CHECKING:
    from models.gate import Figure
    from models.promotion import Outcome
    from models.signing import Keys

app = typer.Typer(name="model", help="List, show, promote and roll back models.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings.")]
Registry = Annotated[
    str | None, typer.Option("--registry-dir", metavar="DIR", help="Registry to use instead of the setting's.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="NAME/VERSION, or a version that only one name has.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the registry's history.")]


class Form(StrEnum):
    """Forms of a model for other programs."""

    c = "c"
    onnx = "onnx"
    lightgbm = "lightgbm"


HEADLINES = (
    "ROC AUC, all",
    "ROC AUC, new accounts",
    "ROC AUC, new accounts, first transaction",
    "recall at 1 % FPR, new accounts",
    "alerts on background at 50% recall on new phishing",
    "alerts on background at 70% recall on new phishing",
)
"""Of an evaluation's 29 figures, those that `model show` shows."""

NEW_ACCOUNTS = {"roc_auc_new": "ROC AUC, new accounts", "recall_new": "recall at 1 % FPR, new accounts"}
"""Those that stand in `model list`."""


def _root(config: Path | None, registry_dir: str | None) -> Path:
    """Read the settings, before the heavy imports, and return the registry."""
    return _registry(config, registry_dir)[0]


def _registry(config: Path | None, registry_dir: str | None) -> "tuple[Path, Keys | None]":
    """Return the registry, and the keys one of which must have signed what becomes champion."""
    effective = settings.load(config=config, overrides={"registry_dir": registry_dir})
    from models import registry
    from service import trust

    root = registry.root_folder(effective.registry_dir)
    if not root.is_dir():
        raise UsageError(f"registry_dir {root} is no folder")
    return root, trust.keys(effective)


@app.command("list")
def list_(config: Config = None, registry_dir: Registry = None, as_json: Json = False) -> None:
    """List every version of the registry with its size and headline figures; * marks the champion."""
    root = _root(config, registry_dir)
    from models import registry

    champion = registry.champion_id(root)
    entries = [_entry(root, folder, champion) for folder in registry.packaged(root)]
    if as_json:
        _write_json({"registry": str(root), "champion": champion, "versions": entries})
        return
    header = ("", "version", "bytes", "trees", "features", "made", "ROC AUC new", "recall new @ 1 % FPR", "state")
    lines = [header, *(_line(entry) for entry in entries)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    typer.echo(f"registry {root}")
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command()
def show(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="NAME/VERSION, or a version alone; else the champion.")
    ] = None,
    config: Config = None,
    registry_dir: Registry = None,
    as_json: Json = False,
) -> None:
    """Show a version: provenance, thresholds, calibration, its files with verified checksums, headline figures."""
    root = _root(config, registry_dir)
    from models import registry

    folder = registry.champion(root) if version is None else registry.find(root, version)
    facts = _facts(root, folder)
    if as_json:
        _write_json(facts)
        return
    for line in _shown(facts):
        typer.echo(line)


@app.command()
def promote(
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="Promote against the gate; needs --reason.")] = False,
    reason: Reason = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            metavar="FILE",
            help="evaluation.json of the candidate or the champion, taken instead of their own; may be repeated.",
        ),
    ] = None,
    latency_budget: Annotated[
        float, typer.Option("--latency-budget", min=0.1, max=100, help="Times the latency budgets, on a slow machine.")
    ] = 1.0,
    config: Config = None,
    registry_dir: Registry = None,
    as_json: Json = False,
) -> None:
    """Make a version champion if it is not worse, small and fast; else 1, with every reason."""
    if force and not reason:
        raise UsageError("--force needs --reason, for the registry's history")
    root, keys = _registry(config, registry_dir)
    from models import promotion, registry

    outcome = promotion.promote(
        root,
        registry.find(root, version),
        evaluations=evaluation or (),
        latency_budget=latency_budget,
        is_forced=force,
        reason=reason,
        keys=keys,
    )
    is_champion = outcome.is_promoted or (outcome.id == outcome.before and not outcome.verdict.broken)
    if as_json:
        cost = outcome.verdict.cost
        _write_json(
            {
                "version": outcome.id,
                "before": outcome.before,
                "promoted": outcome.is_promoted,
                "broken": outcome.verdict.broken,
                "refusals": outcome.verdict.refusals,
                "cost": None if cost is None else cost._asdict(),
            }
        )
    else:
        for line in _told(outcome):
            typer.echo(line)
    if not is_champion:
        raise typer.Exit(1)


@app.command()
def rollback(
    reason: Reason = None, config: Config = None, registry_dir: Registry = None, as_json: Json = False
) -> None:
    """Make the version champion again that was so before the present one."""
    root, keys = _registry(config, registry_dir)
    from models import promotion

    step = promotion.rollback(root, reason=reason, keys=keys)
    if as_json:
        _write_json(step)
    else:
        typer.echo(f"champion is {step.to} again, before: {step.before}")


@app.command()
def sign(
    version: Version,
    key: Annotated[
        Path,
        typer.Option("--key", metavar="FILE", help="PEM file of an Ed25519 private key that its owner alone may read."),
    ],
    config: Config = None,
    registry_dir: Registry = None,
) -> None:
    """Sign a version's manifest, so that it is served where `model_keys` names the public key."""
    root = _root(config, registry_dir)
    from models import registry, signing

    private = signing.read_private_key(key)
    manifest = registry.sign(root, registry.find(root, version), private)
    typer.echo(f"signed {manifest.id} with the key {signing.fingerprint(private.public_key())}")


@app.command()
def export(
    form: Annotated[Form, typer.Option("--format", help="What to write.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="File to write.")],
    model: Annotated[
        str, typer.Option("--model", metavar="DIR", help="Folder or file of the model, else the champion.")
    ] = "",
    config: Config = None,
    registry_dir: Registry = None,
) -> None:
    """Write a model as one C file, as ONNX, or as LightGBM's text; each scores exactly as the service does."""
    root = _root(config, registry_dir)
    from models import compact, registry
    from models import export as forms

    artifact = compact.read(registry.model_path(model, str(root)))
    if form is Form.onnx:
        raw = forms.to_onnx(artifact)
    else:
        raw = (forms.to_c if form is Form.c else forms.to_lightgbm_text)(artifact).encode()
    try:
        output.write_bytes(raw)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from error
    header = artifact.header
    typer.echo(f"wrote {header.name}/{header.version} as {form.value}, {len(raw):,} bytes, to {output}")


def _told(outcome: "Outcome") -> Iterator[str]:
    verdict = outcome.verdict
    if outcome.id == outcome.before:
        yield f"{outcome.id} is champion already"
    elif outcome.is_promoted:
        yield f"champion is {outcome.id}, before: {outcome.before or 'none'}"
    else:
        yield f"{outcome.id} is refused, champion is still {outcome.before or 'none'}"
    yield from (f"  cannot be served: {reason}" for reason in verdict.broken)
    if outcome.id != outcome.before:
        yield from (f"  {reason}" for reason in verdict.refusals)
    if verdict.cost is not None:
        cost = verdict.cost
        yield (
            f"  measured: {cost.n_bytes:,} bytes, {cost.n_features} features, {cost.batch_us:.3f} µs a row in batches, "
            f"{cost.single_us:.2f} µs alone"
        )
    if outcome.before is None and outcome.is_promoted:
        yield "  no champion to compare with: its quality was not judged"


def _entry(root: Path, folder: Path, champion: str | None) -> dict[str, Any]:
    """Return what the list says of a version; whatever cannot be told is None, with the reason in `state`."""
    from models import compact, registry

    version = f"{folder.parent.name}/{folder.name}"
    entry: dict[str, Any] = dict.fromkeys(("bytes", "trees", "features", "made", "roc_auc_new", "recall_new"))
    entry = {"version": version, "is_champion": version == champion} | entry | {"state": "sealed"}
    try:
        artifact = compact.read(folder / registry.MODEL_FILE)
        entry |= {
            "bytes": artifact.n_bytes,
            "trees": artifact.header.n_trees,
            "features": len(artifact.header.features),
        }
        found = _figures(folder, artifact.digest)
        for column, name in NEW_ACCOUNTS.items():
            if name in found:
                entry[column] = found[name].estimate.value
        entry["made"] = registry.verify_version(root, folder).provenance.made_at
    except ArtifactError as error:
        entry["state"] = str(error).removeprefix(f"{folder}{os.sep}")
    return entry


def _line(entry: dict[str, Any]) -> tuple[str, ...]:
    def text(name: str, form: str = "") -> str:
        return "-" if entry[name] is None else format(entry[name], form)

    return (
        "*" if entry["is_champion"] else "",
        entry["version"],
        text("bytes", ","),
        text("trees"),
        text("features"),
        text("made")[:10],
        text("roc_auc_new", ".3f"),
        text("recall_new", ".3f"),
        entry["state"],
    )


def _figures(folder: Path, digest: str) -> "dict[str, Figure]":
    """Return a model's figures, nothing where its folder holds no evaluation of it."""
    from models import gate

    path = folder / gate.EVALUATION_FILE
    if not path.exists():
        return {}
    evaluated = gate.of_model(gate.read(path), digest)
    return {} if evaluated is None else gate.figures(evaluated.judged)


def _facts(root: Path, folder: Path) -> dict[str, Any]:
    """Return all that is known of a version.

    Raises:
        ArtifactError: It is not as it was sealed.
    """
    import msgspec

    from features import schema
    from models import compact, registry

    manifest = registry.verify_version(root, folder)
    artifact = compact.read(folder / registry.MODEL_FILE)
    header = artifact.header
    found = _figures(folder, artifact.digest)
    return {
        "version": manifest.id,
        "folder": str(folder),
        "is_champion": manifest.id == registry.champion_id(root),
        "digest": manifest.digest,
        "bytes": artifact.n_bytes,
        "trees": header.n_trees,
        "features": header.features,
        "schema": header.schema,
        "is_servable": header.schema == schema.FINGERPRINT,
        "calibration": msgspec.to_builtins(header.calibration),
        "thresholds": msgspec.to_builtins(header.thresholds),
        "provenance": msgspec.to_builtins(manifest.provenance),
        "files": msgspec.to_builtins(manifest.files),
        "figures": {name: msgspec.to_builtins(found[name].estimate) for name in HEADLINES if name in found},
    }


def _shown(facts: dict[str, Any]) -> Iterator[str]:
    provenance, calibration = facts["provenance"], facts["calibration"]
    yield f"{facts['version']}{', champion' if facts['is_champion'] else ''}"
    yield f"  {facts['bytes']:,} bytes, {facts['trees']} trees, {len(facts['features'])} features"
    yield f"  digest      {facts['digest']}"
    yield f"  schema      {facts['schema']}" + ("" if facts["is_servable"] else ", not this program's")
    yield "provenance"
    yield f"  made        {provenance['made_at']}"
    yield f"  data        {provenance['data']}"
    yield f"  commit      {provenance['commit']}"
    yield f"  seed        {provenance['seed']}"
    yield "  libraries   " + ", ".join(f"{name} {version}" for name, version in provenance["libraries"].items())
    yield "  settings    " + ", ".join(f"{name}={value}" for name, value in provenance["settings"].items())
    yield "calibration"
    yield (
        f"  slope {calibration['slope']:.6g}, intercept {calibration['intercept']:.6g}, "
        f"prior {calibration['prior']:g}, fitted on {calibration['chosen']}"
    )
    yield "thresholds"
    for name, threshold in facts["thresholds"].items():
        yield f"  {name:<11} {threshold['probability']:.6g}: {threshold['chosen']}"
    yield "files, checksums verified"
    for name, file in facts["files"].items():
        yield f"  {file['sha256']}  {file['n_bytes']:>11,}  {name}"
    yield "figures, with 95 % intervals" if facts["figures"] else "figures: none, the version holds no evaluation"
    for name, estimate in facts["figures"].items():
        yield f"  {name:<52} {estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _write_json(value: object) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value)).decode())
