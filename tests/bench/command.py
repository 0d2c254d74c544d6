"""What the benchmarks' command lines have in common: the data folder, the model, what they tell, and how they end."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from features.errors import FalconetError
from service import bench
from service.settings import DATA_VARIABLE

Options = argparse.Namespace


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows `--data`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), metavar="DIR", help="data folder")
    return made


def add_model(parser: argparse.ArgumentParser) -> None:
    """Let a trained version be named; None is the champion."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="version's folder (default: the packaged champion)")


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[Options], None],
    *,
    reads_data: Callable[[Options], bool] = lambda _options: True,
) -> int:
    """Parse the command line, do the work and return the exit code; an error of ours is told in one line.

    Args:
        parser: Made by `parser`.
        work: Measures and tells.
        reads_data: Says by the options whether the work needs the data folder, which must be named then.
    """
    options = parser.parse_args()
    if options.data is None and reads_data(options):
        parser.error(f"--data or {DATA_VARIABLE} must name the data folder")
    try:
        work(options)
    except FalconetError as error:
        print(f"{Path(parser.prog).stem}: {error}", file=sys.stderr)
        return 1
    return 0


def tell(figures: Iterable[bench.Figure], path: Path | None) -> None:
    """Print figures as they are measured; then write them to a report, where one is named, as `bench.update` does."""
    found = []
    for figure in figures:
        print(figure.line(), flush=True)
        found.append(figure)
    if path is not None:
        bench.update(found, path)
