"""A promoted model takes over between two batches; what cannot be served changes nothing."""

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from features.accounts import Accounts
from features.errors import OutageError
from models import registry
from models.scorer import Scorer
from service import serve, simulator
from service.codec import Decoder
from service.loop import Loop
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.policy import policy
from service.reload import Follower, Replacement, Watcher
from service.settings import Settings
from service.shadow import Shadow
from tests import registries
from tests.fakes import FakeKafka

VALUES = simulator.messages(3, 60)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry: versions 1 and 2 can be served, 3 is of another schema; 1 is champion."""
    root = tmp_path_factory.mktemp("registry")
    registries.add_version(root, "1")
    registries.add_version(root, "2", seed=2)
    registries.add_version(root, "3", seed=3, schema="0" * 16)
    (root / "champion").write_text("drawn/1\n")
    return root


@pytest.fixture
def root(versions: Path, tmp_path: Path) -> Path:
    """A registry of the test's own."""
    return registries.copy(versions, tmp_path / "registry")


class Taking:
    """Takes every replacement at once, and gives back the shadow it had."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.shadow: Shadow | None = None
        self.has_taken = threading.Event()

    def replace(self, replacement: Replacement) -> None:
        assert replacement.shadow is None or replacement.shadow.is_loaded.is_set()
        self.taken.append(replacement.scorer.model.version)
        self.shadow, replacement.shadow = replacement.shadow, self.shadow
        replacement.adopted.set()
        self.has_taken.set()


class Following:
    """A follower of a registry whose version 1 is in use."""

    def __init__(self, root: Path, *, shadow_share: float = 0.0) -> None:
        self.root = root
        self.metrics = Metrics()
        self.adopter = Taking()
        settings = Settings(registry_dir=str(root), shadow_share=shadow_share)
        self.digest = registry.verify(root / "drawn" / "1").digest
        self.follower = Follower(settings, None, self.metrics, digest=self.digest, adopter=self.adopter)

    def name(self, champion: str) -> None:
        (self.root / "champion").write_text(f"{champion}\n")

    def look(self, **options: bool) -> dict[str, float]:
        """Look, and return how many reloads there were by their outcome."""
        self.follower.look(**options)
        return {outcome: counter._value.get() for outcome, counter in self.metrics.model_reloads_total.items()}

    def in_use(self) -> dict[str, str]:
        """Return the version that the page shows in each role."""
        return {
            sample.labels["model"]: sample.labels["version"]
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "falconet_model_info"
        }


@pytest.fixture
def following(root: Path) -> Following:
    return Following(root)


def test_another_champion_is_handed_over_once(following: Following) -> None:
    """The one in use is left alone, another is loaded, shown and counted, and back again."""
    assert following.look() == {"loaded": 0, "refused": 0}
    following.name("drawn/2")
    assert following.look() == {"loaded": 1, "refused": 0}
    assert following.look(is_asked=True) == {"loaded": 1, "refused": 0}
    assert following.in_use() == {"student": "2"}
    following.name("drawn/1")
    assert following.look() == {"loaded": 2, "refused": 0}

    assert following.adopter.taken == ["2", "1"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_version_2(root: Path, name: str) -> Path:
    return root / "drawn" / "2" / name


REFUSED = {
    "drawn/3": (lambda root: None, "feature schema 000"),
    "drawn/2": (lambda root: flip(in_version_2(root, "model.falconet")), "checksum differs"),
    "drawn/2 ": (lambda root: flip(in_version_2(root, "teacher.txt.gz")), "checksum differs"),
    "drawn/2  ": (lambda root: in_version_2(root, "manifest.json").unlink(), "no sealed version"),
    "drawn/4": (lambda root: None, "is not a file"),
    "../drawn/2": (lambda root: None, "expected <name>/<version>"),
    "\0": (lambda root: None, "expected <name>/<version>"),
}


@pytest.mark.parametrize("champion", REFUSED)
def test_what_cannot_be_served_is_refused_once(
    champion: str, following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log and one count, not at every look; asked for, it is tried again."""
    damage, told = REFUSED[champion]
    damage(following.root)
    following.look()
    following.name(champion)
    with caplog.at_level(logging.INFO, "falconet.reload"):
        assert following.look() == {"loaded": 0, "refused": 1}
        assert following.look() == {"loaded": 0, "refused": 1}

    assert len(caplog.records) == 1
    assert told in caplog.text
    assert following.look(is_asked=True) == {"loaded": 0, "refused": 2}
    assert following.adopter.taken == []


def test_removed_champion_is_refused(following: Following) -> None:
    """Without the file, and without the registry, the model in use goes on."""
    following.look()
    (following.root / "champion").unlink()
    assert following.look() == {"loaded": 0, "refused": 1}

    following.root.rename(following.root.with_name("gone"))
    assert following.look() == {"loaded": 0, "refused": 1}


def test_repaired_version_is_tried_again(following: Following) -> None:
    """Nobody needs to promote it a second time."""
    teacher = in_version_2(following.root, "teacher.json")
    content = teacher.read_bytes()
    teacher.unlink()
    following.name("drawn/2")
    assert following.look() == {"loaded": 0, "refused": 1}

    teacher.write_bytes(content)

    assert following.look() == {"loaded": 1, "refused": 1}


