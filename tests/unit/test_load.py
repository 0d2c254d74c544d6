"""What the overload and the soak send, and how they judge what they saw."""

from itertools import islice

import pytest

from features.errors import RejectedError
from models import plots
from service.codec import Decoder
from tests.bench import bench_overload, bench_soak
from tests.bench.load import BAD, Sample, Stream

DECODER = Decoder(chain_id=1, message_bytes_max=1 << 20)


def seen(**changes: float) -> list[Sample]:
    """Return forty steady looks, the named measures growing by so much at each."""
    steady = {"resident_mib": 300.0, "files": 20.0, "threads": 8.0, "p50_s": 0.01, "p99_s": 0.05}
    return [
        Sample(
            5.0 * i,
            steady["resident_mib"] + i * changes.get("resident_mib", 0.0),
            int(steady["files"] + i * changes.get("files", 0.0)),
            int(steady["threads"] + i * changes.get("threads", 0.0)),
            5_000.0 * i,
            0.0,
            0.0,
            100.0,
            0.0,
            steady["p50_s"] + i * changes.get("p50_s", 0.0),
            steady["p99_s"],
        )
        for i in range(40)
    ]


def test_streams_are_what_they_say() -> None:
    """A stream is the same every time; the hot one has one sender, the distinct one no address twice."""
    ordinary, hot, distinct = (list(islice(Stream(kind).values(), 500)) for kind in ("ordinary", "hot", "distinct"))
    senders = {DECODER.decode(value).from_address for value in hot}
    met = [address for value in distinct for address in _sides(value)]

    assert ordinary == list(islice(Stream("ordinary").values(), 500))
    assert ordinary[300:] == list(islice(Stream("ordinary").values(300), 200))
    assert len(senders) == 1
    assert len(set(met)) == len(met) == 1_000


def _sides(value: bytes) -> tuple[str, str]:
    tx = DECODER.decode(value)
    assert tx.to_address is not None
    return tx.from_address, tx.to_address


def test_bad_messages_are_bad_and_evenly_spread() -> None:
    """Of every ten messages three are bad, and the codec rejects each."""
    values = list(islice(Stream("ordinary", 0.3).values(), 1_000))

    assert {values[i : i + 10].count(BAD) for i in range(0, 1_000, 10)} == {3}
    with pytest.raises(RejectedError, match="JSON"):
        DECODER.decode(BAD)


def test_lost_doubled_and_disordered_scores_are_told() -> None:
    """Each of the three is counted for what it is."""

    def told(found: list[int]) -> list[float]:
        return [figure.value for figure in bench_overload._order(found, 4)]

    assert told([0, 1, 2, 3]) == [4, 0, 0]
    assert told([0, 1, 3]) == [3, 1, 0]
    assert told([0, 1, 1, 2, 3]) == [5, 1, 1]
    assert told([0, 2, 1, 3]) == [4, 0, 1]


@pytest.mark.parametrize("name", ["resident memory", "open files", "threads", "end to end, p50"])
def test_what_grows_is_not_flat(name: str) -> None:
    """A steady measure has the ratio 1, a growing one exceeds its limit."""
    measure = {"resident memory": "resident_mib", "open files": "files", "end to end, p50": "p50_s"}.get(name, name)
    step = {"resident_mib": 2.0, "p50_s": 0.001}.get(measure, 1.0)

    def ratio(samples: list[Sample]) -> tuple[float, float]:
        [figure] = [each for each in bench_soak.flat(samples) if each.name.startswith(name) and "/" in each.name]
        return figure.value, float(figure.target.removeprefix("≤ "))

    assert ratio(seen())[0] == 1
    value, limit = ratio(seen(**{measure: step}))
    assert value > limit


def test_pictures_are_the_same_bytes_every_time() -> None:
    """The same looks give the same pictures."""
    samples = seen()
    first = plots.svg(bench_soak.picture(samples, capacity_share="half the capacity"))
    second = plots.svg(bench_overload.picture(samples, offered=2_000.0, until_s=100.0))

    assert first == plots.svg(bench_soak.picture(samples, capacity_share="half the capacity"))
    assert second == plots.svg(bench_overload.picture(samples, offered=2_000.0, until_s=100.0))
    assert b"open files" in first
    assert b"offered" in second
