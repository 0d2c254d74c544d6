"""The model card's figures: from the card's numbers alone to SVG, the same bytes every time.

Colours are Okabe and Ito's, which colour-blind readers tell apart; no figure needs colour to be read, as lines carry
their names and markers differ. Text stays text, for readers that speak it. matplotlib comes with the extra `card`.
"""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from features.errors import UsageError
from models import calibration
from models.intervals import Estimate

if TYPE_CHECKING:
    from models.card import Card

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX"

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "falconet",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 12.0,
    "axes.titlesize": 13.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 12.0,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "legend.fontsize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "lines.linewidth": 2.0,
    "figure.constrained_layout.use": True,
}


ROWS_MIN = 100
"""Rows of a kind of account below which its rate is no finding."""


class Figure(NamedTuple):
    """A figure that can be drawn."""

    name: str
    """Of its file."""
    title: str
    """What it shows, as a finding."""
    alt: str
    """For who cannot see it."""
    size: tuple[float, float]
    """Inches."""
    draw: Callable[[Any], None]
    """Draws on a matplotlib figure."""


def figures(card: "Card") -> list[Figure]:
    """Return the figures that the card has the numbers for, in its order."""
    found = [retention(card)]
    found += [] if card.frontier is None else [frontier(card)]
    found += [] if card.ablation is None else [ablation(card)]
    found += [] if card.comparison is None else [comparison(card)]
    served = card.evaluation.models[0]
    found += [reliability(card), precision_recall(card)]
    found += [decay(card)] if any(period.roc_auc is not None for period in served.decay) else []
    found += [background(card)] if served.years else []
    return [*found, kinds(card)]


def svg(figure: Figure) -> bytes:
    """Draw a figure.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise UsageError("figures need matplotlib: install the extra `card`") from error
    # The defaults first, so that nobody's matplotlibrc changes a byte.
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=figure.size)
        figure.draw(canvas)
        canvas.suptitle(figure.title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        stream = io.BytesIO()
        metadata = {"Date": None, "Creator": "falconet", "Title": figure.title, "Description": figure.alt}
        canvas.savefig(stream, format="svg", metadata=metadata)
    return stream.getvalue()


def _dots(axes: Any, places: Sequence[float], found: Sequence[Estimate], *, colour: str, marker: str) -> None:
    """Draw estimates as dots with their intervals, one below the other."""
    values = np.array([each.value for each in found])
    spread = np.array([[each.value - each.low for each in found], [each.high - each.value for each in found]])
    axes.errorbar(values, places, xerr=np.maximum(spread, 0), fmt=marker, color=colour, capsize=3, markersize=7)


def _logarithmic(axes: Any, steps: Sequence[int] = (1, 2, 5)) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    _plain(axes.xaxis)


def _plain(axis: Any) -> None:
    """Write numbers out: exponents would be smaller than 11 points."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}" if value == 0 or value >= 1e-5 else f"{value:.0e}")
    )
    axis.set_minor_formatter(NullFormatter())


def _rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def retention(card: "Card") -> Figure:
    """Return what the small model keeps, set by set, beside what it must keep."""
    rows = card.evaluation.retentions
    small, large = card.evaluation.models[:2]
    least = min(row.average_precision.value for row in rows)
    title = f"{small.n_bytes / 1024:.0f} KiB keep at least {least:.1%} of the large model's average precision"
    parts: list[tuple[str, list[Estimate | None], float]] = [
        ("ROC AUC", [row.roc_auc for row in rows], 0.99),
        ("average precision", [row.average_precision for row in rows], 0.99),
        ("recall @ 1 % FPR", [row.recall_at_1_percent for row in rows], 0.95),
    ]
    told = "; ".join(f"{row.test_set}: {row.roc_auc.value:.3f} and {row.average_precision.value:.3f}" for row in rows)

    def draw(canvas: Any) -> None:
        all_axes = canvas.subplots(1, 3, sharey=True)
        for axes, (name, found, limit), colour, marker in zip(all_axes, parts, COLOURS, MARKERS, strict=False):
            known = [(i, each) for i, each in enumerate(found) if each is not None]
            _dots(axes, [i for i, _ in known], [each for _, each in known], colour=colour, marker=marker)
            axes.axvline(limit, color=BLACK, linestyle="--", linewidth=1)
            axes.set_title(f"{name}\n(dashed: must keep {limit})", fontsize=12)
            axes.set_xlabel("small / large")
            axes.locator_params(axis="x", nbins=4)
        _rows(all_axes[0], [row.test_set for row in rows])

    alt = (
        f"Ratios of the small model's figures ({small.n_bytes:,} bytes) to the large one's ({large.n_bytes:,} bytes) "
        f"with 95 % intervals; ROC AUC and average precision on {told}."
    )
    return Figure("retention", title, alt, (11, 4), draw)


