"""The packaged model: whole, of this schema, and worth what its report says it must be."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from features import schema
from features.accounts import Accounts
from features.transaction import pack, records
from models import gate, registry
from models.report import Report, markdown
from models.scorer import Scorer
from models.tables import REFERENCE_OPERATIONS, REFERENCE_RANKINGS
from service import simulator
from service.codec import Decoder

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The champion's folder."""
    return registry.champion()


@pytest.fixture(scope="module", params=["packaged", "docs"])
def report(request: pytest.FixtureRequest, folder: Path) -> Report:
    """The report beside the model, and the one in the docs."""
    path = (folder if request.param == "packaged" else DOCS) / "evaluation.json"
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(report)
    return report


def test_champion_is_as_it_was_sealed(folder: Path) -> None:
    """Its manifest lists what is shipped, and names the data and the seed that the model names."""
    manifest = registry.verify_version(registry.ARTIFACTS, folder)
    training = Scorer.load(folder / registry.MODEL_FILE).header.training

    assert (manifest.provenance.data, manifest.provenance.seed) == (training.data, training.seed)


def test_reports_are_of_this_model(report: Report, folder: Path) -> None:
    """The figures were taken on the files that are shipped."""
    served, large = report.models

    assert served.digest == Scorer.load(folder / registry.MODEL_FILE).model.digest
    assert large.digest == registry.Teacher.load(folder).digest


def test_model_beats_the_reference(report: Report) -> None:
    """ROC AUC in every test set, and at half of new phishing caught every kind of false alert."""
    served = report.models[0]

    for ranking in served.rankings:
        assert ranking.roc_auc.value > REFERENCE_RANKINGS[ranking.test_set][0]
    half = next(operation for operation in served.operations if operation.recall == 0.5)
    rates = (half.false_positives_a.value, half.false_positives_b.value, half.background.value)
    assert all(rate < limit for rate, limit in zip(rates, REFERENCE_OPERATIONS[0.5], strict=True))


def test_test_sets_are_the_protocols(report: Report) -> None:
    """As many rows in each test set as the data's protocol counts."""
    expected = [12_631, 6_844, 11_355, 8_202, 596]

    assert [ranking.n_rows for ranking in report.models[0].rankings] == expected
    assert report.models[0].n_background == 8_029


def test_model_is_compact(folder: Path) -> None:
    """Within the gate's budgets of size, and only features free of the data's biases."""
    scorer = Scorer.load(folder / registry.MODEL_FILE)

    assert scorer.model.n_bytes <= gate.MODEL_BYTES_MAX
    assert len(scorer.header.features) <= gate.MODEL_FEATURES_MAX
    assert all(schema.FEATURES[schema.index(name)].trained for name in scorer.header.features)


def test_student_and_teacher_agree_in_the_main(folder: Path) -> None:
    """Both order simulated transactions alike: neither reads the other's columns."""
    scorer, teacher = Scorer.load(folder / registry.MODEL_FILE), registry.Teacher.load(folder)
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    packed = records([pack(decoder.decode(message)) for message in simulator.messages(1, 3_000)])
    rows, _ = Accounts(accounts_max=10_000, pairs_max=20_000).score_rows(packed)

    ranks = [np.argsort(np.argsort(model.margins(rows[1_000:]))) for model in (scorer, teacher)]

    assert np.corrcoef(*ranks)[0, 1] > 0.5
