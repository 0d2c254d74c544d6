"""The HTTP server: probes, what runs here, and the check of a withdrawal before it is signed."""

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from features import schema
from features.errors import RejectedError, UsageError
from features.transaction import Transaction, pack, records
from service import http as server
from service import openapi, simulator, withdrawal
from service.codec import decode_score
from service.pipeline import Message, Pipeline
from service.settings import Settings
from service.withdrawal import Withdrawal
from tests import sites
from tests.sites import TOKEN, WITHDRAWAL, ask


@pytest.fixture(scope="module")
def checking(small_model: Path) -> Pipeline:
    return sites.pipeline(small_model, review=0.0)


@pytest.fixture(scope="module")
def url(checking: Pipeline) -> Iterator[str]:
    with sites.site(checking) as address:
        yield address


def past(pipeline: Pipeline) -> bytes:
    return b"".join(array.tobytes() for _, array in sorted(pipeline.accounts.arrays().items()))


def test_a_check_says_what_the_stream_would_say(small_model: Path) -> None:
    """The answer to a withdrawal is the score that the same transaction gets as the next one of the stream."""
    made = sites.pipeline(small_model, review=0.0)
    value = msgspec.json.decode(simulator.messages(3, 501)[500])
    asked = {name: value[name] for name in ("from_address", "to_address", "value", "input", "block_timestamp")}
    with sites.site(made) as address:
        told = ask(f"{address}/v1/score", asked).json
    value.pop("receipt_status", None)
    stream = made.process([Message(json.dumps(value).encode(), None, "t", 0, 500, 0)], now_ms=0)
    [(_, scored)] = stream.scores
    score = decode_score(scored)

    assert told["score"] == score.score
    assert (told["decision"], told["status"]) == (score.decision, "checked")
    assert told["reasons"] == msgspec.to_builtins(score.reasons) != []
    assert told["model"] == json.loads(bytes(score.model))
    assert (told["schema"], told["block_timestamp"]) == (schema.FINGERPRINT, value["block_timestamp"])


def test_an_open_breaker_holds_a_check_and_does_not_count_it(small_model: Path) -> None:
    """While too much of the stream is flagged a check is `review` at most; checks alone never open the breaker."""
    made = sites.pipeline(small_model, n=10, review=0.0, block=0.0)
    body = json.dumps(WITHDRAWAL).encode()

    def decided() -> tuple[str, bool]:
        told = json.loads(withdrawal.check(made, body, chain_id=1, now_s=0, schema="s"))
        return told["decision"], told["is_held"]

    before = [decided() for _ in range(2_000)]
    values = simulator.messages(3, 1_000)
    made.process([Message(value, None, "t", 0, i, 0) for i, value in enumerate(values)], now_ms=0)

    assert set(before) == {("block", False)}
    assert decided() == ("review", True)


@pytest.mark.parametrize("n", [0, 500], ids=["empty past", "past"])
def test_a_check_changes_no_byte_of_the_past(small_model: Path, n: int) -> None:
    """Known and unknown addresses, ether, tokens and creations are judged, and the whole state stays as it was."""
    made = sites.pipeline(small_model, n=n)
    known = msgspec.json.decode(simulator.messages(3, 1)[0])
    before = past(made)
    asked = [
        WITHDRAWAL,
        WITHDRAWAL | {"from_address": known["from_address"], "to_address": known["to_address"]},
        WITHDRAWAL | {"to_address": None, "input": "0x60"},
        WITHDRAWAL | {"token_address": "0x" + "3c" * 20},
        WITHDRAWAL | {"block_timestamp": 4_000_000_000},
    ]
    for each in asked:
        withdrawal.check(made, json.dumps(each).encode(), chain_id=1, now_s=1_600_000_000, schema="s")

    assert past(made) == before


def test_the_past_does_change_when_it_is_observed(small_model: Path) -> None:
    """What the test above compares moves with a transaction of the stream."""
    made = sites.pipeline(small_model)
    before = past(made)
    made.process([Message(simulator.messages(3, 501)[500], None, "t", 0, 500, 0)], now_ms=0)

    assert past(made) != before