def frontier(card: "Card") -> Figure:
    """Return size and speed against quality of all small models that were tried."""
    assert card.frontier is not None
    points = card.frontier.points
    families = list(dict.fromkeys(point.family for point in points))
    best = max(points, key=lambda point: point.roc_auc_new)
    chosen = next((point for point in points if point.is_chosen), best)
    title = (
        f"{chosen.name}: {chosen.roc_auc_new:.3f} on new accounts in {chosen.bytes / 1024:.0f} KiB, "
        f"{chosen.us_per_row:.2f} µs a row"
    )

    def draw(canvas: Any) -> None:
        all_axes = canvas.subplots(1, 2, sharey=True)
        sides = (("bytes", "size (bytes)"), ("us_per_row", "time (µs a row, batches of 500)"))
        for axes, (field, label) in zip(all_axes, sides, strict=True):
            for family, colour, marker in zip(families, COLOURS * 3, MARKERS * 3, strict=False):
                mine = [point for point in points if point.family == family]
                places = [getattr(point, field) for point in mine]
                heights = [point.roc_auc_new for point in mine]
                axes.plot(places, heights, marker, color=colour, markersize=7, label=family)
            axes.plot(getattr(chosen, field), chosen.roc_auc_new, "o", color=BLACK, markersize=16, fillstyle="none")
            axes.annotate("chosen", (getattr(chosen, field), chosen.roc_auc_new), (8, -16), textcoords="offset points")
            _logarithmic(axes)
            axes.set_xlabel(label)
        all_axes[0].set_ylabel("ROC AUC, new accounts")
        all_axes[1].legend(title="family (marker)", loc="lower right")

    alt = (
        f"ROC AUC on new accounts of {card.frontier.period} against size and time for {len(points)} small models of "
        f"{len(families)} families: {', '.join(families)}. Chosen: {chosen.name}."
    )
    return Figure("frontier", title, alt, (11, 5), draw)


def ablation(card: "Card") -> Figure:
    """Return what each step on the way to the served model did."""
    assert card.ablation is not None
    steps = card.ablation.steps
    first, last = steps[0], steps[-1]
    title = (
        f"From {first.bytes / 1024:,.0f} to {last.bytes / 1024:,.0f} KiB, ROC AUC on new accounts goes from "
        f"{first.roc_auc_new.value:.3f} to {last.roc_auc_new.value:.3f}"
    )
    parts = [
        ("ROC AUC, all", [step.roc_auc for step in steps]),
        ("ROC AUC, new accounts", [step.roc_auc_new for step in steps]),
        ("recall @ 1 % FPR, all", [step.recall_at_1_percent for step in steps]),
    ]

    def draw(canvas: Any) -> None:
        all_axes = canvas.subplots(1, 3, sharey=True)
        for axes, (name, found), colour, marker in zip(all_axes, parts, COLOURS, MARKERS, strict=False):
            _dots(axes, range(len(steps)), found, colour=colour, marker=marker)
            axes.set_title(name, fontsize=12)
            axes.locator_params(axis="x", nbins=4)
        _rows(all_axes[0], [f"{step.step} ({step.bytes:,} B)" for step in steps])

    told = "; ".join(f"{step.step}, {step.bytes:,} bytes: {step.roc_auc_new.value:.3f}" for step in steps)
    return Figure(
        "ablation", title, f"ROC AUC on new accounts, {card.ablation.period}: {told}.", (12, 1.5 + len(steps) / 2), draw
    )


def comparison(card: "Card") -> Figure:
    """Return the time a row of every model and runtime."""
    assert card.comparison is not None
    rows = sorted(card.comparison.contestants, key=lambda row: row.batch_us)
    first, last = rows[0], rows[-1]
    times = last.batch_us / first.batch_us
    title = f"{first.model} by {first.runtime} is the fastest, {last.model} takes {times:,.0f} times as long"

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        places = range(len(rows))
        axes.plot([row.batch_us for row in rows], places, "o", color=BLUE, markersize=8, label="batches of 500")
        axes.plot(
            [row.single_us_p50 for row in rows], places, "D", color=VERMILLION, markersize=7, label="one row, median"
        )
        _logarithmic(axes, steps=(1,))
        axes.set_xlabel("µs a row")
        _rows(axes, [f"{row.model}, {row.runtime} ({row.bytes:,} B)" for row in rows])
        axes.legend(loc="lower left")

    told = "; ".join(f"{row.model} by {row.runtime} {row.batch_us:.3g} µs" for row in rows)
    return Figure("comparison", title, f"Time a row in batches of 500: {told}.", (11, 2 + len(rows) / 2.6), draw)


