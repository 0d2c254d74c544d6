"""Training end to end on a small data folder, and the protocol's choice of rows."""

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features import schema
from features.errors import ArtifactError, InputError
from models import (
    ablation,
    calibration,
    compact,
    dataset,
    distil,
    drift,
    learning,
    registry,
    selection,
    teacher,
    thresholds,
    train,
)
from models.dataset import ACCOUNT_ROWS_MAX, BACKGROUND, TEST_START, VALIDATION_START, Cuts, Source
from models.report import Report, markdown
from models.scorer import Scorer
from tests.datafolder import address, write_folder

SMALL = {"num_leaves": 15, "min_data_in_leaf": 10, "learning_rate": 0.2}
PLAN = train.Plan(
    teacher=teacher.TEACHER | SMALL | {"n_members": 2, "n_trees": 20, "lambda_l2": 1.0},
    student=distil.STUDENT | SMALL | {"n_trees": 30},
    effort=selection.Effort(n_draws=1, n_trees=15, every=2, many=2, few=2),
    n_students=2,
    n_unlabelled=500,
    n_replicates=20,
)


def silent(_stage: str, _n_done: int, _n: int) -> None:
    """Take no notice."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder."""
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def records(folder: Path) -> dataset.Records:
    """Its records."""
    return dataset.read(folder)


def run(data: Path | Source, output: Path, *, seed: int = 1, plan: train.Plan = PLAN) -> Report:
    """Train small models."""
    return train.train(data, output, seed=seed, plan=plan, progress=silent)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A trained model's folder and its report."""
    output = tmp_path_factory.mktemp("falconet") / "7"
    return output, run(folder, output)


def test_training_writes_all_there_is_to_a_model(trained: tuple[Path, Report]) -> None:
    """Model, teacher and evaluation stand in the folder, and its name is the version."""
    output, _ = trained

    assert {path.name for path in output.iterdir()} == {
        "model.falconet", "teacher.txt.gz", "teacher.json", "evaluation.md", "evaluation.json",
        "reference.json", "ablation.json", "manifest.json", "model-card.md", "model-card.json",
    }  # fmt: skip
    scorer = Scorer.load(output / registry.MODEL_FILE)
    assert (scorer.model.name, scorer.model.version) == ("falconet", "7")
    assert 0 < scorer.thresholds["review"] <= scorer.thresholds["block"] <= 1


def test_training_twice_gives_the_same_model(trained: tuple[Path, Report], folder: Path, tmp_path: Path) -> None:
    """One seed, one digest; another seed, another model."""
    output, _ = trained
    run(folder, tmp_path / "7")

    for name in ("model.falconet", "teacher.txt.gz", "teacher.json", "reference.json"):
        assert (tmp_path / "7" / name).read_bytes() == (output / name).read_bytes()

    run(folder, tmp_path / "other" / "7", seed=2)
    assert (tmp_path / "other" / "7" / "model.falconet").read_bytes() != (output / "model.falconet").read_bytes()


def test_model_tells_the_drawn_frauds_apart(trained: tuple[Path, Report]) -> None:
    """The drawn phishing is easy: a training that mixes up rows or labels would not find it."""
    _, report = trained

    for model in report.models:
        assert model.rankings[0].roc_auc.value > 0.9
        assert model.rankings[0].test_set == "all"
        assert model.n_background > 0


def test_report_reads_the_same_as_json_and_markdown(trained: tuple[Path, Report]) -> None:
    """Both files hold the report, and the page shows every test set of both models and of what is kept."""
    output, report = trained

    assert msgspec.json.decode((output / "evaluation.json").read_bytes(), type=Report) == report
    page = (output / "evaluation.md").read_text()
    assert page == markdown(report)
    for ranking in report.models[0].rankings:
        assert page.count(f"| {ranking.test_set} |") == 3
    assert report.data in page


def test_training_leaves_the_reference_of_its_calibration(
    trained: tuple[Path, Report], records: dataset.Records
) -> None:
    """What drift is told from is about the model's features, and the rows it was made of have not drifted from it."""
    output, report = trained
    scorer = Scorer.load(output / registry.MODEL_FILE)
    reference = drift.read(output / drift.FILE, scorer.header.features)
    sample = dataset.sample(records)
    tuned = (sample.time >= VALIDATION_START) & (sample.time < TEST_START)
    weight = calibration.traffic_weights(sample.take(tuned), scorer.header.calibration.prior)
    rows = dataset.matrix(records, sample.position)[tuned]
    drawn = np.random.default_rng(1).choice(len(rows), size=5_000, p=weight / weight.sum())

    window = drift.Drift(reference, n_rows=5_000, every=1)
    window.observe(rows[drawn], scorer.probabilities(scorer.margins(rows[drawn])))

    assert max(window.psi().values()) < 0.02
    assert report.training is not None
    assert report.training.cpu_s > 0