def test_checks_beside_the_stream_change_no_score(small_model: Path) -> None:
    """A stream that is checked from another thread all the while gives the same scores as one that is not."""
    values = simulator.messages(5, 4_000)

    def run(made: Pipeline) -> list[bytes]:
        scores = []
        for start in range(0, len(values), 50):
            batch = [Message(value, None, "t", 0, start + i, 0) for i, value in enumerate(values[start : start + 50])]
            scores += [score for _, score in made.process(batch, now_ms=0).scores]
        return scores

    alone, together = sites.pipeline(small_model), sites.pipeline(small_model)
    expected = run(alone)
    is_over, counts = threading.Event(), [0]

    def check() -> None:
        while not is_over.is_set():
            body = json.dumps(WITHDRAWAL).encode()
            withdrawal.check(together, body, chain_id=1, now_s=1_600_000_000, schema="s")
            counts[0] += 1

    thread = threading.Thread(target=check)
    thread.start()
    try:
        found = run(together)
    finally:
        is_over.set()
        thread.join()

    assert found == expected
    assert counts[0] > 0
    assert past(together) == past(alone)


def test_what_a_withdrawal_becomes() -> None:
    """Addresses are in lower case, strings of digits are numbers, and the moment of asking stands in for a time."""
    asked = Withdrawal(from_address="0x" + "AB" * 20, to_address=None, value=str(2**255), input="0xAA")
    tx = withdrawal.transaction(asked, chain_id=5, now_s=1_700_000_000)

    assert tx == Transaction(
        "transaction", "", None, 5, 0, None, 1_700_000_000, None, "0x" + "ab" * 20, None, 2**255, input="0xaa"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"value": str(2**256)}, "value exceeds"),
        ({"token_address": "0x" + "3c" * 20, "to_address": None}, "creates no contract"),
        ({"token_address": "0x" + "3c" * 20, "input": "0x"}, "input is set with token_address"),
    ],
)
def test_a_withdrawal_that_cannot_be_is_refused(change: dict[str, str], told: str) -> None:
    """What the types allow and no chain does is told in words."""
    asked = msgspec.convert(WITHDRAWAL | change, Withdrawal)
    with pytest.raises(RejectedError, match=told):
        withdrawal.transaction(asked, chain_id=1, now_s=0)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "no JSON"),
        (b"\xff", 400, "no JSON"),
        (b'{"x":' + b"[" * 100_000, 422, "unknown field"),
        (b'{"value":' + b"[" * 100_000, 422, "value"),
        ([], 422, "Expected `object`"),
        ({}, 422, "from_address"),
        (WITHDRAWAL | {"to_adress": None}, 422, "unknown field `to_adress`"),
        (WITHDRAWAL | {"from_address": "0x1"}, 422, "from_address"),
        (WITHDRAWAL | {"from_address": WITHDRAWAL["from_address"] + "\n"}, 422, "from_address"),
        (WITHDRAWAL | {"value": -1}, 422, "value"),
        (WITHDRAWAL | {"value": str(2**256)}, 422, "2^256"),
        (WITHDRAWAL | {"input": "0xabc"}, 422, "input"),
        (WITHDRAWAL | {"block_timestamp": 0}, 422, "block_timestamp"),
        (b" " * (server.BODY_BYTES_MAX + 1), 413, str(server.BODY_BYTES_MAX)),
    ],
)
def test_a_request_that_cannot_be_answered_gets_a_problem_document(url: str, body, status: int, told: str) -> None:
    """Status, kind of content and detail say what is wrong."""
    reply = ask(f"{url}/v1/score", body)

    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
    assert set(reply.json) == {"type", "title", "status", "detail"}
    assert reply.json["status"] == status
    assert told in reply.json["detail"]


def test_a_body_of_another_kind_is_refused(url: str) -> None:
    """A form that a browser would send is not taken for JSON."""
    assert ask(f"{url}/v1/score", WITHDRAWAL, kind="text/plain").status == 415


def test_unknown_paths_and_methods_are_problems_too(url: str) -> None:
    """404 and 405 have the same form, and 405 names what is allowed."""
    missing, wrong = ask(f"{url}/none"), ask(f"{url}/v1/score")

    assert (missing.status, missing.json["title"]) == (404, "Not Found")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/info", "/v1/score"])
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "\xff" * 20])
def test_a_wrong_token_is_refused(url: str, path: str, token: str | None) -> None:
    """Only the whole token opens."""
    reply = ask(f"{url}{path}", WITHDRAWAL if path == "/v1/score" else None, token=token)

    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_without_a_token_nobody_may_check(checking: Pipeline) -> None:
    """An installation that names no token answers probes and metrics alone."""
    with sites.site(checking, token=None) as address:
        closed = [ask(f"{address}/v1/score", WITHDRAWAL), ask(f"{address}/info")]
        open_ = [ask(f"{address}{path}", token=None).status for path in ("/live", "/ready", "/metrics")]

    assert [reply.status for reply in closed] == [403, 403]
    assert open_ == [200, 200, 200]


