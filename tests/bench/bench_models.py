"""Compare models and runtimes on the same rows in the same run: `python -m tests.bench.bench_models --data DIR`.

The packaged champion and its teacher, by our runtime and by others', beside scikit-learn's models and a general-purpose
encoder that are trained here on the rows that the teacher learnt from. Quality is by the data folder's protocol; what a
score costs is taken in alternating rounds, every contestant bound to one core but the one that shows what threads do.
"""

import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.accounts import Accounts
from models import dataset, energy, evaluate, learning, registry, report
from models.dataset import BACKGROUND, CUTS, Cuts, Records, Sample
from models.progress import progress
from models.scorer import Scorer
from tests.bench import command, comparison, contestants, encoder, families
from tests.bench.comparison import Comparison, Contestant, Quality, Spread, figure
from tests.bench.contestants import ENCODER, FOREST, REGRESSION, STUDENT, TEACHER
from tests.bench.lleaves_apart import Apart
from tests.bench.turns import BATCH, PAUSE_S, Round, one_core

SEED = 1
ROUNDS = 7
TIMED_ROWS = 2_000
SLOW_BATCH_US = 1_000
"""A row. Whoever takes longer, half a second a batch, has batches in every third round only."""

ENCODER_ROWS = 8_000
"""To fit the encoder's head to: at 5 to 10 ms a text, 277,518 would take most of an hour."""
JUDGED_ROWS, JUDGED_BACKGROUND = 5_000, 1_500
"""The encoder is judged on so many of the rows, drawn at random; the others also on these, for comparison."""

FUSED_RECORDS = 20_000
FUSED_BLOCK = 200


class Judged(NamedTuple):
    """The rows of the period that quality is judged on."""

    sample: Sample
    rows: NDArray[np.float32]
    cuts: Cuts


def main() -> int:
    """Run the comparison and return the exit code."""
    parser = command.parser(__doc__)
    command.add_model(parser)
    parser.add_argument("--period", choices=("test", "validation"), default="test", help="to judge quality on")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON to write; page and plots stand beside it")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--replicates", type=int, default=evaluate.N_REPLICATES, help="resamplings for the intervals")

    def work(options: command.Options) -> None:
        if "OMP_NUM_THREADS" in os.environ:
            parser.error("OMP_NUM_THREADS is set: what LightGBM does by default would not be seen")
        started = time.monotonic()
        result = run(options)
        print(f"\n{time.monotonic() - started:.0f} s")
        if options.output is not None:
            comparison.write(result, options.output)

    return command.run(parser, work)


def run(options: command.Options) -> Comparison:
    """Measure everything."""
    folder = options.model or registry.champion()
    with progress() as tell:
        records = dataset.read(options.data)
        sample = dataset.sample(records)
        rows = dataset.matrix(records, sample.position, report=tell)
        judged = _judged(sample, rows, options.period)
        tell("models to compare with", 0, 3)
        parts = learning.learning_parts(records, sample, rows, seed=SEED, report=lambda *_: None)
        learnt = (parts.rows, parts.is_phishing, parts.weight)
        forest = families.random_forest(*learnt)
        tell("models to compare with", 1, 3)
        regression = families.logistic_regression(*learnt)
        tell("models to compare with", 2, 3)
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer = encoder.tokenizer_text(Path(temporary))
        several = _fit_encoder(sample, rows, tokenizer)
        classifier = several._replace(encoder=encoder.Encoder(tokenizer))
        tell("models to compare with", 3, 3)
    loaded = contestants.Loaded.of(folder, _timed_rows(judged))
    rivals = contestants.Rivals(forest, regression, classifier)
    with tempfile.TemporaryDirectory() as temporary:
        everyone, versions, missing = contestants.all_contestants(loaded, rivals, Path(temporary), print)
        measured = _take_turns(everyone, options.rounds)
        for one in everyone:
            if isinstance(one.timed, Apart):
                one.timed.close()
    fused = _fused(loaded.scorer, records, options.rounds)
    quality = _quality(loaded, rivals._replace(encoder=several), judged, options.replicates)
    result = Comparison(
        machine=report.machine(),
        commit=report.commit(),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        data=records.digest,
        period=options.period,
        model=f"{loaded.artifact.header.name} {loaded.artifact.header.version}",
        digest=loaded.artifact.digest,
        versions=versions,
        rounds=options.rounds,
        watts_per_core=energy.WATTS_PER_CORE,
        figures=_claims(measured, fused),
        contestants=_with_quality(measured, quality),
        quality=quality,
        missing=missing,
        encoder_rows=ENCODER_ROWS,
    )
    print(comparison.markdown(result))
    return result


