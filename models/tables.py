"""The tables of an evaluation as Markdown, for its page and for the model card."""

from collections.abc import Sequence

from models import breakdown, calibration, evaluate
from models.intervals import Estimate

REFERENCE_RANKINGS = {
    "all": (0.926, 0.883, 0.132, 0.034),
    "against A's normals": (0.869, 0.964, 0.268, 0.119),
    "against B's normals": (0.939, 0.910, 0.093, 0.033),
    "new accounts": (0.909, 0.911, 0.067, 0.032),
    "new accounts, first transaction": (0.766, 0.851, 0.111, 0.056),
}
"""What the data folder's README reports for LightGBM with 300 trees of 31 leaves on 26 running totals and counts."""

REFERENCE_ROWS = {
    "all": 12_631,
    "against A's normals": 6_844,
    "against B's normals": 11_355,
    "new accounts": 8_202,
    "new accounts, first transaction": 596,
}
"""Over other rows the reference is not known."""

REFERENCE_BACKGROUND = 8_029
REFERENCE_OPERATIONS = {0.3: (0.011, 0.021, 0.012), 0.5: (0.045, 0.035, 0.046), 0.7: (0.136, 0.056, 0.393)}

Lines = list[str]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Lines:
    """Return a table; the columns of `right` hold plain numbers and stand to the right."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, rule, *rows)]


def estimate(figure: Estimate | None, digits: int = 3) -> str:
    """Return a figure with its interval, a dash where there is none."""
    if figure is None:
        return "—"
    return f"{figure.value:,.{digits}f} [{figure.low:,.{digits}f}, {figure.high:,.{digits}f}]"


def small(value: float | None) -> str:
    """Return a share that may be very small."""
    return "—" if value is None else f"{value:.3g}"


def _reference(values: Sequence[float], is_known: bool) -> str:
    return ", ".join(f"{value:.3f}" for value in values) if is_known else "—"


def rankings(rows: Sequence[evaluate.Ranking]) -> Lines:
    """Return the protocol's first table."""
    header = (
        "test set",
        "rows",
        "accounts",
        "share phishing",
        "ROC AUC",
        "average precision",
        "recall @ 1 % FPR",
        "recall @ 0.1 % FPR",
        "reference: ROC AUC, AP, recalls",
    )
    return table(
        header,
        [
            (
                row.test_set,
                f"{row.n_rows:,}",
                f"{row.n_accounts:,}",
                f"{row.share_phishing:.3f}",
                estimate(row.roc_auc),
                estimate(row.average_precision),
                estimate(row.recall_at_1_percent),
                estimate(row.recall_at_01_percent),
                _reference(REFERENCE_RANKINGS[row.test_set], row.n_rows == REFERENCE_ROWS[row.test_set]),
            )
            for row in rows
        ],
        right=(1, 2, 3),
    )


def operations(rows: Sequence[evaluate.Operation], n_background: int, *, digits: int = 3) -> Lines:
    """Return the protocol's second table, with so many digits of the background's alert rate."""
    header = (
        "recall on new phishing",
        "threshold",
        "FPR, A",
        "FPR, B",
        f"alerts on background ({n_background:,} rows)",
        "reference: A, B, background",
    )
    return table(
        header,
        [
            (
                f"{row.recall}",
                small(row.threshold),
                estimate(row.false_positives_a),
                estimate(row.false_positives_b),
                estimate(row.background, digits),
                _reference(REFERENCE_OPERATIONS[row.recall], n_background == REFERENCE_BACKGROUND),
            )
            for row in rows
        ],
    )


def decisions(rows: Sequence[evaluate.Decision]) -> Lines:
    """Return what the model's own thresholds do."""
    return table(
        ("decision", "threshold", "recall on new phishing", "FPR, A", "FPR, B", "background"),
        [
            (
                row.name,
                small(row.threshold),
                *(
                    "—" if rate is None else f"{rate:.4f}"
                    for rate in (row.recall_new, row.false_positives_a, row.false_positives_b, row.background)
                ),
            )
            for row in rows
        ],
        right=(1, 2, 3, 4, 5),
    )