def test_info_says_what_runs_and_shows_no_secret(url: str, checking: Pipeline) -> None:
    """Version, model, schema and settings; neither token nor password."""
    reply = ask(f"{url}/info")

    assert reply.json["schema"] == schema.FINGERPRINT
    assert reply.json["model"]["digest"] == checking.judge.scorer.model.digest
    assert reply.json["settings"]["http_token"] == reply.json["settings"]["sasl_password"] == "***"
    assert TOKEN.encode() not in reply.body
    assert b"hunter22" not in reply.body


def test_ready_gives_its_reasons_and_nothing_is_checked_meanwhile(checking: Pipeline) -> None:
    """A standby lives, is not ready, says why, and refuses to check with a past that stands still."""
    with sites.site(checking, unready=("standby: another replica holds the place",)) as address:
        ready, live = ask(f"{address}/ready"), ask(f"{address}/live")
        check = ask(f"{address}/v1/score", WITHDRAWAL)

    assert (ready.status, ready.json["is_ready"]) == (503, False)
    assert ready.json["reasons"] == ["standby: another replica holds the place"]
    assert live.status == 200
    assert (check.status, check.headers["Retry-After"]) == (503, "1")
    assert "standby" in check.json["detail"]


def test_the_rate_has_a_limit(checking: Pipeline) -> None:
    """Beyond a second's burst the answer is 429 with when to come again; probes are not counted."""
    with sites.site(checking, http_requests_max=2.0) as address:
        replies = [ask(f"{address}/v1/score", WITHDRAWAL) for _ in range(40)]
        ready = ask(f"{address}/ready")
    refused = [reply for reply in replies if reply.status == 429]

    assert [reply.status for reply in replies[:2]] == [200, 200]
    assert refused
    assert refused[0].headers["Retry-After"] == "1"
    assert ready.status == 200


def test_the_bucket_fills_by_time_and_never_over() -> None:
    """Two a second: two at once, none then, one after half a second, two after an hour."""
    bucket = server.Bucket(2.0, at_s=0.0)
    times = (0.0, 0.0, 0.0, 0.5, 0.5, 3600.0, 3600.0, 3600.0)

    assert [bucket.admit(at_s) for at_s in times] == [True, True, False, True, False, True, True, False]


def test_a_body_that_never_arrives_ends_the_wait(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that announces more than it sends does not hold its connection for ever."""
    monkeypatch.setattr(server, "BODY_SECONDS_MAX", 0.05)
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.putrequest("POST", "/v1/score")
        for name, value in (("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json")):
            connection.putheader(name, value)
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        response = connection.getresponse()
        body = json.loads(response.read())
    finally:
        connection.close()

    assert (response.status, body["title"]) == (408, "Request Timeout")


def test_the_document_is_served_and_names_every_route(url: str, checking: Pipeline) -> None:
    """What is described is what is routed."""
    described = ask(f"{url}/openapi.json", token=None).json
    site = server.Site(
        Settings(),
        None,
        unready=list,
        pipeline=lambda: checking,  # type: ignore[arg-type]
    )
    routed = {(route.resource.canonical, route.method.lower()) for route in site.application().router.routes()}

    assert described == openapi.document()
    told = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert routed - told == {("/openapi.json", "get")}
    assert told - routed == set()


def test_a_taken_port_is_a_clear_error(checking: Pipeline) -> None:
    """A port in use is refused with the address and the settings to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site = server.Site(Settings(), None, unready=list, pipeline=lambda: checking)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: .*in use; set metrics_host and metrics_port"):
            server.serve(site, host="127.0.0.1", port=port)


@pytest.mark.parametrize(("host", "n_warnings"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
def test_listening_for_others_is_told(host: str, n_warnings: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever opens the server to the network reads that it is not encrypted."""
    site = server.Site(Settings(), None, unready=list, pipeline=lambda: None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "falconet.http"):
        server.serve(site, host=host, port=0).close()

    assert len(caplog.records) == n_warnings


def test_a_row_without_observing_is_the_row_of_the_stream(small_model: Path) -> None:
    """The kernel emits the same bits whether or not the transaction becomes past."""
    made = sites.pipeline(small_model)
    tx = withdrawal.transaction(msgspec.convert(WITHDRAWAL, Withdrawal), chain_id=1, now_s=0)
    packed = records([pack(tx)])
    looked = made.judge.scorer.score(made.accounts, packed, observing=False)
    seen = made.judge.scorer.score(made.accounts, packed)

    assert looked.rows.tobytes() == seen.rows.tobytes()
