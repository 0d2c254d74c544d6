"""The model card: whole from measured files, the same from its JSON, honest about what is missing."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from features.errors import InputError, UsageError
from models import card, card_text, compact, evaluate, measured, plots, registry, report
from models.card import Card
from models.energy import Energy
from models.intervals import Estimate
from models.report import Bootstrap, Evaluation, Report
from service import cli
from tests.boosters import trained, write_model
from tests.unit.test_evaluate import drawn
from tests.unit.test_figures import labels_of

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
PIXELS_PER_POINT = 1.0
"""matplotlib's SVG has 72 units to the inch, so that a unit is a point."""

ONE = Estimate(0.9, 0.85, 0.93)


def evaluated(name: str, digest: str, n_bytes: int, *, noise: float) -> tuple[Evaluation, np.ndarray]:
    """Return the evaluation of drawn scores, and the scores."""
    sample, scores = drawn(3_000)
    scores = np.clip(scores / 50 + noise * np.random.default_rng(2).random(len(scores)), 1e-6, 1)
    thresholds = {"review": 0.008, "block": 0.018} if name == "drawn" else {}
    model = (name, "1", digest, n_bytes, 20)
    found = report._evaluation(sample, scores, thresholds, Bootstrap(1, 20), model, 0.001, labels_of(120), report.CUTS)
    return msgspec.structs.replace(found, scoring=Energy(1.0, 0.5, 2.5, "estimate")), scores


def judgement(digest: str, n_bytes: int) -> Report:
    """Return a report on a model and its large one."""
    small, scores = evaluated("drawn", digest, n_bytes, noise=0.004)
    large, others = evaluated("teacher", "e" * 64, 9_000_000, noise=0.002)
    sample, _ = drawn(3_000)
    kept = evaluate.retained(sample, scores, others, seed=1, n_replicates=20)
    training = Energy(100.0, 90.0, 450.0, "estimate")
    found = Report("2026-11-22T00:00:00+00:00", "a machine", "0" * 40, "f" * 64, 1, 20, {"numpy": "2"}, [small, large])
    return msgspec.structs.replace(found, retentions=kept, training=training)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its evaluation and all that was measured."""
    folder = tmp_path_factory.mktemp("card")
    digest = write_model(folder / registry.MODEL_FILE, trained())
    n_bytes = compact.read(folder / registry.MODEL_FILE).n_bytes
    report.write(folder, judgement(digest, n_bytes))
    steps = [measured.Step(name, 30_000, 20, 24, ONE, ONE, ONE, ONE) for name in ("labels alone", "soft targets")]
    points = [
        measured.Point("trees", "20 trees", 20_000, 0.1, 0.9, 0.91, is_chosen=True),
        measured.Point("network", "2 layers", 9_000, 0.4, 0.88, 0.9),
    ]
    contestants = [
        measured.Contestant("small", "our own", 30_000, 1.0, 2.0, 0.1, 0.1, 0.5, "estimate", ONE, ONE),
        measured.Contestant("large", "LightGBM", 9_000_000, 100.0, 200.0, 30.0, 30.0, 150.0, "estimate"),
    ]
    at = ("a machine", "0" * 40, "2026-11-22")
    for name, content in {
        measured.ABLATION_FILE: measured.Ablation("2018-07 to 2018-09", steps),
        measured.FRONTIER_FILE: measured.Frontier(*at, "2018-07 to 2018-09", points),
        measured.COMPARISON_FILE: measured.Comparison(*at, contestants),
    }.items():
        (folder / name).write_bytes(msgspec.json.encode(content))
    (folder / card.SEARCH_FILE).write_text("# What was tried\n")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Card:
    """Its card."""
    return card.gather(folder, folder, allow_missing=False, has_figures=True)


def test_command_writes_page_json_and_figures(folder: Path, made: Card, tmp_path: Path) -> None:
    """One command makes the card; each figure of the page is there, with a text for who cannot see it."""
    arguments = ["card", "--model", str(folder), "--measurements", str(folder), "--output", str(tmp_path)]

    result = CliRunner().invoke(cli.app, arguments)

    assert result.exit_code == 0, result.output
    assert card.read(tmp_path / card.FILE) == made
    page = (tmp_path / card.PAGE).read_text(encoding="utf-8")
    shown = re.findall(r"^!\[([^\]]{40,})\]\(figures/([\w-]+)\.svg\)$", page, re.MULTILINE)
    assert [name for _, name in shown] == [figure.name for figure in plots.figures(made)]
    assert {path.stem for path in (tmp_path / card.FIGURES).iterdir()} == {name for _, name in shown}
    assert page == card_text.page(card.read(tmp_path / card.FILE))


def test_page_holds_every_part(made: Card) -> None:
    """Each part that a reader of a card looks for has its heading and its figures, and no slot is left."""
    page = card_text.page(made)

    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings == [
        "Use",
        "Misuse and limits of use",
        "Data",
        "Protocol",
        "Quality",
        "What the small model keeps of the large one",
        "Size, speed and quality",
        "Each step",
        "Against other models and runtimes",
        "Calibration",
        "Precision and recall",
        "By time after training",
        "Unselected traffic",
        "Errors by kind of account",
        "Known failures",
        "Energy",
        "Made from",
    ]
    assert "<!--" not in page
    assert "nan" not in page.split("## Use")[0] + page.split("## Quality")[1]
    for row in (*made.evaluation.models[0].rankings, *made.evaluation.retentions):
        assert f"| {row.test_set} |" in page
    for text in (
        "0.900 [0.850, 0.930]",
        "soft targets",
        "network",
        "LightGBM",
        "exchange or service",
        "90",
        "estimate",
    ):
        assert text in page


def test_figures_are_the_same_bytes_and_readable(made: Card) -> None:
    """Drawn twice a figure is the same; its letters have at least 11 points and it has a title and a description."""
    for figure in plots.figures(made):
        drawing = plots.svg(figure)

        assert drawing == plots.svg(figure), figure.name
        root = ElementTree.fromstring(drawing)
        sizes = [float(size) for size in re.findall(rb"font-size: ([\d.]+)px", drawing)]
        assert sizes
        assert min(sizes) * PIXELS_PER_POINT >= 11, figure.name
        assert figure.title in drawing.decode().replace("&lt;", "<").replace("&amp;", "&").replace("&gt;", ">")
        assert any(text.text for text in root.iter(f"{SVG}text"))
        assert len(figure.title) <= 100


def test_missing_files_fail_with_what_makes_them(folder: Path, tmp_path: Path) -> None:
    """A card of less fails and names each file with its command; if asked it names them in the card."""
    for name in (registry.MODEL_FILE, "evaluation.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())

    with pytest.raises(InputError) as told:
        card.gather(tmp_path, tmp_path, allow_missing=False, has_figures=True)
    lacking = card.gather(tmp_path, tmp_path, allow_missing=True, has_figures=True)

    page = card_text.page(lacking)
    for name, command in card.MADE_BY.items():
        assert f"{tmp_path / name} is missing, written by {command}" in str(told.value)
        assert f"- `{name}`, written by {command}" in page
    assert {figure.name for figure in plots.figures(lacking)}.isdisjoint({"frontier", "ablation", "comparison"})


def test_short_evaluations_have_fewer_figures(made: Card) -> None:
    """Without background and without enough rows by weeks those figures are left out, and the page stands."""
    served, large = made.evaluation.models
    few = [msgspec.structs.replace(period, roc_auc=None) for period in served.decay]
    short = msgspec.structs.replace(served, years=[], blocks=[], budgets=[], decay=few)
    lacking = msgspec.structs.replace(made, evaluation=msgspec.structs.replace(made.evaluation, models=[short, large]))

    assert {figure.name for figure in plots.figures(lacking)}.isdisjoint({"background", "decay"})
    assert "## Unselected traffic" in card_text.page(lacking)


def test_without_matplotlib_the_extra_is_named(made: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures need an extra, which the error names; a card without figures needs nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(UsageError, match="extra `card`"):
        card.write(made, tmp_path / "with")
    card.write(msgspec.structs.replace(made, has_figures=False), tmp_path / "without")


def test_card_of_a_version_is_flat_and_without_figures(folder: Path, tmp_path: Path) -> None:
    """Beside a model stand page and JSON alone: a version's folder has no folders in it."""
    for name in (registry.MODEL_FILE, "evaluation.json", measured.ABLATION_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())

    card.of_version(tmp_path)

    assert all(path.is_file() for path in tmp_path.iterdir())
    assert "![" not in (tmp_path / card.PAGE).read_text(encoding="utf-8")
    assert card.read(tmp_path / card.FILE).missing == [
        measured.FRONTIER_FILE,
        measured.COMPARISON_FILE,
        card.SEARCH_FILE,
    ]


