"""The model card's page: `card_template.md`, which people wrote, with what was measured in its slots."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from models import breakdown, plots, tables
from models.energy import WATTS_PER_CORE, Energy
from models.measured import ABLATION_FILE, COMPARISON_FILE, FRONTIER_FILE
from models.plots import Figure

if TYPE_CHECKING:
    from models.card import Card

Lines = list[str]

TEMPLATE = Path(__file__).parent / "card_template.md"
SLOT = re.compile(r"<!-- measured: (\w+) -->")


def page(card: "Card") -> str:
    """Return the card as Markdown."""
    drawn = {figure.name: figure for figure in plots.figures(card)} if card.has_figures else {}
    slots = {
        "title": [f"Model card: {card.header.name} {card.header.version}"],
        "intervals": [
            f"In brackets: 95 % intervals from {card.evaluation.n_replicates:,} resamplings of accounts; of blocks for "
            "background."
        ],
        "summary": _summary(card),
        "missing": _missing(card),
        "quality": _quality(card),
        "retention": [*_figure(drawn, "retention"), *tables.retentions(card.evaluation.retentions)],
        "frontier": _frontier(card, drawn),
        "ablation": _ablation(card, drawn),
        "comparison": _comparison(card, drawn),
        "calibration": _calibration(card, drawn),
        "precision": _precision(card, drawn),
        "decay": [*_figure(drawn, "decay"), *tables.decay(card.evaluation.models[0].decay)],
        "background": _background(card, drawn),
        "kinds": _kinds(card, drawn),
        "energy": _energy(card),
        "origin": _origin(card),
    }
    text = SLOT.sub(lambda match: "\n".join(slots[match[1]]).strip("\n"), TEMPLATE.read_text(encoding="utf-8"))
    # A slot that has nothing to say leaves its blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _figure(drawn: dict[str, Figure], name: str) -> Lines:
    if name not in drawn:
        return []
    figure = drawn[name]
    alt = figure.alt.replace("[", "(").replace("]", ")").replace("\n", " ")
    return [f"![{alt}](figures/{name}.svg)", "", f"*{figure.title}.*", ""]


def _summary(card: "Card") -> Lines:
    large = card.evaluation.models[1]
    header = card.header
    features = ", ".join(f"`{name}`" for name in header.features)
    rows = [
        ("model", f"`{header.name}` {header.version}, digest `{card.digest}`"),
        ("form", f"{header.n_trees} boosted trees, {header.n_splits:,} splits, {len(header.features)} features"),
        ("size", f"{card.n_bytes:,} bytes; its teacher {large.n_bytes:,}: {large.n_bytes / card.n_bytes:,.0f} times"),
        ("output", f"probability of phishing where {header.calibration.prior:g} of the transactions are"),
        *(
            (f"threshold `{name}`", f"{each.probability:.3g}: {each.chosen}")
            for name, each in header.thresholds.items()
        ),
        ("features", features),
        ("licence", "Apache-2.0"),
        ("evaluated", f"{card.evaluation.made_at[:10]} on {card.evaluation.machine}"),
    ]
    return [*tables.table(("what", "value"), rows), ""]


def _missing(card: "Card") -> Lines:
    if not card.missing:
        return []
    from models.card import MADE_BY

    lines = [f"- `{name}`, written by {MADE_BY[name]}" for name in card.missing]
    return ["## Missing", "", "This card lacks what these files would say:", "", *lines, ""]


def _quality(card: "Card") -> Lines:
    lines: Lines = []
    for model in card.evaluation.models[:2]:
        lines += [f"### {model.name} {model.version}, {model.n_bytes:,} bytes, {model.n_trees} trees", ""]
        lines += [*tables.rankings(model.rankings), ""]
        lines += [*tables.operations(model.operations, model.n_background, digits=4), ""]
        if model.decisions:
            lines += [*tables.decisions(model.decisions), ""]
    if card.has_search:
        lines += ["What was tried for the large model stands in [teacher-search.md](teacher-search.md).", ""]
    return lines


def _frontier(card: "Card", drawn: dict[str, Figure]) -> Lines:
    if card.frontier is None:
        return [f"Missing: `{FRONTIER_FILE}`.", ""]
    found = card.frontier
    rows = [
        (
            point.family,
            point.name + (" (served)" if point.is_chosen else ""),
            f"{point.bytes:,}",
            f"{point.us_per_row:.3f}",
            f"{point.roc_auc:.4f}",
            f"{point.roc_auc_new:.4f}",
        )
        for point in found.points
    ]
    header = ("family", "model", "bytes", "µs a row", "ROC AUC", "ROC AUC, new accounts")
    return [
        f"Small models that were tried, on {found.period}; {found.machine}, commit `{found.commit[:12]}`.",
        "",
        *_figure(drawn, "frontier"),
        *tables.table(header, rows, right=(2, 3, 4, 5)),
        "",
    ]


def _ablation(card: "Card", drawn: dict[str, Figure]) -> Lines:
    if card.ablation is None:
        return [f"Missing: `{ABLATION_FILE}`."]
    rows = [
        (
            step.step,
            f"{step.bytes:,}",
            f"{step.n_trees:,}",
            f"{step.n_features}",
            tables.estimate(step.roc_auc),
            tables.estimate(step.average_precision),
            tables.estimate(step.recall_at_1_percent),
            tables.estimate(step.roc_auc_new),
        )
        for step in card.ablation.steps
    ]
    header = (
        "step",
        "bytes",
        "trees",
        "features",
        "ROC AUC",
        "average precision",
        "recall @ 1 % FPR",
        "ROC AUC, new accounts",
    )
    told = (
        f"Each line has the steps above it done too, on {card.ablation.period}. Those *without* something are one draw "
        "each, as *leaves estimated together* is: they compare with that line."
    )
    return [told, "", *_figure(drawn, "ablation"), *tables.table(header, rows, right=(1, 2, 3)), ""]


def _comparison(card: "Card", drawn: dict[str, Figure]) -> Lines:
    if card.comparison is None:
        return [f"Missing: `{COMPARISON_FILE}`."]
    found = card.comparison
    rows = [
        (
            each.model,
            each.runtime,
            f"{each.bytes:,}",
            f"{each.single_us_p50:,.3g}",
            f"{each.single_us_p99:,.3g}",
            f"{each.batch_us:,.3g}",
            f"{each.cpu_s_per_million:,.3g}",
            f"{each.joules_per_million:,.3g} ({each.joules_source})",
            tables.estimate(each.roc_auc),
            tables.estimate(each.roc_auc_new),
        )
        for each in found.contestants
    ]
    header = (
        "model",
        "runtime",
        "bytes",
        "one row, p50, µs",
        "one row, p99, µs",
        "batch of 500, µs a row",
        "CPU s per million",
        "J per million",
        "ROC AUC",
        "ROC AUC, new accounts",
    )
    told = f"The same rows in one run of `make bench-models`; {found.machine}, commit `{found.commit[:12]}`."
    return [told, "", *_figure(drawn, "comparison"), *tables.table(header, rows, right=range(2, 7)), ""]


def _calibration(card: "Card", drawn: dict[str, Figure]) -> Lines:
    told = card.header.calibration
    lines = [f"Fitted on {told.chosen}, to a prior of {told.prior:g}: each source of normal rows weighs alike.", ""]
    lines += _figure(drawn, "reliability")
    for found in card.evaluation.models[0].reliability:
        lines += [
            f"{found.period.capitalize()}, {found.n_rows:,} rows: mean predicted {found.mean_predicted:.2e} at a prior "
            f"of {found.prior:g}, expected calibration error {found.error:.2e}.",
            "",
            *tables.reliability(found),
            "",
        ]
    return lines


def _precision(card: "Card", drawn: dict[str, Figure]) -> Lines:
    lines = _figure(drawn, "precision-recall")
    lines += ["What share of alerts would be true, were fraud as rare as stated, by Bayes' rule."]
    lines += ["`50% recall` and its like are the thresholds that reach this recall on the test rows themselves.", ""]
    return [*lines, *tables.precisions(card.evaluation.models[0].precisions)]


def _background(card: "Card", drawn: dict[str, Figure]) -> Lines:
    served = card.evaluation.models[0]
    lines = [*_figure(drawn, "background"), *tables.years(served.years), ""]
    return [*lines, "Alerts a day, from that rate:", "", *tables.budgets(served.budgets)]


def _kinds(card: "Card", drawn: dict[str, Figure]) -> Lines:
    served = card.evaluation.models[0]
    names = [name for name in ("review", "50% recall") if served.kinds and name in served.kinds[0].alerts]
    return [
        f"The {breakdown.TOP} highest scored normal rows are the largest false positives; a label `normal` says only",
        "that nobody had tagged the account.",
        "",
        *_figure(drawn, "kinds"),
        *tables.kinds(served.kinds, is_phishing=False, names=names),
        "",
        *tables.kinds(served.kinds, is_phishing=True, names=names),
    ]


def _energy(card: "Card") -> Lines:
    rows = []
    if card.evaluation.training is not None:
        rows.append(("training of both models, with evaluation", *_spent(card.evaluation.training)))
    for model in card.evaluation.models[:2]:
        if model.scoring is not None:
            rows.append((f"a million scores, {model.name}", *_spent(model.scoring)))
    return [
        f"`rapl` is the processor's own counter; `estimate` is CPU seconds times {WATTS_PER_CORE:g} W a core.",
        "",
        *tables.table(("work", "CPU seconds", "joules", "source"), rows, right=(1, 2)),
    ]


def _spent(energy: Energy) -> tuple[str, str, str]:
    return f"{energy.cpu_s:,.3g}", f"{energy.joules:,.3g}", energy.source


def _origin(card: "Card") -> Lines:
    training = card.header.training
    rows = [
        ("data, SHA-256", f"`{training.data}`"),
        ("teacher's digest", f"`{training.teacher}`"),
        ("rows learnt from", f"{training.n_rows:,}, {training.n_positive:,} of them phishing"),
        ("seed", f"{training.seed}"),
        ("feature schema", f"`{card.header.schema}`"),
        *((name, f"{value}") for name, value in {**training.method, **training.settings}.items()),
        *((name, version) for name, version in training.libraries.items()),
        ("evaluated at commit", f"`{card.evaluation.commit}`"),
    ]
    return tables.table(("what", "value"), rows)
