"""Which version is champion: promotion through the gate, rollback, and the history of both.

`history.jsonl` is written before `champion`, under a lock: after a crash between the two the history tells of a step
that was not taken, and the next step, which starts from what `champion` says, shows that.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from features import durable
from features.errors import ArtifactError, UsageError
from models import gate, registry
from models.gate import Cost, Evaluated, Judgement
from models.scorer import Scorer
from models.signing import Keys

HISTORY_FILE = "history.jsonl"

Action = Literal["promote", "rollback"]


class Step(Struct, frozen=True, kw_only=True, rename={"before": "from"}):
    """One change of the champion, a line of the history."""

    time: str
    """ISO 8601 in UTC."""

    action: Action
    before: str | None
    """The champion until then, None for the first."""

    to: str
    is_forced: bool = False
    reason: str | None = None
    """Why, in the words of whoever asked for it."""

    refusals: list[str] = []
    """What the gate had against it, where it was forced."""


class Verdict(NamedTuple):
    """What speaks against a version."""

    broken: list[str]
    """Why it cannot be served at all; no force helps."""
    refusals: list[str]
    """What the gate has against it."""
    cost: Cost | None
    """None where it cannot be loaded."""


class Outcome(NamedTuple):
    """What a promotion came to."""

    id: str
    before: str | None
    is_promoted: bool
    verdict: Verdict


def promote(
    root: Path,
    folder: Path,
    *,
    evaluations: Sequence[Path] = (),
    latency_budget: float = 1.0,
    is_forced: bool = False,
    reason: str | None = None,
    keys: Keys | None = None,
) -> Outcome:
    """Make a version champion if the gate lets it pass, or if forced.

    Args:
        root: The registry.
        folder: The version's.
        evaluations: Files that judge the candidate or the champion and count instead of those in their folders.
        latency_budget: Times the latency budgets.
        is_forced: Promote against the gate's refusals, which go into the history.
        reason: Goes into the history.
        keys: One of them must have signed the version, forced or not; None wants no signature.

    Raises:
        UsageError: The registry cannot be written, or an evaluation judges neither of the two.
        ArtifactError: The registry's champion or history is damaged, or an evaluation handed in.
    """
    name = f"{folder.parent.name}/{folder.name}"
    with _locked(root):
        before = registry.champion_id(root)
        verdict = examine(root, folder, before, evaluations=evaluations, latency_budget=latency_budget, keys=keys)
        passes = not verdict.broken and (is_forced or not verdict.refusals)
        if before != name and passes:
            step = Step(
                time=_now(),
                action="promote",
                before=before,
                to=name,
                is_forced=bool(verdict.refusals),
                reason=reason,
                refusals=verdict.refusals,
            )
            _take(root, step)
        return Outcome(name, before, before != name and passes, verdict)


def rollback(root: Path, *, reason: str | None = None, keys: Keys | None = None) -> Step:
    """Make the version champion again that was so before the present one.

    Raises:
        UsageError: There is none, or the registry cannot be written.
        ArtifactError: It cannot be served, or the registry is damaged.
    """
    with _locked(root):
        before = registry.champion_id(root)
        if before is None:
            raise UsageError(f"{root} has no champion to roll back from")
        earlier = _lineage(history(root), before)[:-1]
        if not earlier:
            raise UsageError(f"{root / HISTORY_FILE} knows no champion before {before}")
        folder = root / earlier[-1]
        registry.verify_version(root, folder, keys)
        Scorer.load(folder / registry.MODEL_FILE)
        step = Step(time=_now(), action="rollback", before=before, to=earlier[-1], reason=reason)
        _take(root, step)
        return step


def history(root: Path) -> list[Step]:
    """Return all changes of the champion, the oldest first.

    Raises:
        ArtifactError: The history is damaged.
    """
    path = root / HISTORY_FILE
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    steps = []
    for number, line in enumerate(whole, start=1):
        try:
            steps.append(msgspec.json.decode(line, type=Step))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}:{number}: is no step: {error}") from error
    return steps


def examine(
    root: Path,
    folder: Path,
    champion: str | None,
    *,
    evaluations: Sequence[Path] = (),
    latency_budget: float = 1.0,
    keys: Keys | None = None,
) -> Verdict:
    """Return all that speaks against making a version champion.

    Args:
        root: The registry.
        folder: The candidate's.
        champion: The version it is compared with; None compares with nothing.
        evaluations: See `promote`.
        latency_budget: Times the latency budgets.
        keys: See `promote`.

    Raises:
        UsageError: An evaluation handed in judges neither of the two.
        ArtifactError: An evaluation handed in cannot be read.
    """
    broken, refusals, cost = [], [], None
    digest = None
    try:
        digest = registry.verify_version(root, folder, keys).digest
    except ArtifactError as error:
        broken.append(str(error))
    try:
        cost = gate.measure(Scorer.load(folder / registry.MODEL_FILE))
        refusals += gate.budget(cost, latency_budget=latency_budget)
    except ArtifactError as error:
        # Verification reads the model too: one damage is one reason.
        broken += [str(error)] if str(error) not in broken else []
    handed_in = [(path, gate.read(path)) for path in evaluations]
    if digest is not None and champion is not None and champion != f"{folder.parent.name}/{folder.name}":
        refusals += _compared(root, folder, digest, champion, handed_in)
    return Verdict(broken, refusals, cost)


def _compared(
    root: Path, folder: Path, digest: str, champion: str, handed_in: Sequence[tuple[Path, Judgement]]
) -> list[str]:
    """Return why a candidate is not known to be as good as the champion."""
    try:
        limit = registry.verify_version(root, root / champion).digest
        for path, judgement in handed_in:
            if not {digest, limit} & {judged.digest for judged in judgement.models}:
                raise UsageError(f"{path}: judges neither the candidate nor the champion {champion}")
        return gate.quality(_evaluated(folder, digest, handed_in), _evaluated(root / champion, limit, handed_in))
    except ArtifactError as error:
        return [f"quality: cannot be compared with the champion {champion}: {error}"]


def _evaluated(folder: Path, digest: str, handed_in: Sequence[tuple[Path, Judgement]]) -> Evaluated:
    """Return a model's evaluation: of those handed in the last, else the one in its folder."""
    for _, judgement in reversed(handed_in):
        if (found := gate.of_model(judgement, digest)) is not None:
            return found
    path = folder / gate.EVALUATION_FILE
    if (found := gate.of_model(gate.read(path), digest)) is None:
        raise ArtifactError(f"{path}: does not judge the model {digest}")
    return found


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep other promotions out.

    Raises:
        UsageError: The registry cannot be written.
    """
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as error:
        raise UsageError(
            f"{error.filename or root}: cannot be written: {error.strerror}; promote in a registry of your own: copy "
            f"{root} to where you may write, and set registry_dir"
        ) from error


def _take(root: Path, step: Step) -> None:
    """Write a step to the history and then to the champion, each on the disk before what follows."""
    with (root / HISTORY_FILE).open("a+b") as file:
        file.seek(0)
        # A line that a crash cut short was no step.
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(msgspec.json.encode(step) + b"\n")
        durable.sync(file)
    durable.replace(root / registry.CHAMPION_FILE, step.to.encode() + b"\n")


def _lineage(steps: Sequence[Step], champion: str) -> list[str]:
    """Return the champions that led to the present one, which is the last.

    A promotion adds one, a rollback takes one away. A step that starts elsewhere than the last one ended shows that
    the last one was not taken, or that `champion` was changed by hand.
    """
    lineage: list[str] = []

    def stand_at(name: str) -> None:
        if name in lineage:
            del lineage[len(lineage) - lineage[::-1].index(name) :]
        else:
            lineage.append(name)

    for step in steps:
        if step.before is not None:
            stand_at(step.before)
        if step.action == "promote":
            lineage.append(step.to)
        else:
            stand_at(step.to)
    stand_at(champion)
    return lineage


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