def test_header_says_how_the_model_was_made(trained: tuple[Path, Report], records: dataset.Records) -> None:
    """Data, seed, settings and libraries are in the file, and only features that may be trained on are read."""
    header = compact.read(trained[0] / registry.MODEL_FILE).header

    assert header.training.data == records.digest
    assert header.training.seed == 1
    assert header.training.settings["learning_rate"] == 0.2
    assert set(header.training.libraries) >= {"lightgbm", "numpy"}
    assert all(schema.FEATURES[schema.index(name)].trained for name in header.features)


def test_teacher_scores_by_name_of_feature(trained: tuple[Path, Report]) -> None:
    """The teacher takes whole rows like the scorer and refuses a damaged file."""
    output, _ = trained
    teacher = registry.Teacher.load(output)
    rows = np.zeros((3, schema.N_FEATURES), dtype=np.float32)

    assert teacher.margins(rows).shape == (3,)
    assert (
        (teacher.probabilities(teacher.margins(rows)) > 0) & (teacher.probabilities(teacher.margins(rows)) < 1)
    ).all()


@pytest.mark.parametrize("name", ["teacher.txt.gz", "teacher.json"])
def test_damaged_teacher_is_refused(trained: tuple[Path, Report], tmp_path: Path, name: str) -> None:
    """A changed text, a text that is no gzip and facts that are none are artefact errors."""
    for path in trained[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ArtifactError):
        registry.Teacher.load(tmp_path)


def test_champion_is_named_and_checked(trained: tuple[Path, Report], tmp_path: Path) -> None:
    """The file `champion` names a folder with a model, and nothing else passes."""
    model = tmp_path / "falconet" / "7"
    model.mkdir(parents=True)
    (model / registry.MODEL_FILE).write_bytes((trained[0] / registry.MODEL_FILE).read_bytes())
    (tmp_path / "champion").write_text("falconet/7\n")

    assert registry.champion(tmp_path) == model
    assert registry.packaged(tmp_path) == [model]
    assert registry.model_path(str(model)) == model / registry.MODEL_FILE
    for wrong in ("falconet/8", "../falconet", "falconet", "", "a/b/c"):
        (tmp_path / "champion").write_text(wrong)
        with pytest.raises(ArtifactError, match="champion"):
            registry.champion(tmp_path)


def test_rows_count_by_the_protocol(records: dataset.Records, folder: Path) -> None:
    """A plain walk over the transactions finds the same rows, accounts, ranks and new accounts."""
    with (folder / "accounts.csv").open() as file:
        labels = {line["address"]: line["label"] == "phishing" for line in csv.DictReader(file)}
    names = {bytes.fromhex(name[2:]): name for name in labels if len(name) == 42}
    packed = records.packed
    rank: dict[str, int] = {}
    seen: dict[str, int] = {}
    expected = []
    for i, record in enumerate(packed):
        raw = record.tobytes()
        sides = [names.get(raw[0:20]), names.get(raw[24:44])]
        amount = record.view(np.float64)[6]
        if records.is_background[i] or not amount > 0 or sides == [None, None]:
            continue
        for side in sides:
            if side is not None:
                seen.setdefault(side, int(record[7]))
        account = next((s for s in sides if s is not None and labels[s]), None) or sides[0] or sides[1]
        assert account is not None
        if rank.setdefault(account, 0) < ACCOUNT_ROWS_MAX:
            expected.append((i, account, rank[account], labels[account]))
        rank[account] += 1

    sample = dataset.sample(records)
    labelled = sample.take(sample.account != BACKGROUND)

    by_key = {key.tobytes()[:20]: place for place, key in enumerate(records.labels.key)}
    assert labelled.position.tolist() == [row[0] for row in expected]
    assert labelled.account.tolist() == [by_key[bytes.fromhex(row[1][2:])] for row in expected]
    assert labelled.rank.tolist() == [row[2] for row in expected]
    assert labelled.is_phishing.tolist() == [row[3] for row in expected]
    assert labelled.is_new.tolist() == [seen[row[1]] >= VALIDATION_START for row in expected]


