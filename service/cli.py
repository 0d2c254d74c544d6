"""The commands: what can be typed, wired to the modules that do it; the only place where errors become exit codes.

A command imports what it needs when it runs, so that `--help` and a wrong option answer at once.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from features.errors import FalconetError, UsageError

if TYPE_CHECKING:
    from service.settings import Settings

FAILED, WRONG_USAGE = 1, 2

app = typer.Typer(
    name="falconet",
    help="Scores blockchain transactions for fraud beside an exchange's Kafka.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings.")]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap-servers", metavar="HOST:PORT,…", help="Kafka brokers to ask first.")
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


def _settings(config: Path | None, bootstrap_servers: str | None) -> "Settings":
    # Before the heavy imports, so that a wrong setting is told at once.
    from service import settings

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
def demo(
    input: Annotated[  # the option's name
        Path | None, typer.Option("--input", metavar="FILE", help="Send a parquet file of real transactions instead.")
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option("--bootstrap-servers", metavar="HOST:PORT,…", help="Use this broker, with topics of its own."),
    ] = None,
    config: Config = None,
    rate: Annotated[float, typer.Option("--rate", min=1, max=1_000_000, help="Transactions a second.")] = 2000,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=86_400, help="How long to send.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the simulated traffic.")] = 1,
) -> None:
    """See traffic with simulated fraud go through a broker and the real service; 130 after Ctrl-C, with the summary."""
    from service import demo

    options = demo.Options(
        rate=rate, seconds=seconds, seed=seed, input=input, bootstrap_servers=bootstrap_servers, config=config
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
def bench(
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
    kafka: Annotated[bool, typer.Option("--kafka/--no-kafka", help="Also measure through the broker.")] = True,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", envvar="FALCONET_DATA", help="Real transactions to replay.")
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


@app.command()
def check(
    config: Config = None,
    bootstrap_servers: Bootstrap = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the broker and its topics out.")] = False,
) -> None:
    """Validate settings, model and kernels, and the broker with its topics; 0 means that serve would start."""
    effective = _settings(config, bootstrap_servers)
    from service import check

    for line in check.run(effective, is_offline=offline):
        typer.echo(line)


if __name__ == "__main__":
    main()
