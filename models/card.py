"""The model card: what a model is for, how good it is, where it fails and what it costs, as JSON and as a page.

Everything measured comes from files that commands wrote; the page is a function of the JSON alone, and so are the
figures, so a test can tell whether they belong together.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from features.errors import InputError
from models import card_text, compact, measured, plots, registry
from models.measured import ABLATION_FILE, COMPARISON_FILE, FRONTIER_FILE, Ablation, Comparison, Frontier
from models.report import Report

FILE, PAGE = "model-card.json", "model-card.md"
FIGURES = "figures"
SEARCH_FILE = "teacher-search.md"

MADE_BY = {
    ABLATION_FILE: "`falconet train`, beside the model",
    FRONTIER_FILE: "`python -m tests.bench.bench_frontier`",
    COMPARISON_FILE: "`make bench-models`",
    SEARCH_FILE: "hand, with the figures of the search",
}
"""Which command writes what the card wants."""


class Card(Struct, frozen=True):
    """All that the page and the figures say."""

    header: compact.Header
    digest: str
    n_bytes: int
    evaluation: Report
    ablation: Ablation | None
    frontier: Frontier | None
    comparison: Comparison | None
    has_search: bool
    """The page of the teacher's search stands beside the card."""
    has_figures: bool
    missing: list[str]
    """Files that were wanted and not there."""


def gather(folder: Path, measurements: Path, *, allow_missing: bool, has_figures: bool) -> Card:
    """Read what a card of a model is made of.

    Args:
        folder: Holds the model, its evaluation and its ablation.
        measurements: Holds what was measured apart from training: frontier, comparison, search.
        allow_missing: Name what is missing in the card instead of failing; never the model or its evaluation.
        has_figures: The page shows figures.

    Raises:
        InputError: A file is missing or damaged, or the evaluation is of another model.
    """
    artifact = compact.read(folder / registry.MODEL_FILE)
    evaluation = _evaluation(folder / "evaluation.json")
    judged = evaluation.models[0]
    if judged.digest != artifact.digest:
        raise InputError(
            f"{folder / 'evaluation.json'}: judges the model {judged.digest[:12]}, but {registry.MODEL_FILE} is"
            f" {artifact.digest[:12]}; run `falconet evaluate`"
        )
    places = {
        ABLATION_FILE: folder,
        FRONTIER_FILE: measurements,
        COMPARISON_FILE: measurements,
        SEARCH_FILE: measurements,
    }
    missing = [name for name, place in places.items() if not (place / name).is_file()]
    if missing and not allow_missing:
        told = "; ".join(f"{places[name] / name} is missing, written by {MADE_BY[name]}" for name in missing)
        raise InputError(f"{told}; --allow-missing makes a card that names what it lacks")
    return Card(
        artifact.header,
        artifact.digest,
        artifact.n_bytes,
        evaluation,
        None if ABLATION_FILE in missing else measured.read(folder / ABLATION_FILE, Ablation),
        None if FRONTIER_FILE in missing else measured.read(measurements / FRONTIER_FILE, Frontier),
        None if COMPARISON_FILE in missing else measured.read(measurements / COMPARISON_FILE, Comparison),
        SEARCH_FILE not in missing,
        has_figures,
        missing,
    )


def _evaluation(path: Path) -> Report:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; `falconet evaluate` writes it") from error
    if len(found.models) < 2 or not found.retentions or not found.models[0].reliability:
        raise InputError(f"{path}: lacks what a card shows; `falconet evaluate` writes it anew")
    return found


def write(card: Card, output: Path) -> None:
    """Write the card's JSON and page into a folder, and its figures into `figures/` there.

    Raises:
        InputError: The folder cannot be written.
        UsageError: Figures are wanted and matplotlib is not installed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if card.has_figures:
            folder = output / FIGURES
            folder.mkdir(exist_ok=True)
            for figure in plots.figures(card):
                (folder / f"{figure.name}.svg").write_bytes(plots.svg(figure))
        (output / FILE).write_bytes(encode(card))
        (output / PAGE).write_text(card_text.page(card), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error


def read(path: Path) -> Card:
    """Read a card's JSON.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def encode(card: Card) -> bytes:
    """Return the card's JSON; the same card gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n"


def of_version(folder: Path) -> None:
    """Write the card of a model that was trained this moment beside it, of what there is, without figures.

    A version's folder holds flat files that are sealed; every figure's numbers stand in the page's tables too.

    Raises:
        InputError: The model or its evaluation cannot be read, or the folder not be written.
    """
    write(gather(folder, folder, allow_missing=True, has_figures=False), folder)
