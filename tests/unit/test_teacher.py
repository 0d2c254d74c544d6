"""The teacher on a small data folder: one text that is the mean of its members, the same for the same seed."""

from pathlib import Path

import lightgbm
import numpy as np
import pytest

from features import schema
from models import dataset, learning, teacher
from models.dataset import BACKGROUND
from models.learning import Parts
from tests.bench import bench_teacher
from tests.boosters import READ, drawn_rows, trained
from tests.datafolder import write_folder

SMALL = teacher.TEACHER | {"n_members": 3, "n_trees": 8, "num_leaves": 7, "min_data_in_leaf": 5, "lambda_l2": 1.0}


def silent(*_: object) -> None:
    """Take no notice."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """What is learnt from in a small folder."""
    records = dataset.read(write_folder(tmp_path_factory.mktemp("data")))
    sample = dataset.sample(records)
    rows = dataset.matrix(records, sample.position)
    return learning.learning_parts(records, sample, rows, seed=1, report=silent)


@pytest.fixture(scope="module")
def taught(parts: Parts) -> lightgbm.Booster:
    """A small teacher."""
    return teacher.fit(parts, SMALL, seed=1, say=silent)


def test_mean_has_the_mean_of_the_members_margins() -> None:
    """On any row, unknown values among them, one text gives what its members give on average."""
    members = [trained(seed=seed, n_trees=n_trees) for seed, n_trees in ((1, 20), (2, 5), (3, 1))]
    rows = drawn_rows(500, seed=9, unknown=0.3)[:, READ]
    expected = np.mean([member.predict(rows, raw_score=True) for member in members], axis=0)

    joined = teacher.mean(members)

    assert joined.num_trees() == 26
    assert joined.feature_name() == members[0].feature_name()
    np.testing.assert_allclose(joined.predict(rows, raw_score=True), expected, rtol=1e-12, atol=1e-12)


def test_mean_explains_itself_like_its_members() -> None:
    """Shapley values add up to the margin, as LightGBM's own model's do."""
    joined = teacher.mean([trained(seed=seed, n_trees=5) for seed in (1, 2)])
    rows = drawn_rows(50, seed=9)[:, READ]

    contributions = np.asarray(joined.predict(rows, pred_contrib=True))

    np.testing.assert_allclose(contributions.sum(axis=1), joined.predict(rows, raw_score=True), atol=1e-9)


def test_same_seed_gives_the_same_text(parts: Parts, taught: lightgbm.Booster) -> None:
    """A teacher is repeated to the last digit; another seed gives another."""
    again, other = (teacher.fit(parts, SMALL, seed=seed, say=silent) for seed in (1, 2))

    assert again.model_to_string() == taught.model_to_string()
    assert other.model_to_string() != taught.model_to_string()


def test_members_differ(taught: lightgbm.Booster) -> None:
    """Each member is drawn by a seed of its own: their mean would be one of them otherwise."""
    trees = taught.model_to_string().split("Tree=")[1:]
    first = {trees[8 * i].split("leaf_value=")[1].split("\n")[0] for i in range(3)}

    assert taught.num_trees() == 24
    assert len(first) == 3


def test_teacher_reads_what_it_means_to(parts: Parts, taught: lightgbm.Booster) -> None:
    """It takes all trained columns, and splits on none of those that are left out."""
    names = [schema.FEATURES[i].name for i in learning.trained_columns().tolist()]
    used = {name for name, n in zip(names, taught.feature_importance("split"), strict=True) if n}

    assert taught.feature_name() == names
    assert used
    assert not [name for name in used if any(part in name for part in teacher.LEFT_OUT)]


def test_left_out_columns_do_not_move_a_score(parts: Parts, taught: lightgbm.Booster) -> None:
    """Whatever stands in a column that is left out, the margin stays."""
    names = taught.feature_name()
    changed = parts.rows.copy()
    changed[:, [any(part in name for part in teacher.LEFT_OUT) for name in names]] = 1e6

    assert np.array_equal(taught.predict(changed, raw_score=True), taught.predict(parts.rows, raw_score=True))


def test_phishing_is_ranked_above_normal_and_background(parts: Parts, taught: lightgbm.Booster) -> None:
    """On what it was taught, nine of ten phishing rows lie above the median of each other kind."""
    margins = taught.predict(parts.rows, raw_score=True)
    phishing = np.quantile(margins[parts.is_phishing], 0.1)

    assert phishing > np.median(margins[~parts.is_phishing & (parts.account != BACKGROUND)])
    assert phishing > np.median(margins[parts.account == BACKGROUND])


def test_progress_counts_every_tree(parts: Parts) -> None:
    """Progress goes from the first tree to the last without a jump."""
    told: list[tuple[int, int]] = []

    teacher.fit(parts, SMALL | {"n_members": 2, "n_trees": 3}, seed=1, say=lambda n, of: told.append((n, of)))

    assert told == [(i, 6) for i in range(1, 7)]


def test_comparisons_are_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The committed command prints a line of figures for each variant and origin."""
    arguments = ["--origins", "2018-07-01", "--only", "teacher", "ageless", "--trees", "3"]
    monkeypatch.setattr("sys.argv", ["bench_teacher", "--data", str(write_folder(tmp_path)), *arguments])

    assert bench_teacher.main() == 0

    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["| teacher", "| ageless"]
    assert all(0.5 < float(line[3]) <= 1.0 for line in lines)
