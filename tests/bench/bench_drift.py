"""Time what watching for drift adds to a transaction: `python -m tests.bench.bench_drift`.

Prints the machine, the commit, and for batches of several sizes the least, median and 99th percentile of the time a
transaction, 24 features and the score, window full.
"""

import sys
import time

import numpy as np

from features import schema
from models import drift, report

ROUNDS = 20_000
BATCHES = (1, 10, 500, 2_000)
N_FEATURES = 24


def main() -> None:
    """Time the sampled counting, and counting of every row beside it."""
    print(f"machine {report.machine()}\ncommit  {report.commit()}\nrounds  {ROUNDS} transactions or more")
    rng = np.random.default_rng(1)
    rows = rng.lognormal(size=(max(BATCHES), schema.N_FEATURES)).astype(np.float32)
    probabilities = rng.random(max(BATCHES))
    names = [feature.name for feature in schema.FEATURES[:N_FEATURES]]
    compared = drift.reference(rows, probabilities, names, weight=np.ones(len(rows)), source="drawn")
    print(f"{'':34s}{'least':>10s}{'median':>10s}{'p99':>10s}{'mean':>10s}   us a transaction")
    for every in (drift.SAMPLE_EVERY, 1):
        for n in BATCHES:
            window = drift.Drift(compared, n_rows=10_000, every=every)
            for _ in range(1 + every * 10_000 // len(rows)):
                window.observe(rows, probabilities)
            batch, scores = rows[:n], probabilities[:n]
            spent = []
            for _ in range(max(200, ROUNDS // n)):
                started_s = time.perf_counter()
                window.observe(batch, scores)
                spent.append(time.perf_counter() - started_s)
            seconds = np.array(spent)
            figures = [seconds.min(), *np.percentile(seconds, (50, 99)), seconds.mean()]
            print(f"{f'1 in {every}, batches of {n}':34s}" + "".join(f"{1e6 * figure / n:10.4f}" for figure in figures))


if __name__ == "__main__":
    main()
    sys.exit(0)
