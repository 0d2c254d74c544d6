"""What judges the faults: a verdict that sees each kind of harm, a proxy that does what it is told, a report."""

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.chaos import report
from tests.chaos.proxy import END_TRANSACTION, Proxy, proxy
from tests.chaos.report import Report, Row
from tests.chaos.verdict import Output, Record, compared

MESSAGES = [
    Record((0, 0), b"0", b'{"hash": "0xaa"}', {}),
    Record((0, 1), b"1", b'{"hash": "0xbb"}', {}),
    Record((0, 2), b"2", b'{"hash": "0xc', {}),
    Record((0, 3), b"3", None, {}),
]


def score(offset: int, name: str, *, decision: str = "allow", probability: float = 0.25, at: int = 1) -> Record:
    """Return a score as a reader finds it."""
    source = {"topic": "t", "partition": 0, "offset": offset}
    value = {"hash": name, "decision": decision, "score": probability, "source": source, "scored_at": at}
    return Record((0, 0), name.encode(), msgspec.json.encode(value), {})


def letter(value: bytes = b'{"hash": "0xc', reason: bytes = b"cut") -> Record:
    """Return the rejection of the message at offset 2."""
    return Record((0, 0), b"2", value, {"source_partition": b"0", "source_offset": b"2", "reason": reason})


FLAGGED = score(1, "0xbb", decision="review")
CALM = Output([score(0, "0xaa", at=7), score(1, "0xbb", decision="review", at=7)], [], [letter()])
GOOD = Output([score(0, "0xaa"), FLAGGED], [FLAGGED], [letter()])


def harm(found: Output) -> tuple[int, int, int, int]:
    """Return how many are lost, doubled, wrong and different."""
    verdict = compared(MESSAGES, found, CALM)
    return verdict.n_lost, verdict.n_doubled, verdict.n_wrong, verdict.n_different


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(GOOD, (0, 0, 0, 0), id="good"),
        pytest.param(GOOD._replace(scores=[FLAGGED]), (1, 0, 0, 1), id="lost score"),
        pytest.param(GOOD._replace(alerts=[]), (1, 0, 0, 0), id="lost alert"),
        pytest.param(GOOD._replace(letters=[]), (1, 0, 0, 1), id="lost rejection"),
        pytest.param(GOOD._replace(scores=[*GOOD.scores, score(0, "0xaa", at=9)]), (0, 1, 0, 0), id="doubled score"),
        pytest.param(GOOD._replace(alerts=[FLAGGED, FLAGGED]), (0, 1, 0, 0), id="doubled alert"),
        pytest.param(GOOD._replace(letters=[letter(), letter()]), (0, 1, 0, 0), id="doubled rejection"),
        pytest.param(GOOD._replace(scores=[score(0, "0xdd"), FLAGGED]), (0, 0, 1, 1), id="another's score"),
        pytest.param(GOOD._replace(letters=[letter(b"spoilt")]), (0, 0, 1, 1), id="spoilt rejection"),
        pytest.param(GOOD._replace(letters=[letter(reason=b"x")]), (0, 0, 0, 1), id="another reason"),
        pytest.param(
            GOOD._replace(scores=[score(0, "0xaa", probability=0.25 + 2**-54), FLAGGED]), (0, 0, 0, 1), id="last bit"
        ),
        pytest.param(GOOD._replace(alerts=[FLAGGED, score(0, "0xaa")]), (0, 0, 1, 0), id="alert of what is allowed"),
    ],
)
def test_verdict_sees_each_harm(found: Output, expected: tuple[int, int, int, int]) -> None:
    """Lost, doubled, wrong and different are told apart, to the last bit, and the time of scoring is none of them."""
    assert harm(found) == expected


def frame(kind: int, correlation: int, *, version: int = 3) -> bytes:
    """Return a request."""
    content = struct.pack(">hhi", kind, version, correlation) + b"rest"
    return struct.pack(">i", len(content)) + content


