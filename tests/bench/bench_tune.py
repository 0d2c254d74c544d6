"""The learning curve of fine-tuning: from a trained model against from scratch, at 50, 200 and 1,000 labelled accounts.

`python -m tests.bench.bench_tune --data DIR [--output FILE]`. Two domains, half of the labelled accounts phishing:

real: a model that learnt from source A's accounts before 2018-07 (half of the phishing ones) meets source B's, large
holders of another collection, and the other half of the phishing accounts; judged on 2018-07 to 2018-09.

simulated: the packaged champion meets the simulator's exchange with its five kinds of fraud; judged on the later part
of the stream, on other accounts. The frauds are drawn from their descriptions: it shows that a model moves, not how
well it would do at a real exchange.

From scratch: the same format from the labels alone, all trained columns to choose from, its size chosen by the same
cross-validation. No row of the test period is read.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from features import schema
from features.accounts import Accounts
from features.transaction import pack, records
from models import compact, dataset, distil, intervals, learning, registry, report, shrinkage
from models.compact import Artifact
from models.dataset import BACKGROUND, CUTS, Sample
from models.shrinkage import Forest, Labelled
from service import simulator
from service.codec import Decoder
from tests.bench import command, learning_curve
from tests.bench.learning_curve import Curve, Point

SIZES = (50, 200, 1_000)
SEEDS = (1, 2, 3, 4, 5)

TREES = {
    "objective": "binary", "max_bin": 63, "lambda_l2": 5.0, "feature_fraction": 0.5, "num_threads": 1, "verbose": -1,
    "deterministic": True, "force_row_wise": True, "max_depth": compact.DEPTH_MAX,
}  # fmt: skip
SCRATCH = (
    {"n_trees": 30, "learning_rate": 0.1, "num_leaves": 4, "min_data_in_leaf": 10},
    {"n_trees": 100, "learning_rate": 0.1, "num_leaves": 8, "min_data_in_leaf": 10},
    {"n_trees": 150, "learning_rate": 0.1, "num_leaves": 16, "min_data_in_leaf": 20},
)

SIMULATED_MESSAGES = 700_000
SIMULATED_LEARNT = 0.6
"""Share of the stream's time that labels come from; the rest is judged."""


class Domain(NamedTuple):
    """Where a model is to be moved to."""

    name: str
    artifact: Artifact
    """The model to start from."""
    labels: Labelled
    """What labelled accounts are drawn from."""
    judged: Labelled
    """Later rows; of accounts that were drawn none is judged."""


def main() -> int:
    """Run the curves and return the exit code."""
    parser = command.parser(__doc__)
    parser.add_argument("--domain", choices=("real", "simulated"), help="one of the two (default: both)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="draws of the labelled accounts")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON to write; what it has of other domains and seeds stays"
    )
    return command.run(parser, _run, reads_data=lambda options: options.domain != "simulated")


def _run(options: command.Options) -> None:
    points = learning_curve.read(options.output).points if options.output and options.output.exists() else []
    for name in ("real", "simulated") if options.domain is None else (options.domain,):
        make = simulated() if name == "simulated" else real(options.data)
        for seed in options.seeds:
            made = _points(make(seed), options.sizes, seed)
            points = [point for point in points if (point.domain, point.seed) != (name, seed)] + made
            if options.output is not None:
                learning_curve.write(_curve(points), options.output)
    print(learning_curve.markdown(_curve(points)))


def _curve(points: list[Point]) -> Curve:
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    points = sorted(points, key=lambda point: (point.domain, point.n_accounts, point.seed))
    return Curve(report.machine(), report.commit(), made_at, report.libraries(), points)


