"""Fine-tuning: what is kept, what moves, what it is chosen by, and the version that comes of it."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from features import schema
from features.errors import InputError, UsageError
from models import compact, dataset, drift, registry, shrinkage, tune
from models.scorer import Scorer
from models.shrinkage import ACCOUNTS_MIN, FOLDS, Forest, Labelled
from tests import boosters
from tests.archives import write_archive, write_labels
from tests.datafolder import write_folder

FEW = shrinkage.Sizes((0, 4), 4)
"""Enough trees to see that they are, and little time."""


def artifact(folder: Path, *, n_trees: int = 20, **settings_of_lightgbm: float) -> compact.Artifact:
    """Return a small model of drawn rows."""
    path = folder / "model.falconet"
    boosters.write_model(path, boosters.trained(n_trees=n_trees, **settings_of_lightgbm))
    return compact.read(path)


def labelled(n_accounts: int, *, seed: int = 5, shift: float = 0.0) -> Labelled:
    """Return accounts of 1 to 9 rows, half of them phishing, told apart by a column that the model reads."""
    rng = np.random.default_rng(seed)
    account = np.repeat(np.arange(n_accounts), rng.integers(1, 10, size=n_accounts))
    is_phishing = account % 2 == 0
    rows = boosters.drawn_rows(len(account), seed=seed)
    rows[:, boosters.READ[1]] += np.where(is_phishing, shift, -shift)
    return Labelled(rows, is_phishing, account)


def silent(_stage: str, _done: int, _total: int) -> None:
    """Tell nobody."""


def test_leaves_reached_are_the_runtimes(tmp_path: Path) -> None:
    """The sum of the leaves that a row reaches is the margin that the served model gives it."""
    model = artifact(tmp_path)
    rows = boosters.drawn_rows(500, seed=3)

    margins = Forest.of(model).margins(rows)

    assert margins == pytest.approx(Scorer(model).margins(rows), abs=1e-9)


def test_a_tree_without_splits_is_its_leaf(tmp_path: Path) -> None:
    """A tree that asks nothing adds its only leaf to every row."""
    model = artifact(tmp_path, n_trees=2, min_data_in_leaf=5_000)
    rows = boosters.drawn_rows(7, seed=3)

    assert model.trees.n_splits.tolist() == [0] * len(model.trees.n_splits)
    assert Forest.of(model).margins(rows) == pytest.approx(Scorer(model).margins(rows), abs=1e-9)


def test_kinds_and_accounts_weigh_alike() -> None:
    """Either kind has half the weight, accounts of a kind weigh alike, and all weights add to the accounts."""
    data = labelled(30)

    weight = data.weights()

    by_account = np.bincount(data.account, weights=weight)
    assert weight.sum() == pytest.approx(30)
    assert weight[data.is_phishing].sum() == pytest.approx(15)
    assert by_account == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 4.0]))
def test_leaves_have_the_least_penalised_loss(seed: int, spread: float) -> None:
    """No small step in any direction makes the loss with its penalties smaller: the gradient is 0 there."""
    rng = np.random.default_rng(seed)
    n, n_trees, n_leaves = 60, 3, 5
    reached = rng.integers(0, n_leaves, size=(n, n_trees)) + n_leaves * np.arange(n_trees)
    design = np.zeros((n, n_trees * n_leaves))
    design[np.arange(n)[:, None], reached] = 1.0
    shipped, y, weight = rng.normal(size=n), rng.random(n) < 0.5, rng.random(n)

    fitted = shrinkage.fit_leaves(csr_matrix(design), shipped, y, weight, spread)

    margin = fitted.slope * shipped + fitted.intercept + design @ fitted.change
    pull = weight * (1 / (1 + np.exp(-margin)) - y)
    assert design.T @ pull + n_trees / spread**2 * fitted.change == pytest.approx(0.0, abs=2e-3)
    assert pull.sum() == pytest.approx(0.0, abs=2e-3)
    if fitted.slope > shrinkage.SLOPE_MIN:
        assert pull @ shipped + fitted.slope - 1 == pytest.approx(0.0, abs=2e-3)


def test_folds_part_accounts() -> None:
    """Each account is left out once, with all of its rows, and each fold leaves out both kinds."""
    data = labelled(60)

    parts = shrinkage.folds(data, seed=1)

    assert len(parts) == FOLDS
    assert np.sum(parts, axis=0).tolist() == [1] * len(data.account)
    for part in parts:
        assert set(data.account[part]) & set(data.account[~part]) == set()
        assert {True, False} == set(data.is_phishing[part].tolist())


def test_labels_without_a_pattern_move_little(tmp_path: Path) -> None:
    """Where labels say nothing, the loss of accounts left out is near that of a coin, not beyond it."""
    model = artifact(tmp_path)

    tuned = shrinkage.fine_tune(model, labelled(60), seed=1, sizes=FEW)

    assert tuned.losses[tuned.choice] == min(tuned.losses.values())
    assert tuned.losses[tuned.choice] < np.log(2) + 0.05
    assert np.std(tuned.margins) < 0.7


def test_labels_with_a_pattern_are_learnt(tmp_path: Path) -> None:
    """Accounts that the shipped model cannot tell apart are told apart, those left out of the fit as well."""
    model = artifact(tmp_path)
    data, others = labelled(120, shift=1e6), labelled(100, seed=8, shift=1e6)

    tuned = shrinkage.fine_tune(model, data, seed=1, sizes=FEW)

    margins = tuned.forest.margins(others.rows)
    before = Forest.of(model).margins(others.rows)
    assert separation(margins, others.is_phishing) > 0.95 > 0.75 > separation(before, others.is_phishing)
    assert separation(tuned.margins, data.is_phishing) > 0.95


def separation(margins: np.ndarray, is_phishing: np.ndarray) -> float:
    """Return the share of pairs of a phishing and a normal row that are in order."""
    return float((margins[is_phishing][:, None] > margins[~is_phishing][None, :]).mean())


def test_same_labels_give_the_same_model(tmp_path: Path) -> None:
    """Twice the same input gives the same leaves to the last bit."""
    model, data = artifact(tmp_path), labelled(60, shift=1e6)

    one, other = (shrinkage.fine_tune(model, data, seed=1, sizes=FEW) for _ in range(2))

    assert one.forest.leaf.tobytes() == other.forest.leaf.tobytes()
    assert (one.choice, one.slope, one.intercept) == (other.choice, other.slope, other.intercept)


@pytest.mark.parametrize("kind", ["phishing", "normal"])
def test_too_few_accounts_of_a_kind_are_refused(tmp_path: Path, kind: str) -> None:
    """With fewer than the minimum of either kind the message names both numbers."""
    data = labelled(4 * ACCOUNTS_MIN)
    is_kind = data.is_phishing == (kind == "phishing")
    few = data.take(~is_kind | (data.account < 2 * (ACCOUNTS_MIN - 1)))

    with pytest.raises(InputError, match=rf"^{ACCOUNTS_MIN - 1} labelled {kind} accounts .* at least {ACCOUNTS_MIN}"):
        shrinkage.fine_tune(artifact(tmp_path), few, seed=1)


def test_added_trees_fit_the_file(tmp_path: Path) -> None:
    """In a small file all shipped trees stay beside the added ones; in a full one those go that say least."""
    small = artifact(tmp_path, n_trees=120)
    full = small._replace(n_bytes=compact.FILE_BYTES_MAX)

    beside, squeezed = (shrinkage.bases(model, (0, 8)) for model in (small, full))

    whole = Forest.of(small)
    freed = whole.n_bytes().sum() - squeezed[8].n_bytes().sum()
    needed = 8 * shrinkage.tree_bytes(compact.LEAVES_MAX - 1)
    assert {n: len(forest.trees.n_splits) for n, forest in beside.items()} == {0: 120, 8: 120}
    assert len(squeezed[0].trees.n_splits) == 120
    assert needed <= freed <= needed + whole.n_bytes().max()
    assert squeezed[8].spread().min() >= np.sort(whole.spread())[120 - len(squeezed[8].trees.n_splits)]


def test_too_few_shipped_trees_are_no_start(tmp_path: Path) -> None:
    """A number of trees to add that would push most of the shipped ones out of the file is not tried."""
    full = artifact(tmp_path)._replace(n_bytes=compact.FILE_BYTES_MAX)

    assert list(shrinkage.bases(full)) == [0]


def test_a_part_of_the_trees_is_their_sum(tmp_path: Path) -> None:
    """Two disjoint parts of a forest add to the whole, and what a tree takes is what the file has for it."""
    whole = Forest.of(artifact(tmp_path))
    rows = boosters.drawn_rows(100, seed=4)
    chosen = np.arange(len(whole.trees.n_splits)) % 3 == 0

    parts = [whole.only(chosen), whole.only(~chosen)]

    assert sum(part.margins(rows) for part in parts) == pytest.approx(whole.margins(rows))
    joined = parts[0].joined(parts[1])
    assert joined.margins(rows) == pytest.approx(whole.margins(rows))
    stored = sum(getattr(whole.trees, name).nbytes for name in compact.Trees._fields if name != "unknown_left")
    assert 0 <= whole.n_bytes().sum() - stored - len(whole.trees.feature) / 8 < len(whole.trees.n_splits)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 150 accounts."""
    return write_folder(tmp_path_factory.mktemp("tune") / "data")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with a teacher's files."""
    folder = tmp_path_factory.mktemp("tune") / "drawn" / "1"
    folder.mkdir(parents=True)
    booster = boosters.trained()
    boosters.write_model(folder / registry.MODEL_FILE, booster)
    registry.write_teacher(folder, booster, slope=1.0, intercept=0.0)
    return folder


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, data: Path, parent: Path) -> Path:
    """The version fine-tuned to the data folder."""
    folder = tmp_path_factory.mktemp("tune") / "drawn" / "exchange-1"
    tune.tune(parent, data, folder, sizes=FEW, progress=silent)
    return folder


