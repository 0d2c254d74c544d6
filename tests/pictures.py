"""The dashboards' panels as pictures, drawn from what Prometheus answers to their own queries.

    python -m tests.pictures --seconds 25 --output docs/figures

Starts Apache Kafka, Prometheus and the service, sends simulated traffic, and asks every query of the dashboards that
are checked in. The look is matplotlib's, the layout, queries, units, thresholds and names are the dashboards'.
"""

import argparse
import io
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from models.plots import COLOURS
from tests import servers, watching
from tests.watching import Query, Watched

COLUMN, ROW = 0.62, 0.36
"""Inches of one cell of Grafana's grid of 24 columns."""

STYLES = ("-", "--", ":")
SHARED = "5s"
"""What `$__rate_interval` stands for: readings come once a second."""

LEGEND_MAX = 9
"""Three lines: more would run into the panel below."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "falconet",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "legend.fontsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.2,
}


class Answer(NamedTuple):
    """One series of an answer, in seconds since the run began."""

    name: str
    labels: dict[str, str]
    at_s: np.ndarray
    values: np.ndarray


Ask = Callable[[Query], list[dict[str, Any]]]


def answers(panel: dict[str, Any], ask: Ask, started_s: float) -> list[Answer]:
    """Return the series of all queries of a panel, named by its legends."""
    found = []
    for target in panel["targets"]:
        query = Query(panel["title"], target["expr"], bool(target.get("instant")))
        for series in ask(query):
            name = target.get("legendFormat") or panel["title"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            pairs = np.array([(float(at), float(value)) for at, value in series["values"]])
            found.append(Answer(name, series["metric"], pairs[:, 0] - started_s, pairs[:, 1]))
    return found


def told(value: float, unit: str) -> str:
    """Return a value as Grafana tells it in a unit.

    >>> told(0.0000021, "s"), told(27816, "bytes"), told(0.031, "percentunit"), told(999.7, "cps")
    ('2.1 µs', '27.2 KiB', '3.1 %', '1 k/s')
    """
    if not math.isfinite(value):
        return "–"
    # Compared as it is told: 999.7 is a thousand.
    rounded = abs(float(f"{value:.3g}"))
    if unit == "s":
        for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if rounded >= size:
                return f"{value / size:.3g} {name}"
        return "0 s" if value == 0 else f"{value / 1e-9:.3g} ns"
    if unit == "bytes":
        for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if rounded >= size * 1000 / 1024:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    size, name = next(((s, n) for s, n in ((1e6, " M"), (1e3, " k")) if rounded >= s), (1.0, ""))
    text = f"{value / size:.3g}{name}"
    return f"{text}/s" if unit == "cps" else text


def draw(dashboard: dict[str, Any], ask: Ask, *, started_s: float, ended_s: float) -> bytes:
    """Return a dashboard as SVG: every panel in its place on the grid.

    Args:
        dashboard: As its JSON file says.
        ask: Answers a query as `Watched.series` does.
        started_s: Unix seconds at which the time axes begin.
        ended_s: Where they end.
    """
    height = max(panel["gridPos"].get("y", 0) + panel["gridPos"]["h"] for panel in dashboard["panels"])
    annotated = [
        (each["iconColor"], float(at) - started_s)
        for each in dashboard["annotations"].get("list", ())
        for series in ask(Query(each["name"], each["expr"], False))
        for at in _beginnings([float(at) for at, _ in series["values"]])
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(24 * COLUMN, height * ROW))
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            left, top = at.get("x", 0) / 24, 1 - at.get("y", 0) / height
            if panel["type"] == "row":
                figure.text(left + 0.005, top - 0.5 / height, panel["title"], weight="bold", size=11, va="center")
                continue
            low = 0.30 if panel["type"] == "timeseries" else 0.16
            box = (
                left + 0.045,
                top - at["h"] / height * (1 - low),
                at["w"] / 24 - 0.06,
                at["h"] / height * (1 - low - 0.14),
            )
            found = answers(panel, ask, started_s)
            KINDS[panel["type"]](figure, box, panel, found)
            axes = figure.axes[-1]
            if panel["type"] in {"timeseries", "heatmap"}:
                axes.set_xlim(0, ended_s - started_s)
                for colour, when_s in annotated:
                    axes.axvline(when_s, color=colour, linestyle="-.", linewidth=0.8)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _beginnings(at_s: Sequence[float]) -> list[float]:
    """Return the first of each run of neighbouring seconds: an annotation's expression holds for a minute."""
    return [at for i, at in enumerate(at_s) if i == 0 or at - at_s[i - 1] > 5]


