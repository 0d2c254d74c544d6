"""Hot reload: a promoted model takes over between two batches, and the stream neither stops nor waits for it.

A thread looks at the registry's `champion`. What is new there it reads, verifies, lays out and tries beside the running
loop, and hands over whole; the loop takes it by assignments when it is done with a batch. What cannot be served is
refused with a line in the log, and the model that serves goes on.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from features.errors import ArtifactError, InputError, UsageError
from features.screening import Screening
from models import registry
from models.drift import Drift
from models.scorer import Scorer
from service import check, drift, shadow, trust
from service.metrics import Metrics
from service.policy import Policy, policy
from service.settings import Settings
from service.shadow import Shadow

WAIT_SECONDS = 0.5
"""Between two looks at the end while a large model is read, or the loop has a batch at hand."""

TURN_SECONDS = 0.0002
"""How long this thread may keep the interpreter while it makes a model ready. Python's 5 ms would hold up the loop and
each of the client's threads by as much, again and again for a quarter of a second."""

log = logging.getLogger("falconet.reload")


class Replacement:
    """A model ready to score, on its way to the loop."""

    def __init__(self, scorer: Scorer, policy: Policy, shadow: Shadow | None, drift: Drift | None = None) -> None:
        self.scorer = scorer
        self.policy = policy
        self.shadow = shadow
        """The large one of the model; the loop leaves the one it had in its place."""
        self.drift = drift
        """The window that traffic is compared in with the model's reference."""

        self.adopted = threading.Event()


class Adopter(Protocol):
    """What takes a replacement: the loop."""

    def replace(self, replacement: Replacement) -> None:
        """Take it before the next batch, and then set `adopted`."""


class Follower:
    """Follows the registry's champion, one look at a time."""

    def __init__(
        self, settings: Settings, lists: Screening | None, metrics: Metrics, *, digest: str, adopter: Adopter
    ) -> None:
        """Follow from the model in use on.

        Args:
            settings: The registry, and what a model is tried with.
            lists: The policy's.
            metrics: Where reloads are counted and the model in use is shown.
            digest: Of the model in use.
            adopter: Takes what is ready.
        """
        self._settings = settings
        self._lists = lists
        self._metrics = metrics
        self._root = registry.root_folder(settings.registry_dir)
        self._digest = digest
        self._adopter = adopter
        self._seen: object = None
        """What was looked at last, so that a refusal is told once."""

        self.is_closed = threading.Event()
        """Set to end the waiting for the loop."""

    def look(self, *, is_asked: bool = False) -> None:
        """Have the champion adopted if it is another than at the last look, or was repaired since.

        Args:
            is_asked: Look again at what was refused before, too.
        """
        seen = _signature(self._root)
        if seen == self._seen and not is_asked:
            return
        self._seen = seen
        started_s = time.perf_counter()
        try:
            with _short_turns():
                replacement = self._load()
        except (InputError, UsageError) as error:
            log.error("reload refused, the model in use stays: %s", error)
            self._metrics.model_reloads_total["refused"].inc()
            return
        if replacement is not None:
            self._hand_over(replacement, started_s)

    def _load(self) -> Replacement | None:
        """Return the champion ready to score, None where it is the model in use.

        Raises:
            InputError: It cannot be served.
        """
        folder = registry.champion(self._root)
        manifest = registry.verify_version(self._root, folder, trust.keys(self._settings))
        if manifest.digest == self._digest:
            return None
        path = folder / registry.MODEL_FILE
        scorer = Scorer.load(path)
        if scorer.model.digest != manifest.digest:
            raise ArtifactError(f"{path}: was changed while it was read")
        check.warm(self._settings, scorer, self._lists)
        shadowed = shadow.start(path, scorer.model, self._metrics, share=self._settings.shadow_share)
        # Reading the large one takes the most of it, which belongs into the short turns too.
        while shadowed is not None and not shadowed.is_loaded.wait(WAIT_SECONDS) and not self.is_closed.is_set():
            pass
        watched = drift.start(path, scorer, n_rows=self._settings.drift_rows)
        return Replacement(scorer, policy(scorer.thresholds, self._lists), shadowed, watched)

    def _hand_over(self, replacement: Replacement, started_s: float) -> None:
        ready_s = time.perf_counter()
        has_shadow = replacement.shadow is not None
        self._adopter.replace(replacement)
        is_adopted = False
        while not is_adopted and not self.is_closed.is_set():
            is_adopted = replacement.adopted.wait(WAIT_SECONDS)
        # The one the loop gave back; where the loop has ended, the one it did not take.
        if replacement.shadow is not None:
            replacement.shadow.close()
        if not is_adopted:
            return
        model = replacement.scorer.model
        self._digest = model.digest
        self._metrics.set_model("student", **model._asdict())
        if not has_shadow:
            self._metrics.drop_model("teacher")
        self._metrics.model_reloads_total["loaded"].inc()
        log.info(
            "model reloaded name=%s version=%s digest=%s ready_in_s=%.2f",
            model.name,
            model.version,
            model.digest,
            ready_s - started_s,
        )


class Watcher:
    """A thread that looks for another champion now and then, and when woken."""

    def __init__(self, follower: Follower, *, poll_seconds: float) -> None:
        self._follower = follower
        self._poll_seconds = poll_seconds
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have it look at once, and again at what was refused before; safe in a signal handler."""
        self._wake.set()

    def close(self) -> None:
        """Let the thread end after the look at hand."""
        self._follower.is_closed.set()
        self._wake.set()
        self._thread.join(1)

    def _run(self) -> None:
        is_asked = False
        while not self._follower.is_closed.is_set():
            self._follower.look(is_asked=is_asked)
            is_asked = self._wake.wait(self._poll_seconds)
            self._wake.clear()


def _signature(root: Path) -> object:
    """Return what changes when the champion is another one, or when a file of its folder does."""
    try:
        name = registry.champion_id(root)
        facts = [] if name is None else [(path.name, path.lstat()) for path in (root / name).iterdir()]
    except (InputError, OSError) as error:
        return str(error)
    return name, sorted((file, fact.st_size, fact.st_mtime_ns) for file, fact in facts)


@contextmanager
def _short_turns() -> Iterator[None]:
    """Have threads take turns at the interpreter often while the block runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
