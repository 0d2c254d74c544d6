"""Time the served model against its teacher on the same rows, taking turns: `python -m tests.bench.bench_scorer`.

Prints the machine, the commit and the model; the time a row of each way of calling, least, median and 99th percentile;
what the model adds to a single transaction; and how many times faster than the teacher's best call it is. Everything
runs on one core and one thread. Rows are drawn around the model's own thresholds, so that both ways through every split
are taken.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.accounts import Accounts
from features.transaction import pack, records
from models import compact, registry, report
from models.scorer import Scorer
from service import simulator
from service.bench import one_core
from service.codec import Decoder
from tests.bench.lightgbm_fast import FastCall
from tests.boosters import trained, write_model

ROUNDS = 200
BATCH = 500
TRANSACTIONS = 5_000
SIZES = (80, 100, 150)
"""Trees of 16 leaves of the drawn models."""

BATCH_US, ADDED_US, TIMES = 0.15, 1.0, 100
"""What must be reached: a row of a batch, what a single transaction takes longer, and the teacher's best by ours."""

Call = Callable[[], object]


def drawn_rows(artifact: compact.Artifact, n: int) -> NDArray[np.float32]:
    """Return rows whose values lie among the thresholds of their features, one in twenty unknown."""
    rng = np.random.default_rng(1)
    rows = (10.0 ** rng.uniform(-3, 9, size=(n, schema.N_FEATURES))).astype(np.float32)
    for i, name in enumerate(artifact.header.features):
        edges = compact.edge(artifact.trees.threshold[artifact.trees.feature == i])
        rows[:, schema.index(name)] = rng.choice(edges, size=n) * (1 + rng.normal(size=n) / 10)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    return rows


def take_turns(calls: dict[str, Call], rounds: int = ROUNDS) -> dict[str, NDArray[np.float64]]:
    """Return each call's microseconds, the calls alternating so that all meet the same disturbances."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started_s = time.perf_counter()
            call()
            spent[name].append(1e6 * (time.perf_counter() - started_s))
    return {name: np.array(each) for name, each in spent.items()}


def line(name: str, spent_us: NDArray[np.float64], must: str = "") -> None:
    """Print least, median and 99th percentile."""
    figures = [spent_us.min(), *np.percentile(spent_us, (50, 99))]
    print(f"{name:44s}" + "".join(f"{figure:11.3f}" for figure in figures) + f"  {must}".rstrip())


def show(title: str, scorer: Scorer, rows: NDArray[np.float32]) -> float:
    """Print a model's times and return the median time of a row in a batch."""
    header = scorer.header
    print(
        f"\n{title}: {header.n_trees} trees, {header.n_splits} splits, {len(header.features)} features, "
        f"{scorer.model.n_bytes:,} bytes"
    )
    print(f"{'µs':44s}{'least':>11s}{'median':>11s}{'p99':>11s}")
    found = take_turns({"batch": lambda: scorer.margins(rows), "row": lambda: scorer.margins(rows[:1])})
    line(f"margins, batch of {len(rows)}, a row", found["batch"] / len(rows), f"must: <= {BATCH_US}")
    line("margins, one row", found["row"])
    line("reasons, one row", take_turns({"": lambda: scorer.reasons(rows[0], 3)})[""])
    _show_transactions(scorer)
    return float(np.median(found["batch"]) / len(rows))


def _show_transactions(scorer: Scorer) -> None:
    """Time single transactions with and without the model, each past of its own, in turns."""
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    packed = records([pack(decoder.decode(message)) for message in simulator.messages(1, TRANSACTIONS)])
    with_model, without = (Accounts(accounts_max=100_000, pairs_max=200_000) for _ in range(2))
    clock = time.perf_counter
    spent_us = np.empty((len(packed), 2))
    for i in range(len(packed)):
        one = packed[i : i + 1]
        started_s = clock()
        without.score_rows(one)
        between_s = clock()
        scorer.score(with_model, one)
        spent_us[i] = 1e6 * (between_s - started_s), 1e6 * (clock() - between_s)
    settled = spent_us[100:]
    line("one transaction: features", settled[:, 0])
    line("one transaction: features and model", settled[:, 1])
    added = np.median(settled[:, 1]) - np.median(settled[:, 0])
    print(f"{'one transaction: added by the model, median':44s}{added:22.3f}  must: <= {ADDED_US:g}")


def compare(scorer: Scorer, teacher: registry.Teacher, rows: NDArray[np.float32]) -> None:
    """Print the teacher's ways of being called, and how the best of them compares with a row of our batch."""
    columns = [schema.index(name) for name in teacher.booster.feature_name()]
    asked = np.ascontiguousarray(rows[:, columns].astype(np.float64))
    fast = FastCall(teacher.booster)
    booster = teacher.booster
    calls: dict[str, tuple[Call, int]] = {
        "C API, single row fast": (lambda: fast(asked[0]), 1),
        "Booster.predict, one row": (lambda: booster.predict(asked[:1], raw_score=True, num_threads=1), 1),
        f"Booster.predict, batch of {BATCH}, a row": (
            lambda: booster.predict(asked, raw_score=True, num_threads=1),
            len(asked),
        ),
    }
    # As many calls as take some milliseconds: alone after the teacher, half of a call would be waiting for the rows
    # that the teacher's 5 MB drove out of the cache.
    ours_calls = 100
    ours: Call = lambda: [scorer.margins(rows) for _ in range(ours_calls)]  # noqa: E731 - beside the others
    found = take_turns({name: call for name, (call, _) in calls.items()} | {"ours": ours}, rounds=ROUNDS // 4)
    ours_us = found["ours"] / (ours_calls * len(rows))
    print(f"\nteacher: {booster.num_trees()} trees, {teacher.n_bytes:,} bytes")
    print(f"{'µs':44s}{'least':>11s}{'median':>11s}{'p99':>11s}")
    medians = {}
    for name, (_, n) in calls.items():
        line(name, found[name] / n)
        medians[name] = float(np.median(found[name])) / n
    best = min(medians, key=medians.__getitem__)
    line(f"ours, batch of {len(rows)}, a row", ours_us)
    print(f"teacher's best ({best}) / ours: {medians[best] / np.median(ours_us):,.0f} times  must: >= {TIMES}")
    fast.close()


def main(folder: Path) -> None:
    """Time drawn models of several sizes and the packaged champion."""
    print(f"machine {report.machine()}\ncommit  {report.commit()}\nrounds  {ROUNDS}, {report.libraries()}")
    for n_trees in SIZES:
        path = folder / f"{n_trees}.falconet"
        write_model(path, trained(n_trees=n_trees))
        artifact = compact.read(path)
        show("drawn model", Scorer(artifact), drawn_rows(artifact, BATCH))
    champion = registry.champion()
    artifact = compact.read(champion / registry.MODEL_FILE)
    scorer, rows = Scorer(artifact), drawn_rows(artifact, BATCH)
    show("champion", scorer, rows)
    compare(scorer, registry.Teacher.load(champion), rows)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary, one_core():
        main(Path(temporary))
    sys.exit(0)
