"""What `bench_models` writes: JSON, a page, and two plots; the numbers stand in the first, the others show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from models import measured, plots, tables
from models.evaluate import Operation, Ranking
from service.bench import Figure, figure, plain

__all__ = ["Comparison", "Contestant", "Figure", "Quality", "Spread", "figure", "markdown", "write"]

OWN = "own runtime"
TIME_PLOT, QUALITY_PLOT = "bench-models-time.svg", "bench-models-quality.svg"


class Spread(Struct, frozen=True):
    """The median of the rounds, and the smallest and the largest of them."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Spread":
        """Sum up some rounds."""
        return cls(float(np.median(rounds)), float(min(rounds)), float(max(rounds)))


NOTHING = Spread(float("nan"), float("nan"), float("nan"))


class Contestant(measured.Contestant, frozen=True):
    """A model in a runtime, with the spread of the rounds."""

    single_p50: Spread = NOTHING
    single_p99: Spread = NOTHING
    n_singles: int = 0
    batch: Spread = NOTHING
    batch_cpu: Spread = NOTHING
    single_cpu: Spread = NOTHING
    """Processor seconds per million rows, one at a time, all threads."""
    difference: float | None = None
    """Largest difference of a margin from the model's reference on the timed rows; None where it is the reference."""


class Quality(Struct, frozen=True):
    """One model by the protocol."""

    model: str
    rows: str
    """`all` of the period, or `drawn`: those that the encoder was judged on."""
    rankings: list[Ranking]
    operations: list[Operation]


class Comparison(measured.Comparison, frozen=True, kw_only=True):
    """A whole run."""

    data: str
    """SHA-256 over the data."""
    period: str
    """`test` or `validation`: on which rows quality was judged."""
    model: str
    digest: str
    versions: dict[str, str]
    rounds: int
    watts_per_core: float
    figures: list[Figure]
    """What must reach something."""
    contestants: Sequence[Contestant]
    quality: list[Quality]
    missing: list[str]
    """What could not be measured, and why."""
    encoder_rows: int
    """Drawn training rows that the encoder's head was fitted to."""


