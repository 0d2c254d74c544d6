"""How the service's log lines look: JSON objects for a collector, plain lines for a terminal, none without end.

Every line is an event: its template names it and its fields, as in `log.info("outage over after_s=%.1f", age_s)`. A
value never becomes more than a value, whatever it holds: in JSON it is a string of its own, and in a plain line its
line breaks are escaped.
"""

import logging
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TextIO

import msgspec

Form = Literal["auto", "text", "json"]
Level = Literal["debug", "info", "warning", "error"]

LINES_PER_MINUTE = 30
"""Of one event: what repeats more often than this tells an operator nothing more."""

MINUTE_SECONDS = 60.0

DETAIL = "detail"
"""The field of a value that the template does not name."""

_PLACE = re.compile(r"(?:(\w+)=)?%[-+ #0]*\d*(?:\.\d+)?[sdgfr]")


class Limit(logging.Filter):
    """Lets so many lines of one event pass in a minute, and says with the next one how many it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[tuple[str, str], tuple[float, int]] = {}
        """Start of the minute and lines in it; the templates are in the program, so there are not many."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line passes."""
        key = record.name, str(record.msg)
        begun_s, n = self._events.get(key, (record.created, 0))
        n_held = 0
        if record.created - begun_s >= MINUTE_SECONDS:
            n_held, begun_s, n = max(0, n - LINES_PER_MINUTE), record.created, 0
        self._events[key] = begun_s, n + 1
        if n_held:
            record.suppressed = n_held
        return n < LINES_PER_MINUTE


class Text(logging.Formatter):
    """One plain line for each event, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; only a traceback has more than one."""
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_time(record)} {record.levelname} {record.name} {message}"
        if (n_held := getattr(record, "suppressed", 0)) != 0:
            line += f" suppressed={n_held}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class Json(logging.Formatter):
    """One JSON object for each event: time, level, logger, event, message, and the template's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event, names = template(str(record.msg))
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
            "message": record.getMessage(),
        }
        values = record.args if isinstance(record.args, tuple) else (record.args,) if record.args else ()
        line |= {name: _plain(value) for name, value in zip(names, values, strict=False) if name not in line}
        if (n_held := getattr(record, "suppressed", 0)) != 0:
            line["suppressed"] = n_held
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


@lru_cache
def template(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the event that a line's template names, and the names of its values in their order.

    >>> template("state saved path=%s in_s=%.2f")
    ('state saved', ('path', 'in_s'))
    >>> template("shadow off: %s has no %s")
    ('shadow off', ('detail', 'detail_2'))
    """
    names: list[str] = []
    first = len(text)
    for found in _PLACE.finditer(text):
        first = min(first, found.start())
        name = found[1] or DETAIL
        n_before = sum(each.split("_")[0] == DETAIL for each in names)
        names.append(f"{DETAIL}_{n_before + 1}" if name == DETAIL and n_before else name)
    return text[:first].rstrip(" :,"), tuple(names)


def begin(form: Form, level: Level, *, stream: TextIO | None = None) -> None:
    """Have everything logged from here on go to a stream, in the form and from the level that are given.

    Args:
        form: `auto` is `text` on a terminal and `json` elsewhere.
        level: The least.
        stream: None is standard error.
    """
    stream = stream or sys.stderr
    is_text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Text() if is_text else Json())
    handler.addFilter(Limit())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("falconet").setLevel(level.upper())
    # The library logs each retry of its own; what matters comes back as an error.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _plain(value: object) -> object:
    """Return a value as JSON has it; what JSON has not is a string."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)
