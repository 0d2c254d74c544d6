"""Promotion and rollback on a registry of small models."""

import json
from pathlib import Path

import pytest

from features.errors import ArtifactError, UsageError
from models import promotion, registry
from models.promotion import HISTORY_FILE, Outcome
from tests import registries

SLOW = 1_000.0
"""Times the latency budgets: how fast this machine is today is not tested here."""


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry without a champion: 1 to 3 alike, 4 worse, 5 without evaluation, 6 of another schema."""
    root = tmp_path_factory.mktemp("registry")
    for number in (1, 2, 3):
        registries.add_version(root, str(number), evaluation={}, seed=number)
    registries.add_version(root, "4", evaluation={"gain": 0.8}, seed=4)
    registries.add_version(root, "5", seed=5)
    registries.add_version(root, "6", evaluation={}, seed=6, schema="0" * 16)
    return root


@pytest.fixture
def root(versions: Path, tmp_path: Path) -> Path:
    """A registry of the test's own, its champion version 1."""
    root = registries.copy(versions, tmp_path / "registry")
    (root / "champion").write_text("drawn/1\n")
    return root


def promote(root: Path, version: str, **options: object) -> Outcome:
    return promotion.promote(root, root / "drawn" / version, **{"latency_budget": SLOW} | options)  # type: ignore[arg-type]


def champion(root: Path) -> str:
    return (root / "champion").read_text()


def test_promotion_changes_the_champion_and_is_remembered(root: Path) -> None:
    """The history tells from where to where, and when."""
    outcome = promote(root, "2", reason="weekly")

    assert outcome.is_promoted
    assert champion(root) == "drawn/2\n"
    [line] = (root / HISTORY_FILE).read_text().splitlines()
    step = json.loads(line)
    assert step.pop("time") > "2026"
    assert step == {
        "action": "promote",
        "from": "drawn/1",
        "to": "drawn/2",
        "is_forced": False,
        "reason": "weekly",
        "refusals": [],
    }


def test_first_champion_is_compared_with_nothing(root: Path) -> None:
    """A registry without a champion takes any sound version that meets the budgets."""
    (root / "champion").unlink()

    assert promote(root, "5").is_promoted
    assert champion(root) == "drawn/5\n"


def test_champion_stays_champion(root: Path) -> None:
    """Promoting it again changes nothing and writes no history."""
    outcome = promote(root, "1")

    assert (outcome.is_promoted, outcome.id, outcome.before) == (False, "drawn/1", "drawn/1")
    assert not (root / HISTORY_FILE).exists()


def test_refusal_lists_all_and_changes_nothing(root: Path) -> None:
    """Quality and latency are told together."""
    outcome = promote(root, "4", latency_budget=1e-9)

    assert not outcome.is_promoted
    assert len([reason for reason in outcome.verdict.refusals if reason.startswith("latency")]) == 2
    assert len([reason for reason in outcome.verdict.refusals if "champion's interval" in reason]) == 8
    assert champion(root) == "drawn/1\n"
    assert not (root / HISTORY_FILE).exists()


def test_force_overrules_the_gate_and_is_remembered(root: Path) -> None:
    """The history holds the operator's reason and every refusal."""
    outcome = promote(root, "4", is_forced=True, reason="the old one is wrong on L2")

    assert outcome.is_promoted
    [step] = promotion.history(root)
    assert step.is_forced
    assert step.reason == "the old one is wrong on L2"
    assert step.refusals == outcome.verdict.refusals
    assert len(step.refusals) == 8


def test_force_makes_nothing_servable(root: Path) -> None:
    """Another schema, and a damaged file, are refused whatever is asked."""
    with (root / "drawn" / "2" / registry.TEACHER_FILE).open("ab") as file:
        file.write(b"x")

    for version, told in (("6", "trained on feature schema 0000"), ("2", "manifest.json says")):
        outcome = promote(root, version, is_forced=True, reason="please")
        assert not outcome.is_promoted
        assert len(outcome.verdict.broken) == 1
        assert told in outcome.verdict.broken[0]
    assert champion(root) == "drawn/1\n"


def test_unsealed_or_misplaced_version_is_refused(root: Path, tmp_path: Path) -> None:
    """A folder without a manifest, under another name, or linked from elsewhere is no version."""
    (root / "drawn" / "2" / "manifest.json").unlink()
    (root / "drawn" / "3").rename(root / "drawn" / "30")
    (root / "drawn" / "4").rename(tmp_path / "4")
    (root / "drawn" / "4").symlink_to(tmp_path / "4")

    for version, told in (("2", "no sealed version"), ("30", "must lie at"), ("4", "must lie at")):
        assert told in promote(root, version).verdict.broken[0]


def test_registry_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    """A mounted volume often is; only what lies in the registry must be its own."""
    link = tmp_path / "mounted"
    link.symlink_to(root)

    assert promote(link, "2").is_promoted
    assert champion(root) == "drawn/2\n"


def test_candidate_without_evaluation_is_refused(root: Path) -> None:
    """The reason names the file that is missing."""
    [reason] = promote(root, "5").verdict.refusals

    assert "5/evaluation.json: cannot be read" in reason