def test_shadow_follows_the_model(root: Path) -> None:
    """The large model of the version runs in shadow; the one before it is ended."""
    following = Following(root, shadow_share=1.0)
    for champion in ("drawn/2", "drawn/1"):
        following.name(champion)
        before = following.adopter.shadow
        following.look()
        assert following.adopter.shadow is not None
        assert following.adopter.shadow is not before
        assert before is None or not before._thread.is_alive()

    following.adopter.shadow.close()


def test_version_without_a_large_model_ends_the_shadow(root: Path) -> None:
    """The page then shows none."""
    shutil.rmtree(root / "drawn" / "2")
    registries.add_version(root, "2", seed=2, has_teacher=False)
    following = Following(root, shadow_share=1.0)
    following.metrics.set_model("teacher", name="drawn", version="1", digest="0", n_bytes=1)
    following.name("drawn/2")
    following.look()

    assert following.adopter.shadow is None
    assert following.in_use() == {"student": "2"}


def test_making_ready_leaves_the_interpreters_turns_as_they_were(following: Following) -> None:
    """The short turns end with the load, also where it fails."""
    before = sys.getswitchinterval()
    for champion in ("drawn/2", "drawn/3"):
        following.name(champion)
        following.look()

    assert sys.getswitchinterval() == before


def test_watcher_looks_when_woken(root: Path) -> None:
    """A long interval does not keep a promotion waiting that a signal tells of."""
    following = Following(root)
    watcher = Watcher(following.follower, poll_seconds=3_600.0)
    following.name("drawn/2")
    watcher.wake()
    assert following.adopter.has_taken.wait(30)
    watcher.close()

    assert following.adopter.taken == ["2"]
    assert not watcher._thread.is_alive()


def test_hangup_asks_for_a_look() -> None:
    """SIGHUP neither ends the service nor is lost."""

    class Asked:
        n = 0

        def reload(self) -> None:
            self.n += 1

    asked = Asked()
    with serve._on_signal(asked):  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGHUP)

    assert asked.n == 1


def judge(root: Path, version: str) -> Replacement:
    scorer = Scorer.load(root / "drawn" / version / registry.MODEL_FILE)
    return Replacement(scorer, policy(scorer.thresholds, None), None)


def make_loop(kafka: FakeKafka, first: Replacement) -> Loop:
    pipeline = Pipeline(
        accounts=Accounts(accounts_max=1_000, pairs_max=1_000),
        scorer=first.scorer,
        policy=first.policy,
        decoder=Decoder(chain_id=1, message_bytes_max=1_000_000),
    )
    loop = Loop(kafka, pipeline, Metrics(), Settings(batch_records_max=20), offsets={})
    kafka.on_empty = loop.stop
    return loop


def scores(kafka: FakeKafka) -> Iterator[tuple[int, str, float]]:
    """Yield offset, model's version and probability of each score, in order."""
    for topic, _, value, _ in kafka.written:
        if topic == "scores":
            score = msgspec.json.decode(value)
            yield score["source"]["offset"], score["model"]["version"], score["score"]


class Promoting(FakeKafka):
    """Hands a replacement to the loop while its first commit runs."""

    replacement: Replacement
    loop: Loop

    def commit(self, offsets: dict[int, int]) -> None:
        super().commit(offsets)
        if not self.replacement.adopted.is_set():
            self.loop.replace(self.replacement)


def test_loop_changes_the_model_between_two_batches(root: Path) -> None:
    """Each message is scored once, by one model: the first batch by the old one, the rest as if there was no other."""
    old, new = FakeKafka(VALUES), FakeKafka(VALUES)
    for kafka, version in ((old, "1"), (new, "2")):
        make_loop(kafka, judge(root, version)).run()
    kafka = Promoting(VALUES)
    kafka.replacement = judge(root, "2")
    kafka.loop = make_loop(kafka, judge(root, "1"))
    kafka.loop.run()

    assert list(scores(kafka)) == [*list(scores(old))[:20], *list(scores(new))[20:]]
    assert kafka.replacement.adopted.is_set()


def test_batch_that_is_sent_again_keeps_its_scores(root: Path) -> None:
    """What failed to commit before the change is sent as it was scored."""
    kafka = Promoting(VALUES)
    kafka.faults["wait"] = [OutageError("away")]
    kafka.replacement = judge(root, "2")
    kafka.loop = make_loop(kafka, judge(root, "1"))
    kafka.loop.run()

    assert [(offset, version) for offset, version, _ in scores(kafka)] == [
        (offset, "1" if offset < 20 else "2") for offset in range(len(VALUES))
    ]


def test_idle_loop_changes_the_model_too(root: Path) -> None:
    """No message is needed for it."""
    kafka = FakeKafka()
    loop = make_loop(kafka, judge(root, "1"))
    replacement = judge(root, "2")
    loop.replace(replacement)

    loop.run()

    assert replacement.adopted.is_set()
