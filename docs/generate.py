"""Write the tables that code knows better than people into the docs, between their markers.

`make docs` runs this; a test compares. A block starts with `<!-- generated: NAME -->` and ends with `<!-- end -->`.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import typer.main
from typer.core import TyperCommand, TyperGroup

from deploy.prometheus import alerts, objectives
from features import schema, transaction
from features.accounts import Accounts
from models import evaluate, report
from service import archiver, bench, catalogue, cli, ingest_metrics, messages, settings
from tests.chaos import report as chaos

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "bench.json"
INGEST = ROOT / "docs" / "ingest.json"
OBSERVABILITY = ROOT / "docs" / "observability.json"
HTTP = ROOT / "docs" / "http.json"
RECOVERY = ROOT / "docs" / "recovery.json"
ARCHIVE = ROOT / "docs" / "archive.json"
QUALITY = ROOT / "docs" / "evaluation.json"
CHAOS = ROOT / "docs" / "chaos.json"
OVERLOAD = ROOT / "docs" / "overload.json"
SOAK = ROOT / "docs" / "soak.json"
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the Markdown files that may hold generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def current(text: str) -> str:
    """Return a page's text with every generated block as the code stands.

    Raises:
        KeyError: A marker names no table.
    """
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Render a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def features_table() -> str:
    """Return the feature schema in row order, with its fingerprint."""
    title = f"{schema.N_FEATURES} features, fingerprint `{schema.FINGERPRINT}`.\n\n"
    return f"{title}{schema.markdown()}\n"


def commands() -> Iterator[tuple[str, TyperCommand]]:
    """Yield every command that can be typed, with its full name."""

    def walk(command: object, name: str) -> Iterator[tuple[str, TyperCommand]]:
        if isinstance(command, TyperGroup):
            for child in command.commands.values():
                yield from walk(child, f"{name} {child.name}")
        elif isinstance(command, TyperCommand):
            yield name, command

    yield from walk(typer.main.get_command(cli.app), "falconet")


def commands_table() -> str:
    """Return every command with its options."""
    rows = []
    for name, command in commands():
        options = [
            f"`{parameter.opts[0] if parameter.param_type_name == 'option' else (parameter.name or '').upper()}`"
            for parameter in command.params
            if parameter.opts[0] != "--help"
        ]
        rows.append((f"`{name}`", command.get_short_help_str(limit=200), ", ".join(options)))
    return table(("Command", "What it does", "Options"), rows)


def metrics_table() -> str:
    """Return every metric the service exposes."""
    return catalogue.markdown_table()


def record_table(record: type[msgspec.Struct]) -> str:
    """Return a record's fields with the sentences that stand below them in the source."""
    body = ast.parse(inspect.getsource(record)).body[0]
    assert isinstance(body, ast.ClassDef)
    rows: list[tuple[str, ...]] = []
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            rows.append((f"`{statement.target.id}`", f"`{ast.unparse(statement.annotation)}`", ""))
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and rows:
            rows[-1] = (*rows[-1][:2], " ".join(str(statement.value.value).split()))
    return table(("Field", "Type", "Meaning"), rows)


def archive_table() -> str:
    """Return the columns of an exported archive."""
    return table(("Column", "Type", "Meaning"), [(f"`{n}`", str(kind), text) for n, kind, text in archiver.COLUMNS])


def archive_figures_table() -> str:
    """Return what training's dataset took of an archive that does not fit memory."""
    measured = msgspec.json.decode(ARCHIVE.read_bytes(), type=bench.Report)
    rows = [(figure.name, f"{bench.plain(figure.value)} {figure.unit}".rstrip()) for figure in measured.figures]
    trained = " --train" if any("train" in row[0] for row in rows) else ""
    command = f"`python -m tests.bench.bench_archive{trained} --json docs/archive.json`"
    title = f"Measured on {measured.date} on {measured.machine}, commit `{measured.commit}`, by {command}.\n\n"
    return title + table(("What", "Measured"), rows)


def measured_table(path: Path, command: str) -> str:
    """Return the figures of a report with machine, commit, date and the command that made them."""
    if not path.exists():
        # Without the file's name: there is none.
        return f"No figures yet: `{command.partition(' --json')[0]}` measures this machine.\n"
    measured = msgspec.json.decode(path.read_bytes(), type=bench.Report)
    rows = [
        (
            figure.name + (f" (at `{figure.commit}`)" if figure.commit else ""),
            f"{bench.plain(figure.value)} {figure.unit}",
            "" if figure.low == figure.high else f"{bench.plain(figure.low)} to {bench.plain(figure.high)}",
            figure.target,
        )
        for figure in measured.figures
    ]
    title = f"Measured on {measured.date} on {measured.machine}, commit `{measured.commit}`, by `{command}`.\n\n"
    return title + table(("What", "Measured", "Spread", "Must reach"), rows)


def chaos_table() -> str:
    """Return what became of the streams that were struck."""
    if not CHAOS.exists():
        return "No figures yet: `make chaos` strikes for half an hour and writes them here.\n"
    found = msgspec.json.decode(CHAOS.read_bytes(), type=chaos.Report)
    commits = ", ".join(f"`{each}`" for each in sorted({row.commit for row in found.rows}))
    dates = sorted({row.date for row in found.rows})
    n_faults, n_messages = (sum(getattr(row, name) for row in found.rows) for name in ("n_faults", "n_messages"))
    title = (
        f"{n_faults:,} faults to {n_messages:,} messages, on {', '.join(dates)} on {found.machine}, commit {commits}, "
        "by `make chaos`.\n\n"
    )
    return title + table(chaos.HEADER, [row.cells() for row in found.rows])