def test_version_is_sealed_with_its_origin(version: Path, parent: Path, data: Path) -> None:
    """The new version verifies, carries its own name, and says from which model and labels it came."""
    manifest = registry.verify(version)
    header = compact.read(version / registry.MODEL_FILE).header
    origin = compact.read(parent / registry.MODEL_FILE).digest

    assert (header.name, header.version) == ("drawn", "exchange-1")
    assert manifest.provenance.settings["parent"] == header.training.method["parent"] == origin
    assert manifest.provenance.settings["labels"] == header.training.method["labels"]
    assert manifest.provenance.data == header.training.data == dataset.digest(data)


def test_version_can_be_served(version: Path, parent: Path) -> None:
    """It loads within the limits, with the parent's teacher and a reference of its own features."""
    scorer = Scorer.load(version / registry.MODEL_FILE)

    assert scorer.model.n_bytes <= compact.FILE_BYTES_MAX
    assert registry.Teacher.load(version).digest == registry.Teacher.load(parent).digest
    assert drift.read(version / drift.FILE, scorer.header.features).n_rows > 1


def test_report_says_what_was_gained(version: Path, data: Path) -> None:
    """The report counts the accounts before the test period and shows left-out accounts told apart better."""
    report = msgspec.json.decode((version / tune.TUNING_FILE).read_bytes(), type=tune.Report)
    sample = dataset.sample(dataset.read(data))
    learnt = sample.take((sample.account >= 0) & (sample.time < dataset.TEST_START))

    assert report.n_rows == len(learnt.time)
    assert report.n_phishing_accounts == len(np.unique(learnt.account[learnt.is_phishing]))
    assert report.after.roc_auc > max(0.9, report.before.roc_auc)