def write(comparison: Comparison, path: Path) -> None:
    """Write the JSON, and beside it the page and the plots."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    path.with_suffix(".md").write_text(markdown(comparison), encoding="utf-8")
    for name, drawn in {TIME_PLOT: time_plot(comparison), QUALITY_PLOT: quality_plot(comparison)}.items():
        (path.parent / name).write_bytes(plots.svg(drawn))


def markdown(comparison: Comparison) -> str:
    """Return the page."""
    time_drawn, quality_drawn = time_plot(comparison), quality_plot(comparison)
    lines = [
        "# The small model against others",
        "",
        "Written by `make bench-models`, not by hand.",
        f"Measured at {comparison.made_at} on {comparison.machine}, commit `{comparison.commit[:12]}`, "
        f"model {comparison.model} (digest `{comparison.digest[:12]}…`), data `{comparison.data[:12]}…`.",
        "",
        *_figures(comparison),
        "",
        "## What a score costs",
        "",
        f"The same 2,000 rows, {comparison.rounds} alternating rounds in one process, every contestant "
        "bound to one core but the one that shows what threads do.",
        "In brackets the smallest and the largest round.",
        "Our runtime takes the whole feature row; the others get their columns chosen and converted beforehand, which "
        "the clock does not see.",
        "Reading the clock takes 0.05 µs of each single call.",
        f"Joules are read from RAPL where the machine shows it; `estimate` is processor seconds times "
        f"{comparison.watts_per_core:g} W of one busy core.",
        "Bytes are those of the model's file, text or compiled library; a runtime's own come on top.",
        "",
        *_costs(comparison),
        "",
        *(f"Not measured: {each}\n" for each in comparison.missing),
        f"![{time_drawn.alt}]({TIME_PLOT})",
        "",
        "## What a score is worth",
        "",
        *_quality(comparison),
        f"![{quality_drawn.alt}]({QUALITY_PLOT})",
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in comparison.versions.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _figures(comparison: Comparison) -> list[str]:
    rows = []
    for one in comparison.figures:
        spread = "" if one.low == one.high else f"{plain(one.low)} to {plain(one.high)}"
        rows.append((one.name, f"{plain(one.value)} {one.unit}", spread, one.target))
    return tables.table(("what", "measured", "spread", "must reach"), rows)


def _costs(comparison: Comparison) -> list[str]:
    header = (
        "model", "runtime", "bytes", "one row, p50 µs", "p99 µs", "batch of 500, µs a row",
        "CPU s a million, batches", "one at a time", "joules a million, batches", "margins differ by",
    )  # fmt: skip
    rows = []
    for one in comparison.contestants:
        rows.append((
            one.model,
            one.runtime,
            f"{one.bytes:,}",
            _spread(one.single_p50, one.single_us_p50),
            _spread(one.single_p99, one.single_us_p99),
            _spread(one.batch, one.batch_us),
            plain(one.cpu_s_per_million),
            plain(one.single_cpu.value),
            f"{plain(one.joules_per_million)} ({one.joules_source})",
            "" if one.difference is None else f"{one.difference:.1g}",
        ))  # fmt: skip
    return tables.table(header, rows, right=range(2, 10))


def _spread(spread: Spread, value: float) -> str:
    return f"{plain(value)} [{plain(spread.low)}, {plain(spread.high)}]"


def _quality(comparison: Comparison) -> list[str]:
    periods = {
        "test": "the test period, 2018-10-01 to 2019-10-08, which no model and no choice saw",
        "validation": "the validation period, 2018-07-01 to 2018-09-30, which choices were made on",
    }
    lines = [
        f"By the data's protocol on {periods[comparison.period]}; in brackets 95 % intervals over accounts.",
        "The forest and the regression learnt from the rows and weights that the large model learnt from.",
        "",
    ]
    drawn = next((quality for quality in comparison.quality if quality.rows == "drawn"), None)
    for rows in ("all", "drawn"):
        if rows == "drawn" and drawn is not None:
            n_rows = next(row.n_rows for row in drawn.rankings if row.test_set == "all")
            lines += [
                f"The encoder (all-MiniLM-L6-v2, 22.7 million parameters, int8) reads each row as a text in words. Its "
                f"head is a logistic regression fitted to {comparison.encoder_rows:,} training rows drawn by their "
                f"weights; it is judged on {n_rows:,} labelled rows drawn at random, and the small model beside it on "
                "the same.",
                "",
            ]
        chosen = [quality for quality in comparison.quality if quality.rows == rows]
        lines += [*_rankings(chosen), ""]
    return lines


def _rankings(chosen: Sequence[Quality]) -> list[str]:
    header = (
        "model",
        "test set",
        "rows",
        "ROC AUC",
        "average precision",
        "recall @ 1 % FPR",
        "background alerts at 50 % recall",
    )
    rows = []
    for quality in chosen:
        at_half = next((row.background for row in quality.operations if row.recall == 0.5), None)
        for row in quality.rankings:
            alerts = tables.estimate(at_half, 4) if row.test_set == "new accounts" else ""
            figures = (row.roc_auc, row.average_precision, row.recall_at_1_percent)
            rows.append((quality.model, row.test_set, f"{row.n_rows:,}", *map(tables.estimate, figures), alerts))
    return tables.table(header, rows, right=(2,))


def time_plot(comparison: Comparison) -> plots.Figure:
    """Return the times of all contestants, one row and batch."""
    rows = sorted(comparison.contestants, key=lambda one: -one.batch_us)
    ours = next(one for one in rows if one.runtime == OWN)
    told = "; ".join(
        f"{one.model}, {one.runtime}: {plain(one.single_us_p50)} and {plain(one.batch_us)}" for one in rows
    )

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, one in enumerate(rows):
            axes.plot([one.batch_us, one.single_us_p50], [i, i], color="#bbbbbb", linewidth=1.5, zorder=1)
        places = range(len(rows))
        axes.plot([one.batch_us for one in rows], places, "s", color=plots.BLUE, markersize=7)
        axes.plot([one.single_us_p50 for one in rows], places, "o", color=plots.VERMILLION, markersize=7)
        axes.set_xscale("log")
        axes.set_xlabel("µs a row")
        axes.set_yticks(list(places), [f"{one.model}, {one.runtime}" for one in rows])
        axes.set_ylim(-0.6, len(rows) + 0.4)
        axes.set_xlim(left=rows[-1].batch_us / 12)
        axes.grid(axis="y", visible=False)
        top = rows[-1]
        axes.annotate("batch of 500", (top.batch_us, len(rows) - 0.7), color=plots.BLUE, ha="right")
        axes.annotate("one row, p50", (top.single_us_p50, len(rows) - 0.7), color=plots.VERMILLION)

    title = f"The small model takes {plain(ours.batch_us)} µs a row in batches"
    alt = f"Microseconds a row, one row at a time (p50) and in batches of 500. {told}."
    return plots.Figure("bench-models-time", title, alt, (11, 1.5 + 0.42 * len(rows)), draw)


def quality_plot(comparison: Comparison) -> plots.Figure:
    """Return each model's ROC AUC on new accounts against the time of a row in its fastest runtime."""
    fastest: dict[str, Contestant] = {}
    for one in sorted(comparison.contestants, key=lambda one: one.batch_us):
        fastest.setdefault(one.model, one)
    found = []
    for quality in comparison.quality:
        if quality.rows == "drawn" and quality.model in {each[0] for each in found}:
            continue
        sets = {row.test_set: row.roc_auc for row in quality.rankings}
        found.append((quality.model, fastest[quality.model], sets.get("new accounts", sets["all"])))
    told = "; ".join(
        f"{model}: {roc.value:.3f} at {plain(one.batch_us)} µs, {one.bytes:,} bytes" for model, one, roc in found
    )

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for (model, one, roc), colour, marker in zip(found, plots.COLOURS, plots.MARKERS, strict=False):
            bounds = [[max(0.0, roc.value - roc.low)], [max(0.0, roc.high - roc.value)]]
            axes.errorbar(one.batch_us, roc.value, yerr=bounds, fmt=marker, color=colour, capsize=3, markersize=9)
            label = f"{model}, {plain(one.bytes / 1024)} KiB"
            axes.annotate(label, (one.batch_us, roc.value), xytext=(9, 7), textcoords="offset points", color=colour)
        axes.set_xscale("log")
        axes.set_xlim(right=max(one.batch_us for _, one, _ in found) * 400)
        axes.set_xlabel("µs a row in batches of 500, each model's fastest runtime")
        axes.set_ylabel("ROC AUC, new accounts")

    title = "Quality against cost, with each model's bytes"
    alt = f"ROC AUC on new accounts with 95 % intervals against microseconds a row. {told}."
    return plots.Figure("bench-models-quality", title, alt, (11, 5), draw)
