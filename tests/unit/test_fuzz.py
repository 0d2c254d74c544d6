"""The fuzzers' harness in short: what once broke or might have, drawn messages, and any bytes at all."""

from itertools import islice
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import simulator
from tests.fuzz import drawn
from tests.fuzz.harness import Harness

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").iterdir())


@pytest.fixture(scope="module")
def harness() -> Harness:
    """One pipeline for all: what a message leaves behind must not break the next."""
    return Harness()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus_ends_as_one_thing_each(harness: Harness, path: Path) -> None:
    """Each case alone, and between two others in a batch."""
    raw = path.read_bytes()
    harness.batch([raw])

    assert len(harness.batch([b"{}", raw, None]).rejections) == 2


@pytest.mark.parametrize("seed", range(3))
def test_spoilt_messages_end_as_one_thing_each(harness: Harness, seed: int) -> None:
    """5,000 drawn messages in batches of any size; some of each kind of end, so that none is missed."""
    source, random = drawn.values(seed), Random(seed)
    n_scored = n_rejected = n_skipped = n_left = 0
    n_left = 5_000
    while n_left > 0:
        outputs = harness.batch(list(islice(source, random.choice((1, 7, 100, 500)))))
        n_scored += len(outputs.scores)
        n_rejected += len(outputs.rejections)
        n_skipped += outputs.n_skipped
        n_left -= len(outputs.scores) + len(outputs.rejections) + outputs.n_skipped
    harness.check_past()

    assert min(n_scored, n_rejected, n_skipped) > 50


def test_announcements_are_followed_or_refused() -> None:
    """An orphaned block within reach is taken back, one too deep is refused, and what stands behind either ends too."""
    harness = Harness()
    raw = simulator.messages(5, 400)
    newest = max(msgspec.json.decode(each)["block_number"] for each in raw)
    near, deep = (
        msgspec.json.encode(
            {
                "type": "orphaned_block",
                "block_number": n,
                "block_hash": "0x" + "ab" * 32,
                "block_timestamp": 1_700_000_000,
            }
        )
        for n in (newest, newest - 100)
    )
    harness.batch(raw)
    before = (harness.n_announced, harness.n_refused, harness.n_cases)
    harness.batch([near, b"{}", deep, b"{}", None])

    assert (harness.n_announced, harness.n_refused, harness.n_cases) == (before[0] + 1, before[1] + 1, before[2] + 5)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=300), st.text(max_size=100).map(str.encode)), max_size=5))
def test_any_bytes_end_as_one_thing_each(harness: Harness, values: list[bytes | None]) -> None:
    """No message is lost, doubled or raised."""
    harness.batch(values)


def test_harness_notices_what_goes_wrong(harness: Harness) -> None:
    """A lost message, one that ends twice, and bytes that were changed are each an error: the harness can fail."""
    values = list(islice(drawn.values(9), 50))
    outputs = harness.pipeline.process([], now_ms=0)
    with pytest.raises(AssertionError, match="not exactly one end each"):
        harness._check(values, outputs, 0)
