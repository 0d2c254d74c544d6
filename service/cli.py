"""The commands: what can be typed, wired to the modules that do it; the only place where errors become exit codes.

A command imports what it needs when it runs, so that `--help` and a wrong option answer at once.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from features.errors import FalconetError, UsageError
from service import model as model_commands
from service import settings
from service.settings import DATA_VARIABLE, Settings

if TYPE_CHECKING:
    from models.dataset import Source

FAILED, WRONG_USAGE = 1, 2

app = typer.Typer(
    name="falconet",
    help="Scores blockchain transactions for fraud beside an exchange's Kafka.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(model_commands.app)

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings.")]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap-servers", metavar="HOST:PORT,…", help="Kafka brokers to ask first.")
]


def _without_key(urls: list[str] | None) -> list[str] | None:
    """Refuse what may be a provider's key: other users of the machine see a command line."""
    for url in urls or ():
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.path.strip("/") or parts.query:
            host = parts.netloc.rpartition("@")[2]
            raise UsageError(
                f"--rpc of {host!r} holds more than host and port, which may be a key and would show in the list of "
                f"processes; set {settings.PREFIX}RPC_URLS or rpc_urls in the settings file instead"
            )
    return urls


Rpc = Annotated[
    list[str] | None,
    typer.Option(
        "--rpc",
        metavar="URL",
        callback=_without_key,
        help="A chain's node, host and port alone; may be given again. WebSocket URLs tell of heads.",
    ),
]

Form = Literal["parquet", "jsonl"]


def main() -> None:
    """Run the command line: exit code 2 for wrong usage, 1 for another error raised on purpose, one line on stderr."""
    try:
        app()
    except FalconetError as error:
        sys.stderr.write(f"falconet: {error}\n")
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else FAILED)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"falconet {importlib.metadata.version('falconet')}")
        raise typer.Exit


def _settings(config: Path | None, bootstrap_servers: str | None) -> Settings:
    """Read the settings; before the heavy imports, so that a wrong one is told at once."""
    return settings.load(config=config, overrides={"bootstrap_servers": bootstrap_servers})


@app.callback()
def falconet(
    version: Annotated[  # typer's callback acts on it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Scores blockchain transactions for fraud beside an exchange's Kafka."""


@app.command()
def serve(
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
    fresh_state: Annotated[
        bool, typer.Option("--fresh-state", help="Start with an empty past, whatever was saved.")
    ] = False,
) -> None:
    """Score the transactions topic until SIGTERM or Ctrl-C; then drain, save the state and exit with 0."""
    effective = _settings(config, bootstrap_servers)
    from service import serve

    serve.serve(effective, is_fresh=fresh_state)


@app.command()
def ingest(
    rpc: Rpc = None,
    start_block: Annotated[
        str | None, typer.Option("--start-block", metavar="BLOCK", help="Number, latest or checkpoint.")
    ] = None,
    confirmations: Annotated[
        int | None, typer.Option("--confirmations", metavar="N", min=0, help="Publish blocks N below the head.")
    ] = None,
    finality: Annotated[
        str | None, typer.Option("--finality", metavar="KIND", help="instant, safe or finalized.")
    ] = None,
    forget_checkpoint: Annotated[
        bool, typer.Option("--forget-checkpoint", help="Begin at --start-block again; blocks may be published twice.")
    ] = False,
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
) -> None:
    """Publish a chain's blocks from its node to the transactions topic until SIGTERM or Ctrl-C."""
    if confirmations is not None and finality is not None:
        raise UsageError("--confirmations and --finality are both given; give one of them")
    overrides = {
        "bootstrap_servers": bootstrap_servers,
        "rpc_urls": rpc,
        "start_block": start_block,
        "finality": finality if confirmations is None else str(confirmations),
    }
    effective = settings.load(config=config, overrides=overrides)
    from service import ingest

    ingest.command(effective, forget_checkpoint=forget_checkpoint)


@app.command()
def demo(
    input: Annotated[  # the option's name
        Path | None, typer.Option("--input", metavar="FILE", help="Send a parquet file of real transactions instead.")
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option("--bootstrap-servers", metavar="HOST:PORT,…", help="Use this broker, with topics of its own."),
    ] = None,
    config: Config = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="Through a live local chain (anvil) that reorganises, and the ingester.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", min=1, max=1_000_000, show_default="2000, or 40 with --chain", help="Transactions a second."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=86_400, help="How long to send.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the simulated traffic.")] = 1,
) -> None:
    """See traffic with simulated fraud go through a broker and the real service; 130 after Ctrl-C, with the summary."""
    from service import demo

    options = demo.Options(
        rate=rate or (demo.CHAIN_RATE if chain else demo.RATE),
        seconds=seconds,
        seed=seed,
        chain=chain,
        input=input,
        bootstrap_servers=bootstrap_servers,
        config=config,
    )
    raise typer.Exit(demo.run(options))