def _judged(sample: Sample, rows: NDArray[np.float32], period: str) -> Judged:
    """Return the rows of the test period and later background, or those of the validation period alone."""
    if period == "test":
        chosen = sample.time >= CUTS.validation_start
        return Judged(sample.take(chosen), rows[chosen], CUTS)
    chosen = (sample.time >= CUTS.validation_start) & (sample.time < CUTS.test_start)
    return Judged(sample.take(chosen), rows[chosen], Cuts(CUTS.validation_start, CUTS.validation_start))


def _timed_rows(judged: Judged) -> NDArray[np.float32]:
    """Return rows as they come, in a drawn order: labelled and background ones."""
    order = np.random.default_rng(SEED).permutation(len(judged.rows))[:TIMED_ROWS]
    return np.ascontiguousarray(judged.rows[order])


def _fit_encoder(sample: Sample, rows: NDArray[np.float32], tokenizer: bytes) -> encoder.Classifier:
    """Fit the head to rows drawn by their training weight, the vectors made on all cores."""
    learnt = np.flatnonzero(sample.time < CUTS.validation_start)
    weight = learning.weights(sample.take(learnt))
    n = min(ENCODER_ROWS, len(learnt))
    chosen = np.random.default_rng(SEED).choice(learnt, n, replace=False, p=weight / weight.sum())
    threads = os.cpu_count() or 1
    return encoder.fit(rows[chosen], sample.is_phishing[chosen], encoder.Encoder(tokenizer, threads=threads))


def _take_turns(everyone: list[contestants.Contestant], rounds: int) -> list[Contestant]:
    """Time all contestants in alternating rounds."""
    sizes = []
    singles: list[list[Round]] = [[] for _ in everyone]
    batches: list[list[tuple[Round, float | None]]] = [[] for _ in everyone]
    for one in everyone:
        # The first call makes a library's threads, on all cores or on the one it is bound to.
        with one_core(one.is_alone):
            sizes.append(one.timed.size())
    for i in range(rounds):
        for one, (n_singles, n_batches), alone, together in zip(everyone, sizes, singles, batches, strict=True):
            time.sleep(PAUSE_S)
            is_slow = bool(together) and together[0][0].batch_us > SLOW_BATCH_US and i % 3
            with one_core(one.is_alone):
                alone.append(one.timed.round(n_singles, 0))
                if not is_slow:
                    meter = energy.Meter()
                    done = one.timed.round(0, n_batches)
                    spent = meter.read()
                    rapl = spent.joules / n_batches / BATCH * 1e6 if spent.source == "rapl" else None
                    together.append((done, rapl))
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
    return [_contestant(*each) for each in zip(everyone, singles, batches, strict=True)]


def _contestant(
    one: contestants.Contestant, alone: list[Round], together: list[tuple[Round, float | None]]
) -> Contestant:
    singles = np.concatenate([result.single_us for result in alone])
    batch, cpu = (Spread.of([result[i] for result, _ in together]) for i in (2, 3))
    rapl = [joules for _, joules in together if joules is not None]
    return Contestant(
        model=one.model,
        runtime=one.runtime,
        bytes=one.n_bytes,
        single_us_p50=float(np.median(singles)),
        single_us_p99=float(np.percentile(singles, 99)),
        batch_us=batch.value,
        cpu_s_per_million=cpu.value,
        joules_per_million=Spread.of(rapl).value if rapl else cpu.value * energy.WATTS_PER_CORE,
        joules_source="rapl" if rapl else "estimate",
        single_p50=Spread.of([float(np.median(result.single_us)) for result in alone]),
        single_p99=Spread.of([float(np.percentile(result.single_us, 99)) for result in alone]),
        n_singles=len(singles),
        batch=batch,
        batch_cpu=cpu,
        single_cpu=Spread.of([result.single_cpu_us for result in alone]),
        difference=one.difference,
    )