def reliability(card: "Card") -> Figure:
    """Return observed against predicted shares of phishing, at the prior."""
    found = card.evaluation.models[0].reliability
    prior = found[0].prior
    errors = ", ".join(f"{each.error / prior:.0%} on {each.period}" for each in found)
    title = f"Mean calibration error in parts of the prior, {prior:g}: {errors}"

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        ends = [min(b.predicted for each in found for b in each.bins), max(b.predicted for e in found for b in e.bins)]
        axes.plot(ends, ends, color=BLACK, linestyle="--", linewidth=1)
        axes.annotate("perfect", (ends[1], ends[1]), (-60, 4), textcoords="offset points")
        for each, colour, marker, line in zip(found, COLOURS, MARKERS, ("-", ":"), strict=False):
            bins = [b for b in each.bins if b.observed.value > 0 and b.predicted > 0]
            x, y = [b.predicted for b in bins], np.array([b.observed.value for b in bins])
            low = np.array([max(b.observed.low, 1e-9) for b in bins])
            high = np.array([b.observed.high for b in bins])
            spread = np.maximum([y - low, high - y], 0)
            axes.errorbar(x, y, yerr=spread, fmt=marker + line, color=colour, capsize=3, markersize=7)
            shown = (x[0], y[0]) if each is found[0] else (x[-1], y[-1])
            axes.annotate(each.period, shown, (10, -14), textcoords="offset points", color=colour)
        _logarithmic(axes, steps=(1,))
        axes.set_yscale("log")
        _plain(axes.yaxis)
        least = min(b.observed.value for each in found for b in each.bins if b.observed.value > 0)
        axes.set_ylim(bottom=least / 5)
        axes.set_xlabel("predicted probability of phishing")
        axes.set_ylabel("observed share, weighted to the prior")

    told = "; ".join(f"{each.period}: {len(each.bins)} bins, error {each.error:.2e}" for each in found)
    return Figure("reliability", title, f"Observed against predicted shares of phishing. {told}.", (10, 6), draw)


def precision_recall(card: "Card") -> Figure:
    """Return the precision-recall curves, as collected and at the priors of traffic."""
    models = card.evaluation.models[:2]
    curves = {curve.test_set: curve for curve in models[0].curves}
    name = "new accounts" if "new accounts" in curves else "all"
    own = curves[name]
    point = min(own.points, key=lambda point: abs(point.recall - 0.3))
    at = calibration.at_prior(point, calibration.PRIORS[0])
    title = f"At 30 % recall on {name}, precision is {point.precision:.2f} as collected and {at:.2f} at 1 in 1,000"

    def draw(canvas: Any) -> None:
        left, right = canvas.subplots(1, 2, sharey=True)
        for model, colour, line, place in zip(models, COLOURS, ("-", "--"), (34, 44), strict=False):
            points = next(curve for curve in model.curves if curve.test_set == name).points
            left.plot([p.recall for p in points], [p.precision for p in points], color=colour, linestyle=line)
            shown = points[place]
            label = f"{model.name}, {model.n_bytes:,} B"
            left.annotate(
                label,
                (shown.recall, shown.precision),
                (-170, -30 - place),
                textcoords="offset points",
                color=colour,
                arrowprops={"arrowstyle": "-", "color": colour},
            )
        left.set_title(f"as collected: {own.share_phishing:.0%} phishing", fontsize=12)
        for prior, colour, line in zip((0.01, 0.001), (GREEN, PURPLE), ("-", "--"), strict=True):
            found = [calibration.at_prior(p, prior) for p in own.points]
            right.plot([p.recall for p in own.points], found, color=colour, linestyle=line)
            right.annotate(f"1 in {1 / prior:,.0f}", (own.points[12].recall, found[12]), (6, 6),
                           textcoords="offset points", color=colour)  # fmt: skip
        right.set_title(f"{models[0].name}, were phishing as rare as…", fontsize=12)
        for axes in (left, right):
            axes.set_xlabel(f"recall on {name}")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
        left.set_ylabel("precision")

    alt = (
        f"Precision against recall on {name}. At recall {point.recall:.2f}: {point.precision:.3f} as collected, "
        f"{calibration.at_prior(point, 0.01):.3f} at 1 in 100 and {at:.3f} at 1 in 1,000."
    )
    return Figure("precision-recall", title, alt, (11, 5), draw)