def _points(domain: Domain, sizes: Sequence[int], seed: int) -> list[Point]:
    points = []
    for n_accounts in sizes:
        started = time.monotonic()
        points += at(domain, n_accounts, seed)
        print(f"{domain.name}, seed {seed}, {n_accounts} accounts: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return points


def real(data: Path) -> Callable[[int], Domain]:
    """Return what makes the real domain of a seed."""
    read = dataset.read(data)
    sample = dataset.sample(read)
    sample = sample.take(sample.time < CUTS.test_start)
    rows = dataset.matrix(read, sample.position)
    is_early = sample.time < CUTS.validation_start
    phishing = np.unique(sample.account[sample.is_phishing])

    def make(seed: int) -> Domain:
        """Part the phishing accounts, train on one half and source A, and keep source B and the other half."""
        ours = np.random.default_rng(seed).permutation(phishing)[: len(phishing) // 2]
        is_ours = np.isin(sample.account, ours)
        is_base = is_early & np.where(sample.is_phishing, is_ours, sample.source == "A")
        is_there = np.where(sample.is_phishing, ~is_ours, sample.source == "B") & (sample.account != BACKGROUND)
        part = sample.take(is_base)
        base = Labelled(rows[is_base], part.is_phishing, part.account)
        artifact = _artifact(*_trained(base, learning.weights(part), distil.STUDENT))
        return Domain(
            "real",
            artifact,
            _labelled(sample, rows, is_there & is_early),
            _labelled(sample, rows, is_there & ~is_early),
        )

    return make


def _labelled(sample: Sample, rows: NDArray[np.float32], chosen: NDArray[np.bool_]) -> Labelled:
    return Labelled(rows[chosen], sample.is_phishing[chosen], sample.account[chosen])


def simulated() -> Callable[[int], Domain]:
    """Return what makes the simulated domain, the same stream for every seed, which draws the labelled accounts."""
    world = simulator.inhabited(1)
    messages: list[simulator.Simulated] = []
    while len(messages) < SIMULATED_MESSAGES:
        messages += world.next_block()
    decode = Decoder(chain_id=1, message_bytes_max=1 << 20).decode
    transactions = [decode(message.value) for message in messages]
    packed = records([pack(each) for each in transactions])
    rows, _ = Accounts(accounts_max=1_000_000, pairs_max=2_000_000).score_rows(packed)
    flagged = {each.address for each in world.flagged}
    ids: dict[str, int] = {}
    accounts, kinds = np.empty(len(messages), dtype=np.int64), np.empty(len(messages), dtype=np.bool_)
    for i, (message, each) in enumerate(zip(messages, transactions, strict=True)):
        sides = [side for side in (each.from_address, each.to_address) if side is not None]
        culprit = next((side for side in sides if side in flagged), None)
        # Victims' and mules' parts of a fraud carry no label; nobody would have them among the normal ones.
        is_unclear = culprit is None and message.kind is not None
        accounts[i] = -1 if is_unclear else ids.setdefault(culprit or sides[0], len(ids))
        kinds[i] = culprit is not None
    is_paying = (packed.view(np.float64)[:, 6] > 0) & ~np.isnan(rows[:, schema.index("amount")]) & (accounts >= 0)
    chosen = np.flatnonzero(is_paying)
    chosen = chosen[dataset.ranks(accounts[chosen]) < dataset.ACCOUNT_ROWS_MAX]
    time_of = packed[chosen, 7].astype(np.int64)
    is_early = time_of < time_of[0] + SIMULATED_LEARNT * (time_of[-1] - time_of[0])
    everything = Labelled(rows[chosen], kinds[chosen], accounts[chosen])
    artifact = compact.read(registry.champion() / registry.MODEL_FILE)
    early = everything.take(is_early)
    # Judged are accounts that begin later: of one that goes on, the labelled part would tell.
    late = everything.take(~is_early & ~np.isin(everything.account, np.unique(early.account)))
    return lambda _seed: Domain("simulated", artifact, early, late)


def at(domain: Domain, n_accounts: int, seed: int) -> list[Point]:
    """Return what each way reaches with so many labelled accounts, half of them phishing where there are as many."""
    random = np.random.default_rng((seed, n_accounts))
    labels = domain.labels
    drawn = [
        random.permutation(np.unique(labels.account[labels.is_phishing == kind]))[: n_accounts // 2]
        for kind in (True, False)
    ]
    chosen = labels.take(np.isin(labels.account, np.concatenate(drawn)))
    judged = domain.judged.take(~np.isin(domain.judged.account, chosen.account))
    tuned = shrinkage.fine_tune(domain.artifact, chosen, seed=seed)
    ways: dict[str, NDArray[np.float64]] = {
        "as it was": Forest.of(domain.artifact).margins(judged.rows),
        "fine-tuned": tuned.forest.margins(judged.rows),
        "from scratch": scratch(chosen, seed)(judged.rows),
    }
    weight = intervals.draw(judged.account, seed=(1,), n_replicates=1)
    points = []
    for way, margins in ways.items():
        roc_auc, average_precision, recall = intervals.ranking(judged.is_phishing, margins, weight)[0][:3]
        choice = "" if way != "fine-tuned" else f"spread {tuned.choice.spread:g}, {tuned.choice.n_extra} trees"
        if way == "fine-tuned" and tuned.choice.is_anew:
            choice = "anew"
        points.append(
            Point(
                domain.name, n_accounts, len(drawn[0]), seed, way, len(judged.account),
                float(roc_auc), float(average_precision), float(recall), choice,
            )
        )  # fmt: skip
    return points


def scratch(labelled: Labelled, seed: int) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Return a model of the labels alone, of the size that left-out accounts are best told apart by."""
    losses = []
    for settings in SCRATCH:
        margins = np.zeros(len(labelled.account))
        for fold in shrinkage.folds(labelled, seed):
            learnt = labelled.take(~fold)
            margins[fold] = _predict(*_trained(learnt, learnt.weights(), settings), labelled.rows[fold])
        sign = np.where(labelled.is_phishing, 1.0, -1.0)
        losses.append(np.average(np.logaddexp(0.0, -sign * margins), weights=labelled.weights()))
    booster, columns = _trained(labelled, labelled.weights(), SCRATCH[int(np.argmin(losses))])
    return lambda rows: _predict(booster, columns, rows)


def _trained(
    labelled: Labelled, weight: NDArray[np.float64], settings: Mapping[str, Any]
) -> tuple[lightgbm.Booster, NDArray[np.int64]]:
    """Train on quantised rows, first on all trained columns, then on those of the largest gain the format holds."""
    columns = learning.trained_columns()
    for _ in range(2):
        rows = compact.quantise(labelled.rows[:, columns])
        asked = TREES | {name: value for name, value in settings.items() if name != "n_trees"} | {"seed": 1}
        data = lightgbm.Dataset(rows, labelled.is_phishing, weight=weight, params=asked)
        booster = lightgbm.train(asked, data, int(settings["n_trees"]))
        gain = booster.feature_importance("gain")
        used = columns
        columns = columns[np.sort(np.argsort(-gain, kind="stable")[: compact.FEATURES_MAX])]
    return booster, used


def _predict(booster: lightgbm.Booster, columns: NDArray[np.int64], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(booster.predict(compact.quantise(rows[:, columns]), raw_score=True, num_threads=1))


def _artifact(booster: lightgbm.Booster, columns: NDArray[np.int64]) -> Artifact:
    """Return a booster as an artefact that was never written: calibration and thresholds play no part here."""
    trees, names, scale = compact.from_booster(booster, [schema.FEATURES[i].name for i in columns.tolist()])
    threshold = compact.Threshold(0.5, "unused")
    header = compact.Header(
        name="base", version="1", schema=schema.FINGERPRINT, features=names,
        calibration=compact.Calibration(1.0, 0.0, 0.001, "unused"),
        thresholds={"review": threshold, "block": threshold},
        training=compact.Training("", "", 1, 0, 0, {}, {}, {}),
        leaf_scale=scale, n_trees=len(trees.n_splits), n_splits=len(trees.feature),
    )  # fmt: skip
    n_bytes = sum(array.nbytes for array in trees) + 4_096
    return Artifact(header, trees, "", n_bytes)


if __name__ == "__main__":
    sys.exit(main())
