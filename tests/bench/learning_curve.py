"""What `bench_tune` writes: JSON, a page and a plot."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from models import plots, tables

PLOT = "bench-tune.svg"
WAYS = ("as it was", "fine-tuned", "from scratch")


class Point(Struct, frozen=True):
    """One way with some labelled accounts, drawn by one seed."""

    domain: str
    n_accounts: int
    """Asked for, half of them phishing."""
    n_phishing: int
    """Got."""
    seed: int
    way: str
    n_judged: int
    """Rows judged, of accounts without a label."""
    roc_auc: float
    average_precision: float
    recall_at_1_percent: float
    """Of false positives."""
    choice: str = ""
    """What cross-validation chose."""


class Curve(Struct, frozen=True):
    """A whole run."""

    machine: str
    commit: str
    made_at: str
    libraries: dict[str, str]
    points: list[Point]


def read(path: Path) -> Curve:
    """Read an earlier run."""
    return msgspec.json.decode(path.read_bytes(), type=Curve)


def write(curve: Curve, path: Path) -> None:
    """Write the JSON, and beside it the page and the plot."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(curve), indent=1) + b"\n")
    path.with_suffix(".md").write_text(markdown(curve), encoding="utf-8")
    (path.parent / PLOT).write_bytes(plots.svg(plot(curve)))


def markdown(curve: Curve) -> str:
    """Return the page."""
    n_seeds = len({point.seed for point in curve.points})
    drawn = plot(curve)
    lines = [
        "# The learning curve of fine-tuning",
        "",
        "Written by `python -m tests.bench.bench_tune`, not by hand.",
        f"Measured at {curve.made_at} on {curve.machine}, commit `{curve.commit[:12]}`.",
        f"Medians of {n_seeds} draws of the labelled accounts, in brackets the least and the largest.",
        "",
        "`real`: a model that learnt from source A's accounts before 2018-07, half of the phishing ones among them, "
        "meets source B's and the other half, and is judged on accounts without a label from 2018-07 to 2018-09.",
        "All phishing accounts of the data stem from one source, so that what is different there is whom they hide "
        "among: large holders of another collection.",
        "",
        "`simulated`: the packaged champion meets the simulator's exchange with its five kinds of fraud.",
        "They are drawn from their descriptions: it shows that a model moves, not what it would do at a real exchange.",
        "",
        "`from scratch` is trained on the labels alone, in the same format, its size chosen by the same "
        "cross-validation.",
        "",
        *_rows(curve),
        "",
        f"![{drawn.alt}]({PLOT})",
    ]
    return "\n".join(lines) + "\n"


def _rows(curve: Curve) -> list[str]:
    header = ("domain", "labelled accounts", "way", "ROC AUC", "average precision", "recall @ 1 % FPR",
              "ROC AUC above from scratch")  # fmt: skip
    rows = []
    for domain in _domains(curve):
        for size in _sizes(curve, domain):
            at = [point for point in curve.points if (point.domain, point.n_accounts) == (domain, size)]
            plain = {point.seed: point.roc_auc for point in at if point.way == "from scratch"}
            for way in WAYS:
                chosen = [point for point in at if point.way == way]
                better = sum(point.roc_auc > plain[point.seed] for point in chosen)
                n_got = size // 2 + chosen[0].n_phishing
                rows.append((
                    domain,
                    f"{n_got:,} ({chosen[0].n_phishing} phishing)",
                    way,
                    *(_spread([getattr(point, name) for point in chosen]) for name in
                      ("roc_auc", "average_precision", "recall_at_1_percent")),
                    "" if way == "from scratch" else f"in {better} of {len(chosen)} draws",
                ))  # fmt: skip
    return tables.table(header, rows)


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def _domains(curve: Curve) -> list[str]:
    return sorted({point.domain for point in curve.points})


def _sizes(curve: Curve, domain: str) -> list[int]:
    return sorted({point.n_accounts for point in curve.points if point.domain == domain})


def plot(curve: Curve) -> plots.Figure:
    """Return ROC AUC by the number of labelled accounts, each way a line with its spread."""
    domains = _domains(curve)
    found: dict[tuple[str, str], list[tuple[int, list[float]]]] = {}
    for domain in domains:
        for way in WAYS:
            found[domain, way] = [
                (size, [p.roc_auc for p in curve.points if (p.domain, p.n_accounts, p.way) == (domain, size, way)])
                for size in _sizes(curve, domain)
            ]
    told = "; ".join(
        f"{domain}, {way}: " + ", ".join(f"{np.median(values):.3f} at {size}" for size, values in line)
        for (domain, way), line in found.items()
    )

    def draw(canvas: Any) -> None:
        all_axes = np.atleast_1d(canvas.subplots(1, len(domains)))
        for axes, domain in zip(all_axes, domains, strict=True):
            ends: list[tuple[float, str, str]] = []
            for way, colour, marker in zip(WAYS, plots.COLOURS, plots.MARKERS, strict=False):
                line = found[domain, way]
                sizes, middles = [size for size, _ in line], [float(np.median(values)) for _, values in line]
                low, high = [min(values) for _, values in line], [max(values) for _, values in line]
                axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(sizes, middles, marker=marker, color=colour)
                ends.append((middles[-1], way, colour))
            # One above the other, in their order, however near the lines end.
            for rise, (end, way, colour) in zip((-14, -4, 6), sorted(ends), strict=False):
                axes.annotate(way, (sizes[-1], end), (8, rise), textcoords="offset points", color=colour)
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.minorticks_off()
            axes.margins(y=0.12)
            axes.set_xlim(sizes[0] * 0.8, sizes[-1] * 5)
            axes.set_title(domain)
            axes.set_xlabel("labelled accounts")
        all_axes[0].set_ylabel("ROC AUC, other accounts")

    title = "Fine-tuned against from scratch, by labelled accounts"
    return plots.Figure("bench-tune", title, f"ROC AUC on accounts without a label. {told}.", (11, 4.5), draw)