@app.command()
def replay(
    input: Annotated[str, typer.Option("--input", metavar="FILE", help="Parquet or JSON lines; - reads a pipe.")],
    output: Annotated[str, typer.Option("--output", metavar="FILE", help="Parquet by its ending; - writes a pipe.")],
    form: Annotated[Form | None, typer.Option("--format", help="Of the input, if its ending does not tell.")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Go on from the past an earlier replay saved here.")
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option("--save-state", metavar="DIR", help="Keep the past here afterwards.")
    ] = None,
    config: Config = None,
) -> None:
    """Score past transactions from a file or a pipe; the same input gives the same bytes."""
    effective = _settings(config, None)
    from service import replay

    replay.command(effective, source=input, target=output, form=form, state=state, save_state=save_state)


@app.command()
def export(
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the archive, new or to go on with.")
    ],
    topic: Annotated[
        str | None,
        typer.Option("--topic", metavar="NAME", help="Topic to export, else the setting transactions_topic."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--until-end", help="Go on with what comes until stopped, or end where it ends.")
    ] = False,
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
) -> None:
    """Copy a topic's transactions into parquet files by day, from its beginning or from where the last run ended."""
    effective = settings.load(
        config=config, overrides={"bootstrap_servers": bootstrap_servers, "transactions_topic": topic}
    )
    from service import export

    raise typer.Exit(export.command(effective, folder=output, follow=follow))


@app.command()
def bench(
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
    kafka: Annotated[bool, typer.Option("--kafka/--no-kafka", help="Also measure through the broker.")] = True,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", envvar=DATA_VARIABLE, help="Real transactions to replay.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Show that it works, in a minute; the figures mean little.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write the figures as JSON.")] = None,
) -> None:
    """Measure this machine: throughput, latency, memory and start-up, beside one call of the large model."""
    effective = _settings(config, bootstrap_servers)
    from service import bench

    report = bench.run(settings=effective, kafka=kafka, data=bench.data_folder(data), quick=quick, say=typer.echo)
    if output is not None:
        bench.write(report, output)


Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", envvar=DATA_VARIABLE, help="Labelled transactions with accounts.csv, or an archive."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything drawn.")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="For an archive: CSV of address,label,known_from[,source]."),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", metavar="DATE", help="For an archive: what was known or happened later does not count; else its end."
    ),
]
ValidationStart = Annotated[
    str, typer.Option("--validation-start", metavar="DATE", help="Models learn from rows before it, in UTC.")
]
TestStart = Annotated[
    str, typer.Option("--test-start", metavar="DATE", help="Models are tuned on rows before it and judged from it on.")
]
AccountsMax = Annotated[
    int,
    typer.Option(
        "--accounts-max", min=64, max=100_000_000, help="Accounts in memory, 460 bytes each with their pairs."
    ),
]
# What the data folder's protocol says; models.dataset holds the same and takes too long to import for --help.
VALIDATION_START, TEST_START, ACCOUNTS_MAX = "2018-07-01", "2018-10-01", 10_000_000


def _time(text: str | None, option: str) -> int | None:
    """Return a date as Unix seconds."""
    from models.labels import unix_time

    try:
        return None if text is None else unix_time(text)
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}; allowed: an ISO date or Unix seconds, 2009 to 2099") from error


def _source(  # the options of one command, in its order
    data: Path, labels: Path | None, as_of: str | None, validation_start: str, test_start: str, accounts_max: int
) -> "Source":
    from models.dataset import Cuts, Source

    starts = (_time(validation_start, "--validation-start"), _time(test_start, "--test-start"))
    cuts = Cuts(*(start for start in starts if start is not None))
    return Source(data, labels, _time(as_of, "--as-of"), cuts, accounts_max)


@app.command()
def train(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the model; its name is the version.")
    ],
    labels: Labels = None,
    as_of: AsOf = None,
    validation_start: ValidationStart = VALIDATION_START,
    test_start: TestStart = TEST_START,
    accounts_max: AccountsMax = ACCOUNTS_MAX,
    review_rate: Annotated[
        float | None,
        typer.Option(
            "--review-false-positive-rate",
            metavar="SHARE",
            help="Of normal transactions, those that may reach review. [default: 0.01]",
        ),
    ] = None,
    block_rate: Annotated[
        float,
        typer.Option(
            "--block-false-positive-rate", metavar="SHARE", help="Of normal transactions, those that may reach block."
        ),
    ] = 0.001,
    alerts: Annotated[
        float | None,
        typer.Option("--alerts-per-day", metavar="N", help="Choose review by the alerts that people can look at."),
    ] = None,
    transactions: Annotated[
        float | None, typer.Option("--transactions-per-day", metavar="N", help="Among which those alerts come.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller models in two minutes, judged by the validation period alone.")
    ] = False,
    seed: Seed = 1,
) -> None:
    """Train the served model and the large one that teaches it, and write both with their evaluation."""
    source = _source(data, labels, as_of, validation_start, test_start, accounts_max)
    from models import thresholds, train
    from models.progress import progress
    from service import augmentation

    budget = thresholds.budget(
        review_rate=review_rate, block_rate=block_rate, alerts_per_day=alerts, transactions_per_day=transactions
    )
    plan = train.QUICK if quick else train.FULL
    with progress() as report:
        simulated = augmentation.simulated_rows(seed)
        train.train(source, output, seed=seed, progress=report, plan=plan, budget=budget, simulated=simulated)
    typer.echo(f"wrote the model and its evaluation to {output}")


