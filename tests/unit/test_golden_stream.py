"""The shipped model's scores of a simulated stream do not change unless somebody means it."""

from collections import Counter

import pytest
from msgspec.structs import replace

from tests import stream


@pytest.mark.parametrize("batch", [stream.N, 500, 1])
def test_stream_scores_as_it_did(batch: int) -> None:
    """Every transaction gets the score, decision, reasons and list hits on record, however the stream is batched."""
    # 1e-9: another processor's `exp` may round its last bit otherwise.
    differing = [
        (found, wanted)
        for found, wanted in zip(stream.scored(stream.messages(), batch=batch), stream.expected(), strict=True)
        if replace(found, score=wanted.score) != wanted or found.score != pytest.approx(wanted.score, rel=1e-9)
    ]

    assert differing == []


def test_stream_is_what_the_simulator_draws() -> None:
    """The transactions on record are those of the seed: a change of the simulator draws them anew."""
    assert stream.messages() == [one.value for one in stream.drawn()]


def test_stream_holds_every_kind_of_outcome() -> None:
    """What is on record exercises the model, the rules and the lists, and is not one score over and over."""
    expected = stream.expected()
    decisions = Counter(one.decision for one in expected)

    assert decisions["allow"] > decisions["review"] > 100
    assert any("to_imitates" in one.reasons for one in expected)
    assert {side for one in expected for hit in one.lists for side in hit.split()[:1]} == {"from", "to"}
    assert len({one.score for one in expected}) > 100
