"""What the kernel makes part of the past, where a hand can check it."""

import math

import pytest

from features.observe import significant_digits


@pytest.mark.parametrize(
    ("amount", "digits"),
    [
        (1.0, 1),
        (0.5, 1),
        (3e-18, 1),
        (1e12, 1),
        (12.0, 2),
        (0.15, 2),
        (2.35, 3),
        (1_234.0, 4),
        (1.2345, 5),
        (1 / 3, 5),
        (0.99979, 5),
        (0.500000000000001, 1),
        (1.00002, 5),
        (9.999999999, 1),
    ],
)
def test_significant_digits_are_those_of_the_amount_in_ether(amount: float, digits: int) -> None:
    """A fee taken off a round amount shows, rounding in the last of 15 digits does not."""
    assert significant_digits(amount) == digits


@pytest.mark.parametrize("amount", [0.0, math.nan])
def test_nothing_has_no_digits(amount: float) -> None:
    """No amount, or one of unknown worth, has no digits to count."""
    assert math.isnan(significant_digits(amount))
