"""The commands: what can be typed, wired to the modules that do it; the only place where errors become exit codes.

A command imports what it needs when it runs, so that `--help` and a wrong option answer at once.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
