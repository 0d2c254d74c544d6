"""The target of the coverage-guided fuzzer, run by `tests.fuzz` with libFuzzer's options."""

import sys

import atheris

# Imported before anything is instrumented: numba compiles what it finds in a function, and knows no atheris.
import models.scorer  # noqa: F401
import service.breaker
import service.metrics
import service.policy  # noqa: F401

with atheris.instrument_imports(include=["service.codec", "service.pipeline"]):
    from tests.fuzz.harness import Harness

PAST_EVERY = 100_000
"""Cases between two looks at the account table."""

harness = Harness()


def test_one(data: bytes) -> None:
    """Run one case."""
    harness.batch([data])
    if harness.n_cases % PAST_EVERY == 0:
        harness.check_past()


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
