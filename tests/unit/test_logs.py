"""Log lines: one object each, in which a value stays a value, and no more of them than tell something."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.progress import progress
from service import logs, serve
from service.settings import Settings
from tests.fakes import FakeKafka
from tests.unit.test_reorg import make_loop, make_pipeline

log = logging.getLogger("falconet.test")

FORGED = 'x\n{"level":"error","event":"forged"}\r\n2026-11-23T00:00:00.000+00:00 ERROR falconet forged'


@contextlib.contextmanager
def begun(form: logs.Form, level: logs.Level = "info", *, is_terminal: bool = False) -> Iterator[io.StringIO]:
    """Begin logging as a process does, which has none of pytest's handlers, and yield what is written."""
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        logs.begin(form, level, stream=stream)
        yield stream
    finally:
        root.handlers = before


def logged(form: logs.Form, *calls: tuple[str, *tuple[object, ...]]) -> list[str]:
    """Return the lines that calls of a logger leave, each a template with its values."""
    with begun(form) as stream:
        for text, *values in calls:
            log.info(text, *values)
    return stream.getvalue().splitlines()


def test_progress_of_a_start_is_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A collector reads objects alone: nothing else goes to standard error."""
    with begun("json") as stream, progress(serve._log_progress) as tell:
        for n_done in (0, 50, 100):
            tell("snapshot bytes", n_done, 100)

    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(each["event"], each["stage"], each["n_done"], each["n"]) for each in found] == [
        ("recovering", "snapshot bytes", 0, 100),
        ("recovering", "snapshot bytes", 100, 100),
    ]
    assert capsys.readouterr().err == ""


def test_json_line_has_event_and_fields() -> None:
    """Names come from the template, values keep their types, and what JSON has not is a string."""
    call = ("state saved path=%s offsets=%s unsettled=%d in_s=%.2f", Path("/s"), {0: 5}, 2, 0.125)
    [line] = logged("json", call)

    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "logger": "falconet.test",
        "event": "state saved",
        "message": "state saved path=/s offsets={0: 5} unsettled=2 in_s=0.12",
        "path": "/s",
        "offsets": {"0": 5},
        "unsettled": 2,
        "in_s": 0.125,
    }


def test_settings_are_an_object_in_a_line() -> None:
    """One value that is an object stays one, lists and nothing in it included."""
    [line] = logged("json", ("settings effective=%s", {"topics": ("a", "b"), "config": None}))

    assert json.loads(line)["effective"] == {"topics": ["a", "b"], "config": None}


@pytest.mark.parametrize("form", ["json", "text"])
def test_value_forges_no_line(form: logs.Form) -> None:
    """Line breaks and quotes in a value end neither the line nor the field."""
    lines = logged(form, ("outage retried_for_s=%g error=%s", 60.0, FORGED), ("drift off: %s", FORGED))

    assert len(lines) == 2
    if form == "json":
        assert [json.loads(line)["event"] for line in lines] == ["outage", "drift off"]
        assert json.loads(lines[0])["error"] == json.loads(lines[1])["detail"] == FORGED


def test_repeated_event_is_held_back_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a minute an event has so many lines; the first of the next minute says how many more there were."""
    now_s = [1_000.0]
    monkeypatch.setattr(logging.time, "time", lambda: now_s[0])
    with begun("json") as stream:
        for _ in range(logs.LINES_PER_MINUTE + 7):
            log.warning("node %s", "slow")
        log.warning("another")
        now_s[0] += logs.MINUTE_SECONDS
        log.warning("node %s", "slow")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines].count("node") == logs.LINES_PER_MINUTE + 1
    assert lines[-2]["event"] == "another"
    assert lines[-1]["suppressed"] == 7


def test_level_and_terminal_decide() -> None:
    """Below the level nothing is written; `auto` is plain on a terminal and JSON elsewhere."""
    with begun("auto", "warning", is_terminal=True) as terminal:
        log.info("not this")
        log.warning("but this n=%d", 1)
    with begun("auto") as pipe:
        log.info("not a terminal")

    assert terminal.getvalue().endswith(" WARNING falconet.test but this n=1\n")
    assert terminal.getvalue().count("\n") == 1
    assert json.loads(pipe.getvalue())["event"] == "not a terminal"


def test_settings_hold_no_secret_in_a_line() -> None:
    """What is echoed at start is masked before it is logged."""
    shown = json.dumps(Settings(sasl_password="sesame", ssl_key_password="open").effective())

    assert "sesame" not in shown
    assert '"open"' not in shown


def test_no_line_for_a_transaction(small_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many transactions come, good and bad, serving them is silent."""
    from service import simulator

    kafka = FakeKafka([*simulator.messages(3, 2_000), *[b"{"] * 500])
    # Simulated traffic opens the circuit breaker of the small model, and that is an event.
    loop = make_loop(kafka, make_pipeline(small_model, depth=0), batch_records_max=500)
    with caplog.at_level(logging.DEBUG, "falconet"):
        loop.run()

    assert [str(record.msg).split(",")[0] for record in caplog.records] == ["circuit breaker opened"]