def test_foreign_evaluation_is_refused(folder: Path, tmp_path: Path) -> None:
    """Figures of another model, or an evaluation of an earlier form, make no card."""
    (tmp_path / registry.MODEL_FILE).write_bytes((folder / registry.MODEL_FILE).read_bytes())
    found = judgement("d" * 64, 30_000)
    report.write(tmp_path, found)

    with pytest.raises(InputError, match="judges the model dddddddddddd"):
        card.gather(tmp_path, folder, allow_missing=True, has_figures=False)
    report.write(tmp_path, msgspec.structs.replace(found, retentions=[]))
    with pytest.raises(InputError, match="lacks what a card shows"):
        card.gather(tmp_path, folder, allow_missing=True, has_figures=False)


def test_docs_card_is_of_the_champion_and_whole() -> None:
    """docs/model-card.md and the figures are what the JSON beside them makes, and it is about the shipped model."""
    shown = card.read(DOCS / card.FILE)

    assert shown.digest == compact.read(registry.model_path("")).digest
    assert shown.missing == []
    assert (DOCS / card.PAGE).read_text(encoding="utf-8") == card_text.page(shown)
    assert (DOCS / card.FILE).read_bytes() == card.encode(shown)
    again = card.gather(registry.champion(), DOCS, allow_missing=False, has_figures=True)
    assert again == shown
    for figure in plots.figures(shown):
        assert (DOCS / card.FIGURES / f"{figure.name}.svg").read_bytes() == plots.svg(figure), figure.name