def test_thresholds_keep_to_their_rates(version: Path, data: Path) -> None:
    """Few normal rows reach `review` when the new version scores them, fewer `block`, and much of the phishing does."""
    scorer = Scorer.load(version / registry.MODEL_FILE)
    records = dataset.read(data)
    sample = dataset.sample(records)
    learnt = sample.take((sample.account >= 0) & (sample.time < dataset.TEST_START))

    probabilities = scorer.probabilities(scorer.margins(dataset.matrix(records, learnt.position)))

    review, block = scorer.thresholds["review"], scorer.thresholds["block"]
    assert (probabilities[~learnt.is_phishing] >= review).mean() < 0.02
    assert (probabilities[~learnt.is_phishing] >= block).mean() < 0.005
    assert (probabilities[learnt.is_phishing] >= review).mean() > 0.5
    assert block >= review


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.floats(0.1, 2.0)), min_size=1, max_size=20),
    st.floats(0.0, 0.9),
)
def test_a_rate_is_never_exceeded(rows: list[tuple[float, float]], rate: float) -> None:
    """At most the rate's share of the weight reaches the threshold, and one step lower more than that would."""
    probabilities, weight = (np.array(column) for column in zip(*rows, strict=True))

    threshold = tune._lowest(probabilities, weight, rate)

    assert weight[probabilities >= threshold].sum() <= rate * weight.sum() + 1e-9
    assert weight[probabilities >= np.nextafter(threshold, 0.0)].sum() > rate * weight.sum() - 1e-9