def decay(card: "Card") -> Figure:
    """Return ROC AUC and average precision by weeks after the start of the test period."""
    models = card.evaluation.models[:2]
    known = [period for period in models[0].decay if period.roc_auc is not None]
    values = [period.roc_auc.value for period in known if period.roc_auc is not None]
    title = f"ROC AUC by four weeks lies between {min(values):.3f} and {max(values):.3f}"
    if len(values) >= 4:
        half = len(values) // 2
        title = (
            f"ROC AUC averages {np.mean(values[:half]):.3f} in the first half of the test period and "
            f"{np.mean(values[half:]):.3f} in the second"
        )

    def draw(canvas: Any) -> None:
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for i, (model, colour, line) in enumerate(zip(models, COLOURS, ("-", "--"), strict=False)):
            found = [(period.weeks_after + i * 0.4, period.roc_auc) for period in model.decay if period.roc_auc]
            x, y = [place for place, _ in found], np.array([each.value for _, each in found])
            spread = [[each.value - each.low for _, each in found], [each.high - each.value for _, each in found]]
            upper.errorbar(
                x, y, yerr=np.maximum(spread, 0), fmt=MARKERS[i] + line, color=colour, capsize=3, markersize=6
            )
            upper.annotate(model.name, (x[-1], y[-1]), (10, 10 - 24 * i), textcoords="offset points", color=colour)
        upper.set_ylabel("ROC AUC, all rows")
        periods = models[0].decay
        lower.bar([p.weeks_after for p in periods], [p.n_rows for p in periods], width=3, color=SKY)
        lower.bar([p.weeks_after for p in periods], [p.n_phishing for p in periods], width=3, color=BLUE)
        lower.set_ylabel("rows\n(dark: phishing)")
        lower.set_xlabel("weeks after the start of the test period (training ended 13 weeks before)")

    told = "; ".join(f"week {p.weeks_after}: {p.roc_auc.value:.3f}" for p in known if p.roc_auc is not None)
    return Figure("decay", title, f"ROC AUC of {models[0].name} by weeks: {told}.", (11, 6), draw)


def background(card: "Card") -> Figure:
    """Return the alert rate on whole blocks by year."""
    model = card.evaluation.models[0]
    years = model.years
    names = [name for name in (years[0].alerts if years else {}) if name != "block"]
    n_rows = sum(year.n_rows for year in years)
    at = next((operation for operation in model.operations if operation.recall == 0.5), None)
    rate = at.background.value if at is not None and at.background is not None else float("nan")
    title = f"At 50 % recall on new phishing, {rate:.2%} of {n_rows:,} unselected transactions are alerted"

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, (name, colour, marker) in enumerate(zip(names, COLOURS, MARKERS, strict=False)):
            found = [year.alerts[name] for year in years]
            x = np.arange(len(years)) + (i - (len(names) - 1) / 2) * 0.15
            y = np.array([each.value for each in found])
            spread = np.maximum([[e.value - e.low for e in found], [e.high - e.value for e in found]], 0)
            axes.errorbar(x, y, yerr=spread, fmt=marker, color=colour, capsize=3, markersize=7, label=name)
        axes.set_yscale("symlog", linthresh=1e-3)
        _plain(axes.yaxis)
        axes.set_ylim(bottom=0)
        axes.set_xticks(
            range(len(years)), [f"{year.year}\n{year.n_rows:,} rows\n{year.n_blocks} blocks" for year in years]
        )
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("share alerted (linear below 0.001)")
        canvas.legend(title="threshold", loc="outside lower center", ncols=len(names))

    told = "; ".join(
        f"{year.year}: " + ", ".join(f"{name} {year.alerts[name].value:.4f}" for name in names) for year in years
    )
    return Figure(
        "background", title, f"Share of whole blocks' transactions alerted, by year. {told}.", (11, 5.5), draw
    )


def kinds(card: "Card") -> Figure:
    """Return false alerts by kind of account."""
    model = card.evaluation.models[0]
    rows = [kind for kind in model.kinds if not kind.is_phishing]
    name = "50% recall" if rows and "50% recall" in rows[0].alerts else next(iter(rows[0].alerts))
    everything = next(kind for kind in rows if kind.kind == "all").alerts[name].value
    known = [kind for kind in rows if kind.n_rows >= ROWS_MIN] or rows
    worst = max(known, key=lambda kind: kind.alerts[name].value)
    title = (
        f"At {name}, {everything:.1%} of normal rows are alerted, of the kind “{worst.kind}” "
        f"{worst.alerts[name].value:.1%}"
    )

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        _dots(axes, range(len(rows)), [kind.alerts[name] for kind in rows], colour=BLUE, marker="o")
        axes.axvline(everything, color=BLACK, linestyle="--", linewidth=1)
        axes.set_xlabel(f"false-positive rate at the threshold of {name} (dashed: all)")
        _rows(axes, [f"{kind.kind} ({kind.n_rows:,} rows)" for kind in rows])

    told = "; ".join(f"{kind.kind} {kind.alerts[name].value:.4f}" for kind in rows)
    return Figure(
        "kinds", title, f"False-positive rate by kind of normal account: {told}.", (11, 1.5 + len(rows) / 2.4), draw
    )