def sizing_table() -> str:
    """Return what a service of some sizes takes: speed and base as measured, the rest from what a table holds."""
    measured = msgspec.json.decode(FIGURES.read_bytes(), type=bench.Report)
    figures = {figure.name: figure for figure in measured.figures}
    program = figures["resident memory with 100,000 accounts, shadow model loaded"].value * 1e6
    speeds = [
        (f"`{client}`", f"{bench.plain(figures[f'exactly once through Kafka, {client}'].value)} tx/s")
        for client in settings.KAFKA_CLIENTS
    ]
    rows = []
    for accounts_max in (100_000, 1_000_000, 10_000_000):
        full = Accounts(accounts_max=accounts_max, pairs_max=2 * accounts_max).memory_bytes
        rows.append(
            (
                f"{accounts_max:,}",
                f"{2 * accounts_max:,}",
                f"{full / 2**20:,.0f} MiB",
                f"{(program + full) / 2**30:.1f} GiB",
                f"{(program + 2 * full) / 2**30:.1f} GiB",
            )
        )
    return (
        f"Measured on {measured.date} on {measured.machine}, commit `{measured.commit}`, by `make bench`.\n\n"
        + table(("`kafka_client`", "Most, exactly once"), speeds)
        + f"\nThe program with its libraries, the models and 100,000 accounts took {program / 2**20:.0f} MiB.\n\n"
        + table(
            (
                "`accounts_max`",
                "`pairs_max`",
                "Full tables, and one snapshot",
                "Memory",
                "Memory at worst, in a snapshot",
            ),
            rows,
        )
    )


def load_table(path: Path, command: str) -> str:
    """Return what the service did under load, as that command found it, with its picture."""
    picture = path.parent / "figures" / f"{path.stem}.svg"
    shown = f"\n![{path.stem} over time](figures/{picture.name})\n" if picture.exists() else ""
    return measured_table(path, command) + shown


def quality_table() -> str:
    """Return the figures of docs/evaluation.md that say most, the served model beside the large one."""
    judged = msgspec.json.decode(QUALITY.read_bytes(), type=report.Report)
    models = judged.models
    title = (
        f"Measured on {judged.made_at[:10]} on {judged.machine}, commit `{judged.commit[:12]}`, by "
        "`falconet evaluate` on real labelled transactions of a later year than it was trained on; "
        "in brackets 95 % intervals.\n\n"
    )
    header = ("What", *(f"{model.name}, {model.n_bytes:,} bytes" for model in models))
    rows = [
        (f"ROC AUC, {rows[0].test_set}", *(estimate(row.roc_auc) for row in rows))
        for rows in zip(*(model.rankings for model in models), strict=True)
    ]
    rows += [
        (
            f"alerts on unselected traffic at {rows[0].recall:.0%} recall on new phishing",
            *(estimate(row.background) for row in rows),
        )
        for rows in zip(*(model.operations for model in models), strict=True)
    ]
    return title + table(header, rows)


def estimate(figure: evaluate.Estimate | None) -> str:
    """Return a share with its interval, a dash where there is none."""
    return "—" if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def objectives_table() -> str:
    """Return what the service promises."""
    rows = [(each.name, each.sentence, f"`{each.alert}`") for each in objectives.OBJECTIVES]
    return table(("Objective", "Promise", "Alert"), rows)


def alerts_table() -> str:
    """Return every alert with what it tells and its runbook."""
    rows = [
        (f"`{each.name}`", each.severity, f"`{each.summary}`", f"[what to do](runbooks/{each.name}.md)")
        for each in alerts.ALERTS
    ]
    return table(("Alert", "Severity", "Tells", "Runbook"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "features": features_table,
    "commands": commands_table,
    "settings": settings.markdown_table,
    "metrics": metrics_table,
    "ingest-metrics": lambda: catalogue.markdown_table(ingest_metrics.CATALOGUE),
    "objectives": objectives_table,
    "alerts": alerts_table,
    "archive": archive_table,
    "archive-figures": archive_figures_table,
    "figures": lambda: measured_table(FIGURES, "make bench"),
    "ingest-figures": lambda: measured_table(INGEST, "python -m tests.bench.bench_ingest --json docs/ingest.json"),
    "observability": lambda: measured_table(
        OBSERVABILITY, "python -m tests.bench.bench_observability --json docs/observability.json"
    ),
    "http-figures": lambda: measured_table(HTTP, "python -m tests.bench.bench_http --json docs/http.json"),
    "recovery": lambda: measured_table(RECOVERY, "python -m tests.bench.bench_recovery --json docs/recovery.json"),
    "chaos": chaos_table,
    "overload": lambda: load_table(OVERLOAD, "make overload"),
    "soak": lambda: load_table(SOAK, "make soak SOAK_ARGS='--minutes 20'"),
    "quality": quality_table,
    "sizing": sizing_table,
    "transaction": lambda: record_table(transaction.Transaction),
    "score": lambda: record_table(messages.Score),
    "retraction": lambda: record_table(messages.Retraction),
    "contribution": lambda: record_table(messages.Contribution),
    "list-hit": lambda: record_table(messages.ListHit),
    "source": lambda: record_table(messages.Source),
}


def main() -> None:
    """Rewrite the pages whose blocks are out of date."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if current(text) != text:
            page.write_text(current(text), encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)} written\n")


if __name__ == "__main__":
    main()