@pytest.fixture
def between() -> Iterator[Proxy]:
    """A proxy before a server that answers each frame with itself."""
    with socket.create_server(("127.0.0.1", 0)) as server, proxy() as made:
        made.target_port = server.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    accepted, _ = server.accept()
                except OSError:
                    return
                with accepted:
                    while content := accepted.recv(4096):
                        accepted.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        yield made
        server.shutdown(socket.SHUT_RDWR)


def ask(door: socket.socket, content: bytes) -> bytes:
    """Send a frame and return the content of the next one."""
    door.sendall(content)
    size = door.recv(4)
    return b"" if len(size) < 4 else door.recv(struct.unpack(">i", size)[0])


def is_broken(door: socket.socket, content: bytes) -> bool:
    """Send a frame and say whether the connection ends instead of answering."""
    try:
        return ask(door, content) == b""
    except (BrokenPipeError, ConnectionResetError):
        return True


def test_proxy_answers_with_errors_of_its_own(between: Proxy) -> None:
    """Only the kind that it was told, with that request's number and the code."""
    between.errors[END_TRANSACTION] = 53
    with socket.create_connection(("127.0.0.1", between.port), timeout=10) as door:
        passed = ask(door, frame(3, 1))
        refused = ask(door, frame(END_TRANSACTION, 2))
        old = ask(door, frame(END_TRANSACTION, 3, version=1))

    assert passed == frame(3, 1)[4:]
    assert refused == struct.pack(">ibihb", 2, 0, 0, 53, 0)
    assert old == struct.pack(">iih", 3, 0, 53)
    assert between.n_answered == 2


def test_proxy_swallows_an_answer_with_its_connection(between: Proxy) -> None:
    """The broker saw the request; the client sees a broken connection, and the next one works."""
    between.swallowing.add(END_TRANSACTION)
    with socket.create_connection(("127.0.0.1", between.port), timeout=10) as door:
        assert is_broken(door, frame(END_TRANSACTION, 1))
    with socket.create_connection(("127.0.0.1", between.port), timeout=10) as door:
        assert ask(door, frame(END_TRANSACTION, 2)) == frame(END_TRANSACTION, 2)[4:]

    assert between.n_swallowed == 1


def test_proxy_cuts_and_heals(between: Proxy) -> None:
    """A cut breaks what is open and refuses what comes, on a port that is the same afterwards."""
    with socket.create_connection(("127.0.0.1", between.port), timeout=10) as door:
        ask(door, frame(3, 1))
        between.cut()
        assert is_broken(door, frame(3, 2))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", between.port), timeout=10)
    between.heal()
    with socket.create_connection(("127.0.0.1", between.port), timeout=10) as door:
        assert ask(door, frame(3, 3)) == frame(3, 3)[4:]


def row(fault: str, **changes: object) -> Row:
    """Return a good row."""
    good = Row(fault, "does", "kafka-python", 3, 100, 98, 0, 0, 0, 0, 0, "the end", [1.0, 3.0, 2.0], "c", "d")
    return msgspec.structs.replace(good, **changes)


def test_report_keeps_what_was_not_repeated(tmp_path: Path) -> None:
    """A run of some faults replaces their rows, on the machine of the others; another machine begins anew."""
    path = tmp_path / "chaos.json"
    report.write(Report("here", [row("cut"), row("kill")]), path, ["kill", "cut"])
    report.write(Report("here", [row("kill", n_faults=9)]), path, ["kill", "cut"])

    kept = msgspec.json.decode(path.read_bytes(), type=Report)
    assert [(each.fault, each.n_faults) for each in kept.rows] == [("kill", 9), ("cut", 3)]
    report.write(Report("there", [row("kill")]), path, ["kill", "cut"])
    assert len(msgspec.json.decode(path.read_bytes(), type=Report).rows) == 1


@pytest.mark.parametrize("field", ["n_lost", "n_doubled", "n_wrong", "n_different"])
def test_any_harm_is_a_failure(field: str) -> None:
    """One of a kind is enough; where no order is promised there is no difference."""
    assert row("kill").is_good
    assert row("kill", n_different=None).is_good
    assert not row("kill", **{field: 1}).is_good
