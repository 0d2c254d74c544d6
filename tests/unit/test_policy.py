"""From probability, lists and rules to a decision."""

import numpy as np
import pytest

from features import schema, screening
from service.policy import ALLOW, BLOCK, DECISIONS, REVIEW, policy

ADDRESS = "0x" + "ab" * 20
LISTS = screening.build([(ADDRESS, "sanctioned", 0), (ADDRESS, "scam", 0), (ADDRESS, "exchange", 0)])


def decide(
    probability: float, *, hits: int = 0, imitates: float = 0.0, lists: screening.Screening | None = LISTS
) -> int:
    rows = np.full((1, schema.N_FEATURES), np.nan, dtype=np.float32)
    rows[0, schema.index("to_imitates")] = imitates
    rules = policy({"review": 0.1, "block": 0.5}, lists)
    [code] = rules.decide(np.array([probability]), rows, np.array([hits], dtype=np.uint32)).tolist()
    return code


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.0, ALLOW),
        (np.nextafter(0.1, 0), ALLOW),
        (0.1, REVIEW),
        (np.nextafter(0.5, 0), REVIEW),
        (0.5, BLOCK),
        (1.0, BLOCK),
    ],
)
def test_a_threshold_is_reached_at_its_own_value(probability, expected):
    """At least the threshold: one ulp below it is not."""
    assert decide(probability) == expected


@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize(("name", "expected"), [("sanctioned", BLOCK), ("scam", REVIEW), ("exchange", ALLOW)])
def test_lists_decide_on_either_side(shift, name, expected):
    """The low half of a hit is the sender's, the high half the recipient's; both count alike."""
    assert decide(0.0, hits=1 << LISTS.names.index(name) << shift) == expected


def test_a_list_never_lowers_a_decision():
    """What the model blocks stays blocked when a list would only review."""
    assert decide(0.9, hits=1 << LISTS.names.index("scam")) == BLOCK


def test_an_imitated_recipient_is_reviewed_and_explained():
    """Address poisoning is a rule: no label the model learns from shows it."""
    row = np.zeros(schema.N_FEATURES, dtype=np.float32)
    row[schema.index("to_imitates")] = 2
    [(feature, value, sentence)] = policy({"review": 0.1, "block": 0.5}, None).rules(row)

    assert decide(0.0, imitates=2) == REVIEW
    assert (feature, value) == ("to_imitates", 2.0)
    assert "2" in sentence


def test_a_recipient_paid_before_imitates_nobody():
    """Once a look-alike is planted, the genuine recipient resembles it: whom the sender has paid is not suspected."""
    row = np.zeros(schema.N_FEATURES, dtype=np.float32)
    row[schema.index("to_imitates")], row[schema.index("pair_count")] = 1, 0.4
    rules = policy({"review": 0.1, "block": 0.5}, None)

    assert rules.decide(np.zeros(1), row[None], np.zeros(1, dtype=np.uint32)).tolist() == [ALLOW]
    assert rules.rules(row) == []


def test_without_lists_no_hit_means_anything():
    """A service without lists decides by the model and the rules alone."""
    assert decide(0.0, hits=0xFFFFFFFF, lists=None) == ALLOW


def test_decisions_rise_in_severity():
    """Codes are compared as numbers."""
    assert [DECISIONS[code] for code in (ALLOW, REVIEW, BLOCK)] == ["allow", "review", "block"]