@app.command()
def evaluate(
    data: Data,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for evaluation.md and .json.")],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Folder of the model, else the packaged champion.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="Start of the period to judge by, else --test-start.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DATE", help="First day after the period, else the end of the data."),
    ] = None,
    labels: Labels = None,
    as_of: AsOf = None,
    validation_start: ValidationStart = VALIDATION_START,
    test_start: TestStart = TEST_START,
    accounts_max: AccountsMax = ACCOUNTS_MAX,
    seed: Seed = 1,
) -> None:
    """Judge a model and its large one by the data's protocol, with intervals, or by any period of any data."""
    source = _source(data, labels, as_of, validation_start, test_start, accounts_max)
    first, end = _time(start, "--from"), _time(until, "--until")
    from models import registry, report
    from models.progress import progress

    registry.refuse_sealed(output)
    with progress() as tell:
        result = report.evaluate_folder(
            model or registry.champion(), source, seed=seed, progress=tell, start=first, until=end
        )
    report.write(output, result)
    typer.echo(f"wrote evaluation.md and evaluation.json to {output}")


@app.command()
def tune(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the new version; its name is the version.")
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="Folder of the model to start from, else the packaged champion."),
    ] = None,
    labels: Labels = None,
    as_of: AsOf = None,
    accounts_max: AccountsMax = ACCOUNTS_MAX,
    seed: Seed = 1,
) -> None:
    """Fine-tune a model to another chain or exchange from some 50 to 1,000 labelled accounts, as a new version."""
    source = _source(data, labels, as_of, VALIDATION_START, TEST_START, accounts_max)
    from models import registry, tune
    from models.progress import progress

    with progress() as tell:
        result = tune.tune(model or registry.champion(), source, output, seed=seed, progress=tell)
    typer.echo(
        f"{result.n_phishing_accounts} phishing and {result.n_normal_accounts} normal accounts; ROC AUC of accounts "
        f"left out: {result.before.roc_auc:.3f} before, {result.after.roc_auc:.3f} after"
    )
    typer.echo(f"wrote and sealed the version in {output}")


@app.command()
def card(
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Folder of the model, else the packaged champion.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder for model-card.md, .json and figures/.")
    ] = Path("docs"),
    measurements: Annotated[
        Path | None,
        typer.Option("--measurements", metavar="DIR", help="Folder of frontier, comparison and search; else --output."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Name what is missing in the card instead of failing.")
    ] = False,
) -> None:
    """Write a model's card from what was measured: quality, size, speed, failures, energy, with figures."""
    from models import card, registry

    found = card.gather(
        model or registry.champion(), measurements or output, allow_missing=allow_missing, has_figures=True
    )
    card.write(found, output)
    typer.echo(f"wrote {card.PAGE}, {card.FILE} and {card.FIGURES}/ to {output}")


@app.command()
def drift(
    input: Annotated[str, typer.Option("--input", metavar="FILE", help="Parquet or JSON lines; - reads a pipe.")],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Folder of the model, else the one of the settings.")
    ] = None,
    form: Annotated[Form | None, typer.Option("--format", help="Of the input, if its ending does not tell.")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Go on from the past an earlier replay saved here.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write the report as JSON.")] = None,
    config: Config = None,
) -> None:
    """Tell how far traffic has moved from what the model was calibrated on, by feature and for the score."""
    effective = _settings(config, None)
    from service import drift

    for line in drift.command(effective, source=input, model=model, form=form, state=state, output=output):
        typer.echo(line)


@app.command()
def check(
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave broker, topics and nodes out.")] = False,
    rpc: Rpc = None,
) -> None:
    """Validate settings, model, kernels, the broker with its topics, and any nodes; 0 means that serve would start."""
    effective = settings.load(config=config, overrides={"bootstrap_servers": bootstrap_servers, "rpc_urls": rpc})
    from service import check

    for line in check.run(effective, is_offline=offline):
        typer.echo(line)


if __name__ == "__main__":
    main()
