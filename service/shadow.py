"""The large model in shadow: it scores a sampled share beside the loop, for its latency to stand next to the student's.

It never decides anything, and never holds the loop up: its queue is bounded, and what does not fit is dropped and
counted.
"""

import gc
import logging
import queue
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.errors import ArtifactError
from models.registry import TEACHER_FILE, Teacher
from models.scorer import Model
from service.metrics import Metrics

QUEUE_ROWS_MAX = 256
"""0.1 s of the teacher's work at 0.4 ms a row; 80 KiB."""

_SEED = 20_261_101
"""Which transactions are sampled should not change from run to run."""

log = logging.getLogger("falconet.shadow")


class Shadow:
    """A thread with the teacher and a queue of rows for it."""

    def __init__(self, folder: Path, model: Model, metrics: Metrics, *, share: float) -> None:
        self._folder = folder
        self._model = model
        self._metrics = metrics
        self._share = share
        self._random = np.random.default_rng(_SEED)
        self._rows: queue.Queue[NDArray[np.float32] | None] = queue.Queue(QUEUE_ROWS_MAX)
        self._is_closed = threading.Event()
        self.is_loaded = threading.Event()
        """Set when the large model is read, or was found to be unreadable."""

        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, rows: NDArray[np.float32]) -> None:
        """Sample some of a batch's feature rows; costs 3 µs a batch and 1 µs a sampled row."""
        n_sampled = int(self._random.binomial(len(rows), self._share))
        if n_sampled == 0 or not self._thread.is_alive():
            return
        for i in self._random.choice(len(rows), n_sampled, replace=False).tolist():
            try:
                # A copy: a view would keep the whole batch's matrix in memory.
                self._rows.put_nowait(rows[i : i + 1].copy())
            except queue.Full:
                self._metrics.shadow_dropped_total.inc()

    def close(self) -> None:
        """Let the thread end after the row at hand."""
        self._is_closed.set()
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            return  # it is busy with rows, and looks at the event after each
        self._thread.join(1)

    def _run(self) -> None:
        try:
            teacher = Teacher.load(self._folder)
        except ArtifactError as error:
            log.error("shadow off: %s", error)
            return
        finally:
            self.is_loaded.set()
        if self._is_closed.is_set():
            return
        # What LightGBM brought stays for good: walked by the first full collection, it stopped the loop for 0.15 s.
        gc.freeze()
        model = self._model
        self._metrics.set_model(
            "teacher", name=model.name, version=model.version, digest=teacher.digest, n_bytes=teacher.n_bytes
        )
        seconds = self._metrics.inference_seconds["teacher"]
        while (row := self._rows.get()) is not None and not self._is_closed.is_set():
            started_s = time.perf_counter()
            teacher.margins(row)
            seconds.observe(time.perf_counter() - started_s)


def start(model_path: Path, model: Model, metrics: Metrics, *, share: float) -> Shadow | None:
    """Start the shadow where a share is wanted and a teacher lies beside the model."""
    if share == 0:
        return None
    folder = model_path.parent
    if not (folder / TEACHER_FILE).exists():
        log.warning("shadow off: %s has no %s", folder, TEACHER_FILE)
        return None
    return Shadow(folder, model, metrics, share=share)