def _fused(scorer: Scorer, records: Records, rounds: int) -> dict[str, list[float]]:
    """Return medians of the time a single transaction takes by features alone and by features and model in one call.

    Two tables see the same transactions; blocks of calls alternate.
    """
    packed = np.ascontiguousarray(records.packed[: 2 * FUSED_RECORDS])
    tables = [Accounts(accounts_max=200_000, pairs_max=400_000) for _ in range(2)]
    for table in tables:
        table.score_rows(packed[:FUSED_RECORDS])
    one_by_one = [packed[i : i + 1] for i in range(FUSED_RECORDS, 2 * FUSED_RECORDS)]
    calls = {
        "features alone": tables[0].score_rows,
        "features and model": lambda record: scorer.score(tables[1], record),
    }
    n = len(one_by_one) // rounds // FUSED_BLOCK * FUSED_BLOCK
    medians: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.perf_counter_ns
    with one_core():
        for i in range(rounds):
            spent: dict[str, list[int]] = {name: [] for name in calls}
            for start in range(i * n, (i + 1) * n, FUSED_BLOCK):
                for name, call in calls.items():
                    for record in one_by_one[start : start + FUSED_BLOCK]:
                        started = clock()
                        call(record)
                        spent[name].append(clock() - started)
            for name, values in spent.items():
                medians[name].append(float(np.median(values)) / 1e3)
    return medians


def _claims(measured: list[Contestant], fused: dict[str, list[float]]) -> list:  # type: ignore[type-arg]
    """Return the figures that must reach something."""
    ours = next(one for one in measured if (one.model, one.runtime) == (STUDENT, comparison.OWN))
    teachers = [one for one in measured if one.model == TEACHER]
    best = min(min(one.single_p50.value, one.batch.value) for one in teachers)
    rivals = [one for one in measured if one.model == STUDENT and one is not ours]
    batch = [ours.batch.value, ours.batch.low, ours.batch.high]
    added = [both - alone for both, alone in zip(fused["features and model"], fused["features alone"], strict=True)]
    return [
        figure(
            "the small model, batches of 500", [ours.batch.value, ours.batch.low, ours.batch.high], "µs/row", "≤ 0.15"
        ),
        figure("what the model adds to a single transaction, one call with the features", added, "µs", "≤ 1"),
        figure("features of a single transaction, without the model", fused["features alone"], "µs"),
        figure("the large model's best LightGBM call", [best], "µs/row"),
        figure(
            "the large model's best LightGBM call / the small model in a batch",
            [best / value for value in batch],
            "times",
            "≥ 100",
        ),
        figure(
            "the large model's fastest single call / what the small model adds to a single transaction",
            [min(one.single_p50.value for one in teachers) / max(value, 1e-3) for value in added],
            "times",
        ),
        figure("the small model's next best runtime in batches", [min(one.batch.value for one in rivals)], "µs/row"),
    ]


def _quality(loaded: contestants.Loaded, rivals: contestants.Rivals, judged: Judged, replicates: int) -> list[Quality]:
    """Judge every model by the protocol, the encoder on drawn rows and the small model on those as well."""
    sample, rows, cuts = judged
    trained = rows[:, learning.trained_columns()]
    scores = {
        STUDENT: loaded.scorer.margins(rows),
        TEACHER: loaded.teacher.margins(rows),
        FOREST: families.margins(rivals.forest, trained),
        REGRESSION: families.margins(rivals.regression, trained),
    }
    found = [
        Quality(model, "all", *evaluate.evaluate(sample, margins, seed=SEED, n_replicates=replicates, cuts=cuts))
        for model, margins in scores.items()
    ]
    drawn = _draw(sample, cuts)
    part, drawn_rows = sample.take(drawn), rows[drawn]
    for model, margins in {ENCODER: rivals.encoder.margins(drawn_rows), STUDENT: scores[STUDENT][drawn]}.items():
        tables = evaluate.evaluate(part, margins, seed=SEED, n_replicates=replicates, cuts=cuts)
        found.append(Quality(model, "drawn", *tables))
    return found


def _draw(sample: Sample, cuts: Cuts) -> NDArray[np.int64]:
    """Return positions of drawn labelled and background rows, ascending."""
    random = np.random.default_rng(SEED)
    is_background = sample.account == BACKGROUND
    kinds = (np.flatnonzero(~is_background & (sample.time >= cuts.test_start)), np.flatnonzero(is_background))
    limits = (JUDGED_ROWS, JUDGED_BACKGROUND)
    return np.sort(np.concatenate([random.permutation(kind)[:n] for kind, n in zip(kinds, limits, strict=True)]))


def _with_quality(measured: list[Contestant], quality: list[Quality]) -> list[Contestant]:
    """Put each model's ROC AUC into the first of its lines."""
    by_model = {one.model: one for one in reversed(quality)}
    seen: set[str] = set()
    found = []
    for one in measured:
        if one.model not in seen:
            sets = {row.test_set: row.roc_auc for row in by_model[one.model].rankings}
            found.append(msgspec.structs.replace(one, roc_auc=sets["all"], roc_auc_new=sets.get("new accounts")))
        else:
            found.append(one)
        seen.add(one.model)
    return found


if __name__ == "__main__":
    sys.exit(main())