def _lines(figure: Figure, box: tuple[float, ...], panel: dict[str, Any], found: list[Answer]) -> None:
    axes = figure.add_axes(box)  # type: ignore[call-overload]
    custom, unit = panel["fieldConfig"]["defaults"].get("custom", {}), _unit(panel)
    stacking = custom.get("stacking", {}).get("mode")
    colours = [(COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]) for i in range(len(found))]
    if stacking in {"normal", "percent"}:
        at_s = np.unique(np.concatenate([each.at_s for each in found]))
        layers = np.array([_on(each, at_s) for each in found])
        if stacking == "percent":
            layers, unit = layers / np.maximum(layers.sum(axis=0), 1e-12), "percentunit"
        axes.stackplot(at_s, layers, labels=[each.name for each in found], colors=[c for c, _ in colours], alpha=0.75)
    else:
        for each, (colour, style) in zip(found, colours, strict=True):
            axes.plot(each.at_s, each.values, label=each.name, color=colour, linestyle=style)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is not None and step["value"] <= top:
            axes.axhline(step["value"], color=step["color"], linestyle="--", linewidth=0.9)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.set_title(panel["title"])
    lines, names = axes.get_legend_handles_labels()
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.10), "ncols": 3}
    axes.legend(lines[:LEGEND_MAX], names[:LEGEND_MAX], frameon=False, handlelength=1.5, **place)


def _on(answer: Answer, at_s: np.ndarray) -> np.ndarray:
    """Return a series on a common axis, zero where it has nothing."""
    values = np.zeros(len(at_s))
    values[np.searchsorted(at_s, answer.at_s)] = np.nan_to_num(answer.values)
    return values


def _number(figure: Figure, box: tuple[float, ...], panel: dict[str, Any], found: list[Answer]) -> None:
    left, bottom, width, height = box
    axes = figure.add_axes((left - 0.035, bottom, width + 0.035, height))
    axes.set_axis_off()
    axes.set_title(panel["title"])
    known = found[0].values[np.isfinite(found[0].values)]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    colour = [step["color"] for step in steps if step["value"] is None or known[-1] >= step["value"]][-1]
    axes.text(0.0, 0.35, told(known[-1], _unit(panel)), size=20, color=colour, transform=axes.transAxes, va="center")


def _heat(figure: Figure, box: tuple[float, ...], panel: dict[str, Any], found: list[Answer]) -> None:
    axes = figure.add_axes(box)  # type: ignore[call-overload]
    found = sorted(found, key=lambda each: float(each.labels["le"].replace("+Inf", "inf")))
    at_s = np.unique(np.concatenate([each.at_s for each in found]))
    counts = np.diff(np.array([_on(each, at_s) for each in found]), axis=0, prepend=0.0)
    used = np.flatnonzero(counts.sum(axis=1) > 0)
    low, high = used[0], used[-1] + 1
    shown = np.ma.masked_less_equal(counts[low:high], 0.0)
    axes.imshow(
        np.sqrt(shown),
        aspect="auto",
        origin="lower",
        cmap="viridis",
        interpolation="nearest",
        extent=(at_s[0], at_s[-1], -0.5, high - low - 0.5),
    )
    axes.set_yticks(range(high - low), [_bound(each, panel) for each in found[low:high]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.grid(False)
    axes.set_title(f"{panel['title']} (upper bounds of the buckets; bright: many)")


def _bound(answer: Answer, panel: dict[str, Any]) -> str:
    le = answer.labels["le"]
    return "∞" if le == "+Inf" else told(float(le), _unit(panel))


def _table(figure: Figure, box: tuple[float, ...], panel: dict[str, Any], found: list[Answer]) -> None:
    axes = figure.add_axes(box)  # type: ignore[call-overload]
    axes.set_axis_off()
    axes.set_title(panel["title"])
    names = ["model", "name", "version", "digest"]
    cells = sorted([each.labels.get(name, "")[:12] for name in names] for each in found)
    drawn = axes.table(cellText=cells, colLabels=names, loc="upper left", edges="horizontal", cellLoc="left")
    drawn.scale(1.0, 1.4)


def _unit(panel: dict[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"]["unit"])


KINDS = {"timeseries": _lines, "stat": _number, "heatmap": _heat, "table": _table}


def write(watched: Watched, folder: Path) -> list[Path]:
    """Write each dashboard of panels as `watching-NAME.svg` and return the files."""

    def ask(query: Query) -> list[dict[str, Any]]:
        return watched.series(query, rate_interval=SHARED)

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, dashboard in watching.dashboards().items():
        if name == "runbooks":
            continue
        path = folder / f"watching-{name}.svg"
        path.write_bytes(draw(dashboard, ask, started_s=watched.started_s, ended_s=watched.ended_s))
        written.append(path)
    return written


def main() -> int:
    """Run, draw and name the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=25.0, help="how long traffic flows after the restart")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="falconet-watching-") as folder,
        servers.kafka() as address,
        watching.watched(address, Path(folder), seconds=options.seconds) as watched,
    ):
        for path in write(watched, options.output):
            print(f"{path} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