def test_sealed_output_is_refused_before_any_work(version: Path, parent: Path, tmp_path: Path) -> None:
    """A version is never written over, and that is told before the data are looked at."""
    with pytest.raises(UsageError, match="sealed"):
        tune.tune(parent, tmp_path / "nothing", version, progress=silent)


def test_few_labels_of_a_folder_are_refused(parent: Path, tmp_path: Path) -> None:
    """A folder of a dozen accounts is too little, and no version is left behind."""
    folder = write_folder(tmp_path / "data", n_accounts=12)

    with pytest.raises(InputError, match=f"fine-tuning needs at least {ACCOUNTS_MIN}"):
        tune.tune(parent, folder, tmp_path / "drawn" / "2", progress=silent)

    assert not (tmp_path / "drawn" / "2" / registry.MODEL_FILE).exists()


def test_archive_is_learnt_from_to_its_end(parent: Path, tmp_path: Path) -> None:
    """By the command, an archive with a list of labels gives a version that learnt from payments after 2018-10 too."""
    data = write_folder(tmp_path / "data", n_accounts=75)
    archive = write_archive(data, tmp_path / "archive")
    labels = write_labels(data, tmp_path / "labels.csv", known_from="2018-01-01")
    output = tmp_path / "drawn" / "3"
    source = dataset.Source(archive, labels)

    report = tune.tune(parent, source, output, sizes=FEW, progress=silent)

    sample = dataset.sample(dataset.read(source))
    assert report.n_rows == (sample.account >= 0).sum() > (sample.time < dataset.TEST_START).sum()
    assert registry.verify(output).version == "3"


def test_command_tells_too_few_labels(parent: Path, tmp_path: Path) -> None:
    """By the command, too few labelled accounts end with 1 and one line that names the number and the least."""
    folder = write_folder(tmp_path / "data", n_accounts=12)
    options = ["--data", folder, "--model", parent, "--output", tmp_path / "drawn" / "4"]
    command = [sys.executable, "-m", "service.cli", "tune", *map(str, options)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert re.search(rf"^falconet: \d labelled phishing accounts .* at least {ACCOUNTS_MIN}$", done.stderr, re.M)


def test_labels_of_another_kind_start_anew(tmp_path: Path) -> None:
    """Where the difference lies in features that the shipped model does not read, the new one reads them."""
    model = artifact(tmp_path)
    unread = [i for i, feature in enumerate(schema.FEATURES) if feature.trained and i not in boosters.READ]
    data, others = (labelled(120, seed=seed) for seed in (5, 8))
    for part in (data, others):
        part.rows[:, unread[0]] = np.where(part.is_phishing, 3.0, 1.0)

    tuned = shrinkage.fine_tune(model, data, seed=1, sizes=FEW)

    assert tuned.choice.is_anew
    assert unread[0] in tuned.forest.columns
    assert separation(tuned.forest.margins(others.rows), others.is_phishing) == 1.0