def test_evaluation_handed_in_counts(root: Path, tmp_path: Path) -> None:
    """An evaluation made later, on the same data for both, takes the place of those in the folders."""
    one, five = (registry.verify(root / "drawn" / version).digest for version in ("1", "5"))
    both = registries.judgement(registries.judged(one), registries.judged(five), data="e" * 64)
    path = registries.write_evaluation(tmp_path / "both.json", both)
    only = registries.write_evaluation(
        tmp_path / "only.json", registries.judgement(registries.judged(five), data="e" * 64)
    )
    other = registries.write_evaluation(tmp_path / "other.json", registries.judgement(registries.judged("f" * 64)))

    assert "differ in the data" in promote(root, "5", evaluations=[only]).verdict.refusals[0]
    with pytest.raises(UsageError, match="judges neither"):
        promote(root, "5", evaluations=[other])
    assert promote(root, "5", evaluations=[path]).is_promoted


def test_damaged_champion_can_only_be_replaced_by_force(root: Path) -> None:
    """What cannot be compared is a refusal, not a pass."""
    (root / "drawn" / "1" / "teacher.json").unlink()

    [reason] = promote(root, "2").verdict.refusals
    assert "cannot be compared with the champion drawn/1" in reason

    assert promote(root, "2", is_forced=True, reason="1 is damaged").is_promoted


def test_rollback_walks_back_the_promotions(root: Path) -> None:
    """Each rollback takes one promotion back, past the rollbacks before it, until none is left."""
    for version in ("2", "3", "2"):
        assert promote(root, version).is_promoted

    for expected in ("drawn/3", "drawn/2", "drawn/1"):
        assert promotion.rollback(root, reason="alarms").to == expected
        assert champion(root) == f"{expected}\n"
    with pytest.raises(UsageError, match="no champion before drawn/1"):
        promotion.rollback(root)

    assert [step.action for step in promotion.history(root)] == ["promote"] * 3 + ["rollback"] * 3


def test_rollback_skips_a_promotion_that_was_not_taken(root: Path) -> None:
    """A crash between history and champion leaves a line for a step that never was."""
    promote(root, "2")
    promote(root, "3")
    (root / "champion").write_text("drawn/2\n")

    assert promotion.rollback(root).to == "drawn/1"


def test_rollback_to_what_cannot_be_served_is_refused(root: Path) -> None:
    """A version damaged since is no way back."""
    promote(root, "2")
    (root / "drawn" / "1" / "teacher.json").unlink()

    with pytest.raises(ArtifactError, match=r"teacher\.json: is missing"):
        promotion.rollback(root)

    assert champion(root) == "drawn/2\n"


def test_line_that_a_crash_cut_short_is_dropped(root: Path) -> None:
    """Neither does it count, nor does the next line join it."""
    promote(root, "2")
    with (root / HISTORY_FILE).open("ab") as file:
        file.write(b'{"time": "2026-')
    assert len(promotion.history(root)) == 1

    promote(root, "3")

    assert [step.to for step in promotion.history(root)] == ["drawn/2", "drawn/3"]


def test_damaged_history_is_refused(root: Path) -> None:
    """A whole line that is no step is named with its number."""
    (root / HISTORY_FILE).write_text("{}\n")

    with pytest.raises(ArtifactError, match=r"history\.jsonl:1: is no step"):
        promotion.rollback(root)


def test_registry_that_cannot_be_written_says_what_to_do(root: Path) -> None:
    """The error names the file, and the setting that leads to a registry of one's own."""
    (root / HISTORY_FILE).mkdir()

    with pytest.raises(UsageError, match=r"history\.jsonl: cannot be written: .* set registry_dir"):
        promote(root, "2")

    assert champion(root) == "drawn/1\n"


def test_champion_is_replaced_whole(root: Path) -> None:
    """A reader that has the old file open goes on reading the old one, and nothing is left beside the new."""
    before = {path.name for path in root.iterdir()}
    with (root / "champion").open() as file:
        promote(root, "2")
        assert file.read() == "drawn/1\n"

    assert {path.name for path in root.iterdir()} == before | {HISTORY_FILE}


def test_versions_are_found_and_ordered(root: Path) -> None:
    """In full or by a version alone, where only one name has it; 10 comes after 2."""
    registries.add_version(root, "10")
    registries.add_version(root, "2", name="other")

    assert [folder.name for folder in registry.packaged(root)] == ["1", "2", "3", "4", "5", "6", "10", "2"]
    assert registry.find(root, "3") == root / "drawn" / "3"
    assert registry.find(root, "other/2") == root / "other" / "2"
    with pytest.raises(UsageError, match=r"not unique .* drawn/2, other/2"):
        registry.find(root, "2")
    with pytest.raises(UsageError, match=r"has no version '7'; it has drawn/1"):
        registry.find(root, "7")


def test_setting_names_champion_version_or_path(root: Path) -> None:
    """Empty is the champion; a registry's version comes before a path of that name."""
    assert registry.model_path("", str(root)) == root / "drawn" / "1" / registry.MODEL_FILE
    assert registry.model_path("drawn/2", str(root)) == root / "drawn" / "2" / registry.MODEL_FILE
    assert registry.model_path(str(root / "drawn" / "3"), str(root)) == root / "drawn" / "3" / registry.MODEL_FILE
    assert registry.model_path("nowhere/1", str(root)) == Path("nowhere/1")


def test_setting_reaches_sound_versions_only(root: Path) -> None:
    """A champion, a named version and a path to a sealed folder are verified whole; a bare file by its own checksum."""
    for version in ("1", "2"):
        (root / "drawn" / version / "teacher.json").unlink()

    for setting in ("", "drawn/2", str(root / "drawn" / "2")):
        with pytest.raises(ArtifactError, match=r"teacher\.json: is missing"):
            registry.model_path(setting, str(root))
    bare = str(root / "drawn" / "2" / registry.MODEL_FILE)
    assert registry.model_path(bare, str(root)) == Path(bare)