def test_at_most_fifty_rows_of_an_account(records: dataset.Records) -> None:
    """The first fifty rows of an account count, and no later one."""
    sample = dataset.sample(records)
    labelled = sample.take(sample.account != BACKGROUND)

    assert labelled.rank.max() == ACCOUNT_ROWS_MAX - 1
    assert np.unique(labelled.account, return_counts=True)[1].max() == ACCOUNT_ROWS_MAX


def test_tokens_and_zero_values_move_state_but_do_not_count(records: dataset.Records) -> None:
    """Neither a token transfer nor a transaction of value 0 is a row of the sample."""
    sample = dataset.sample(records)
    amounts = records.packed.view(np.float64)[:, 6]

    assert np.isnan(amounts).any()
    assert (amounts == 0).any()
    assert (amounts[sample.position] > 0).all()


def test_malformed_labels_are_counted(records: dataset.Records) -> None:
    """A label whose address is not 20 bytes can never match and is counted, not guessed at."""
    assert records.labels.n_malformed == 1


def test_rows_are_those_of_one_pass(records: dataset.Records) -> None:
    """Chunks and the choice of rows change nothing: each row comes from all records before it."""
    from features.accounts import Accounts

    sample = dataset.sample(records)
    accounts = Accounts(accounts_max=100_000, pairs_max=400_000)
    everything, _ = accounts.score_rows(records.packed)

    rows = dataset.matrix(records, sample.position)

    np.testing.assert_array_equal(rows, everything[sample.position])


def test_restart_forgets_the_past(records: dataset.Records) -> None:
    """Rows after a restart are those of a table that starts there; rows before it are unchanged."""
    from features.accounts import Accounts

    sample = dataset.sample(records)
    restart = TEST_START
    first = int(np.searchsorted(records.packed[:, 7], restart))
    fresh, _ = Accounts(accounts_max=100_000, pairs_max=400_000).score_rows(records.packed[first:])

    rows = dataset.matrix(records, sample.position, restarts=np.array([restart]))

    after = sample.position >= first
    np.testing.assert_array_equal(rows[after], fresh[sample.position[after] - first])
    np.testing.assert_array_equal(rows[~after], dataset.matrix(records, sample.position)[~after])


def test_no_later_row_is_learnt_from(records: dataset.Records) -> None:
    """Training sees rows before 2018-07-01 only, each once warm and once cold, and no untrained column."""
    sample = dataset.sample(records)
    rows = dataset.matrix(records, sample.position)

    parts = learning.learning_parts(records, sample, rows, seed=1, report=silent)

    n_before = int((sample.time < VALIDATION_START).sum())
    assert len(parts.rows) == len(parts.weight) == 2 * n_before
    np.testing.assert_array_equal(parts.rows[:n_before], rows[:n_before][:, learning.trained_columns()])
    assert parts.weight[n_before:].sum() == pytest.approx(learning.COLD_COPY * parts.weight[:n_before].sum())


def test_kinds_and_accounts_weigh_as_stated(records: dataset.Records) -> None:
    """Phishing, A, B and background have their shares of the weight, and within a kind every account weighs alike."""
    sample = dataset.sample(records)

    weight = learning.weights(sample)

    shares = {"phishing": 0.4, "A": 0.3, "B": 0.3, "background": 0.09}
    kinds = {
        "phishing": sample.is_phishing,
        "A": ~sample.is_phishing & (sample.source == "A"),
        "B": ~sample.is_phishing & (sample.source == "B"),
        "background": sample.account == BACKGROUND,
    }
    for kind, chosen in kinds.items():
        assert weight[chosen].sum() / weight.sum() == pytest.approx(shares[kind] / 1.09)
    by_account = np.bincount(sample.account[kinds["A"]], weights=weight[kinds["A"]])
    assert by_account[by_account > 0] == pytest.approx(by_account.max())


def test_normal_accounts_without_a_source_weigh_as_all_normal_ones(records: dataset.Records) -> None:
    """Labels that name no source, as an archive's may, leave the shares of phishing and normal as they are."""
    sample = dataset.sample(records)
    sample = sample._replace(source=np.zeros_like(sample.source))

    weight = learning.weights(sample)

    normal = ~sample.is_phishing & (sample.account != BACKGROUND)
    assert weight[normal].sum() / weight.sum() == pytest.approx(0.6 / 1.09)