def retentions(rows: Sequence[evaluate.Retention]) -> Lines:
    """Return the small model's figures over the large one's."""
    return table(
        ("test set", "ROC AUC kept", "average precision kept", "recall @ 1 % FPR kept"),
        [
            (row.test_set, estimate(row.roc_auc), estimate(row.average_precision), estimate(row.recall_at_1_percent))
            for row in rows
        ],
    )


def reliability(found: calibration.Reliability) -> Lines:
    """Return the bins of one period."""
    return table(
        ("probabilities", "rows", "phishing", "predicted", "observed"),
        [
            (
                f"{small(each.low)} to {small(each.high)}",
                f"{each.n_rows:,}",
                f"{each.n_phishing:,}",
                f"{each.predicted:.2e}",
                f"{each.observed.value:.2e} [{each.observed.low:.2e}, {each.observed.high:.2e}]",
            )
            for each in found.bins
        ],
    )


def precisions(rows: Sequence[calibration.Precision]) -> Lines:
    """Return the precision of each threshold at each prior."""

    def cell(figure: Estimate | None, is_least: bool) -> str:
        return f"at least {figure.value:.3f}" if figure is not None and is_least else estimate(figure)

    return table(
        (
            "threshold",
            "fraud is",
            "recall on new phishing",
            "precision, false alerts as on background",
            "precision, false alerts as on labelled normals",
        ),
        [
            (
                row.name,
                f"1 in {round(1 / row.prior):,}",
                estimate(row.recall),
                cell(row.background, row.is_background_least),
                cell(row.normals, row.is_normals_least),
            )
            for row in rows
        ],
    )


def decay(rows: Sequence[breakdown.Period]) -> Lines:
    """Return the figures by weeks after training."""
    return table(
        ("weeks", "from", "rows", "accounts", "phishing rows", "ROC AUC", "average precision", "recall @ 1 % FPR"),
        [
            (
                f"{row.weeks_after}",
                row.start,
                f"{row.n_rows:,}",
                f"{row.n_accounts:,}",
                f"{row.n_phishing:,}",
                estimate(row.roc_auc),
                estimate(row.average_precision),
                estimate(row.recall_at_1_percent),
            )
            for row in rows
        ],
    )


def years(rows: Sequence[breakdown.Year]) -> Lines:
    """Return the alert rate on whole blocks by year."""
    names = list(rows[0].alerts) if rows else []
    return table(
        ("year", "blocks", "rows", *names),
        [
            (
                f"{row.year}",
                f"{row.n_blocks:,}",
                f"{row.n_rows:,}",
                *(estimate(row.alerts[name], 4) for name in names),
            )
            for row in rows
        ],
    )


def kinds(rows: Sequence[breakdown.Kind], *, is_phishing: bool, names: Sequence[str]) -> Lines:
    """Return what some thresholds do to each kind of account; for normal ones beside the rate over all of them."""
    chosen = [row for row in rows if row.is_phishing == is_phishing]
    measure = "recall" if is_phishing else "FPR"
    header = ["kind of account", "rows", "accounts", *(f"{measure}, {name}" for name in names)]
    cells = [
        [row.kind, f"{row.n_rows:,}", f"{row.n_accounts:,}", *(estimate(row.alerts.get(name)) for name in names)]
        for row in chosen
    ]
    if not is_phishing and chosen:
        header += [f"share of the {breakdown.TOP} highest scored", "share of rows"]
        for row, line in zip(chosen, cells, strict=True):
            line += [f"{row.share_of_top:.2f}", f"{row.share_of_rows:.2f}"]
    return table(header, cells)


def budgets(rows: Sequence[breakdown.Budget]) -> Lines:
    """Return the alerts a day at several volumes of traffic."""
    volumes = sorted({row.per_day for row in rows})
    names = list(dict.fromkeys(row.name for row in rows))
    found = {(row.name, row.per_day): row for row in rows}

    def cell(row: breakdown.Budget) -> str:
        return f"at most {row.alerts.high:,.0f}" if row.is_most else estimate(row.alerts, 0)

    return table(
        ("threshold", *(f"at {volume:,} transactions a day" for volume in volumes)),
        [(name, *(cell(found[name, volume]) for volume in volumes)) for name in names],
    )