def test_unlabelled_rows_are_earlier_payments_of_no_sample(records: dataset.Records) -> None:
    """They pay, come before the validation period and are not learnt from as labelled rows already."""
    sample = dataset.sample(records)

    position = learning.unlabelled(records, sample, 400, seed=1)

    assert 0 < len(position) <= 400
    assert (np.diff(position) > 0).all()
    assert (records.packed[position, 7] < VALIDATION_START).all()
    assert (records.packed.view(np.float64)[position, 6] > 0).all()
    assert not np.isin(position, sample.position).any()


def test_moved_dates_move_what_is_learnt(folder: Path, tmp_path: Path) -> None:
    """With an earlier validation period fewer rows are learnt from, and the header names the moved days."""
    month = 30 * 86_400
    moved = Source(folder, cuts=Cuts(VALIDATION_START - month, TEST_START - month))

    run(moved, tmp_path / "7", plan=PLAN._replace(is_quick=True))

    header = compact.read(tmp_path / "7" / registry.MODEL_FILE).header
    sample = dataset.sample(dataset.read(moved))
    assert header.training.n_rows == (sample.time < VALIDATION_START - month).sum()
    assert "2018-06-01 to 2018-08-31" in header.calibration.chosen


def test_quick_training_is_judged_by_the_validation_period(folder: Path, tmp_path: Path) -> None:
    """No figure of a quick training comes from the test period, and there is no ablation."""
    report = run(folder, tmp_path / "7", plan=PLAN._replace(is_quick=True))

    assert (report.start, report.end <= "2018-09-30") == ("2018-07-01", True)
    assert not (tmp_path / "7" / "ablation.json").exists()


def test_ablation_judges_each_step_on_both_periods(trained: tuple[Path, Report]) -> None:
    """The student's own line has the served model's size, and its figures on the test period are the report's."""
    output, report = trained
    found = msgspec.json.decode((output / "ablation.json").read_bytes(), type=ablation.Ablation)
    scorer = Scorer.load(output / registry.MODEL_FILE)

    names = [step.step for step in found.steps]
    assert names == [step.step for step in found.validation]
    assert names[0] == "teacher"
    student = next(step for step in found.steps if step.step.endswith("the student"))
    assert (student.n_trees, student.n_features) == (scorer.header.n_trees, compact.FEATURES_MAX)
    assert student.bytes < scorer.model.n_bytes
    assert student.roc_auc.value == pytest.approx(report.models[0].rankings[0].roc_auc.value, abs=1e-3)
    assert student.roc_auc != next(s for s in found.validation if s.step == student.step).roc_auc


def test_calibration_finds_the_slope() -> None:
    """Margins that are twice the log-odds get half the slope, and the prior is where the weights are even."""
    rng = np.random.default_rng(6)
    n = 40_000
    truth = rng.normal(size=n) * 2
    is_phishing = rng.random(n) < 1 / (1 + np.exp(-truth))
    zeros = np.zeros(n, dtype=np.int64)
    no = np.zeros(n, dtype=bool)
    sample = dataset.Sample(zeros, zeros, zeros, zeros, is_phishing, np.full(n, "A"), no)

    slope, intercept = thresholds.calibrate(2 * truth, sample)

    assert slope == pytest.approx(0.5, abs=0.02)
    assert intercept == pytest.approx(np.log(thresholds.PRIOR / (1 - thresholds.PRIOR)), abs=0.05)


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    """A folder without phishing in a period says so instead of training on nothing."""
    folder = write_folder(tmp_path / "data")
    with (folder / "accounts.csv").open("w") as file:
        file.write(f"address,label,source\n{address(0)},normal,A\n")

    with pytest.raises(InputError, match=r"no phishing before 2018-07-01"):
        run(folder, tmp_path / "out")


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    """A folder that is not one, or lacks a column, is an input error with the file's name."""
    with pytest.raises(InputError, match=r"accounts\.csv"):
        dataset.read(tmp_path)

    folder = write_folder(tmp_path / "data", n_accounts=12)
    (folder / "accounts.csv").write_text("address,tag\n0x,1\n")
    with pytest.raises(InputError, match="no column label, source"):
        dataset.read(folder)
