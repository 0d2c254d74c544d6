"""What the demo shows: a live screen on a terminal, plain lines elsewhere, and the summary at the end."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from service.scrape import Latency, Page
from service.tally import Found, Scored, Tally

if TYPE_CHECKING:
    from rich.console import RenderableType

STAGES = ("decode", "features", "score", "encode", "produce")
KIND_TITLES = {
    "phishing": "phishing",
    "address_poisoning": "address poisoning",
    "approval_drain": "approval drain",
    "peel_chain": "peel chain",
    "sweep": "sweep (stolen keys)",
}


@dataclass
class Moment:
    """Everything a view is drawn from."""

    tally: Tally
    elapsed_s: float
    sent_per_s: float
    scored_per_s: float
    page: Page | None
    """Latencies since the first score, None before the first reading."""

    model: str = ""
    """Name and version of the model that scores."""

    def latency(self, name: str, label: str = "") -> Latency:
        """Return a histogram of the service, empty before the first reading."""
        empty = Latency((), ())
        return empty if self.page is None else self.page.latencies.get((f"falconet_{name}", label), empty)


def duration(seconds: float | None) -> str:
    """Return a duration in the unit that suits it, to two digits.

    >>> duration(0.0000123), duration(0.0123), duration(None)
    ('12 µs', '12 ms', '-')
    """
    if seconds is None:
        return "-"
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            value = seconds * scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.1f} s"


def pair(latency: Latency) -> str:
    """Return a histogram's p50 and p99."""
    return f"p50 {duration(latency.quantile(0.5))}, p99 {duration(latency.quantile(0.99))}"


def line(moment: Moment) -> str:
    """Return one plain line of progress."""
    tally = moment.tally
    return (
        f"{moment.elapsed_s:5.1f} s  sent {tally.n_sent:,} ({moment.sent_per_s:,.0f}/s)  "
        f"scored {tally.n_scored:,} ({moment.scored_per_s:,.0f}/s)  lag {tally.n_open:,}  "
        f"alerts {sum(tally.decisions.values()) - tally.decisions['allow']:,}  "
        f"decision {pair(moment.latency('decision_seconds'))}"
    )


def alert(scored: Scored, tally: Tally) -> str:
    """Return an alert on one line: the decision, the score, who pays whom, and the first reason."""
    lists = ", ".join(f"{hit.side} is on list {hit.list}" for hit in scored.list_hits)
    because = lists or (scored.reasons[0].sentence if scored.reasons else "no reason given")
    kind = tally.kind(scored.id)
    return (
        f"{scored.decision:<6} {scored.score:5.3f}  {_short(scored.from_address)} -> {_short(scored.to_address)}  "
        f"{because}" + (f"  [{KIND_TITLES[kind]}]" if kind is not None else "")
    )


def screen(moment: Moment) -> "RenderableType":
    """Return the live screen."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    tally = moment.tally
    flow = Table.grid(padding=(0, 2))
    flow.add_row("sent", f"{tally.n_sent:,}", f"{moment.sent_per_s:,.0f}/s")
    flow.add_row("scored", f"{tally.n_scored:,}", f"{moment.scored_per_s:,.0f}/s")
    flow.add_row("lag", f"{tally.n_open:,}")
    flow.add_row("rejected", f"{tally.n_rejected:,}")
    for decision, n in sorted(tally.decisions.items()):
        flow.add_row(decision, f"{n:,}")
    latencies = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("latency per transaction", "p50", "p99"):
        latencies.add_column(column, justify="left" if column.startswith("latency") else "right")
    for title, latency in _latencies(moment):
        latencies.add_row(title, duration(latency.quantile(0.5)), duration(latency.quantile(0.99)))
    # Side by side, so that all of it fits on 24 lines: what does not fit is cut off.
    halves = Table.grid(padding=(0, 4))
    halves.add_row(flow, latencies)
    alerts = Text("\n".join(alert(scored, tally) for scored in reversed(tally.newest)) or "none so far")
    alerts.no_wrap = True
    alerts.overflow = "ellipsis"
    title = f"falconet demo  {moment.elapsed_s:.0f} s  {moment.model}"
    return Panel(Group(halves, "", "newest alerts", alerts), title=title)


class Shown(Protocol):
    """Where a run is shown; the `with` block spans the time while it moves."""

    def say(self, text: str) -> None:
        """Write lines that stay, outside of the block."""

    def show(self, moment: Moment) -> None:
        """Show the state of the run."""

    def __enter__(self) -> "Shown": ...
    def __exit__(self, *_: object) -> None: ...


def shown() -> Shown:
    """Return the live screen on a terminal, plain lines where the output is piped."""
    return Screen() if sys.stdout.isatty() else Lines()


class Lines:
    """Plain lines without any control character, for a pipe or a file."""

    SECONDS = 2.0
    """Between two lines."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Write and flush, for whoever reads the pipe meanwhile."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def show(self, moment: Moment) -> None:
        """Write a line and the newest alert, now and then."""
        if moment.elapsed_s >= self._next_s:
            self._next_s = moment.elapsed_s + self.SECONDS
            self.say(line(moment))
            if moment.tally.newest:
                self.say(f"         {alert(moment.tally.newest[-1], moment.tally)}")


class Screen:
    """A live screen on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live: Any = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Write as it is: a bracket is no markup."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, moment: Moment) -> None:
        """Redraw."""
        self._live.update(screen(moment), refresh=True)


def _latencies(moment: Moment) -> list[tuple[str, Latency]]:
    rows = [(stage, moment.latency("stage_seconds", stage)) for stage in STAGES]
    rows.append(("decision: poll to producer", moment.latency("decision_seconds")))
    rows.append(("end to end: sent to committed", moment.latency("end_to_end_seconds")))
    rows.append(("inference: student, serves", moment.latency("inference_seconds", "student")))
    rows.append(("inference: teacher, in shadow", moment.latency("inference_seconds", "teacher")))
    return rows


def summary(moment: Moment, *, source: str, is_simulated: bool, n_listed: int) -> str:
    """Return the closing account.

    Args:
        moment: The state at the end.
        source: Where the transactions came from, in words.
        is_simulated: Whether the truth is known.
        n_listed: Addresses on the list that the service was given.
    """
    tally = moment.tally
    lines = ["", *(_simulated_words(source, n_listed) if is_simulated else _real_words(source)), ""]
    lines.append(
        f"Sent {tally.n_sent:,}: scored {tally.n_scored:,}, rejected {tally.n_rejected:,}"
        + (f" ({tally.n_damaged:,} were damaged on purpose)" if tally.n_damaged else "")
        + f", without an answer {len(tally.unanswered()):,}."
    )
    if tally.n_repeated:
        lines.append(f"{tally.n_repeated:,} scores came twice: this broker shows readers what was aborted.")
    if tally.n_wrongly_rejected:
        lines.append(f"{tally.n_wrongly_rejected:,} of the rejected were whole transactions.")
    n_alerted = sum(tally.decisions.values()) - tally.decisions["allow"]
    if tally.n_alerts != n_alerted:
        lines.append(
            f"{tally.n_alerts:,} alerts stand on their topic beside {n_alerted:,} scores that are not `allow`."
        )
    lines.append(
        "Decisions: " + ", ".join(f"{decision} {n:,}" for decision, n in sorted(tally.decisions.items())) + "."
    )
    lines.append("")
    lines += _recall_lines(tally) if is_simulated else _alert_lines(tally)
    lines += ["", f"Latency per transaction over {moment.elapsed_s:.0f} s, from the service's histograms:"]
    lines += [f"  {title:<30} {pair(latency)}  (n {latency.n:,})" for title, latency in _latencies(moment) if latency.n]
    return "\n".join(lines)


def chain_summary(tally: Tally) -> str:
    """Return what became of the reorganisation."""
    return (
        f"Reorganised on the chain: {tally.n_orphaned:,} transactions and token transfers were orphaned after they had "
        f"been scored;\n{tally.n_retracted:,} scores were retracted, {tally.n_rescored:,} of them scored anew on the "
        f"new blocks, {tally.n_retracted - tally.n_rescored:,} stay retracted. Scores of what the chain does not hold: "
        f"{len(tally.vanished()):,}."
    )


def _simulated_words(source: str, n_listed: int) -> list[str]:
    return [
        f"This traffic was simulated ({source}): the recalls show that the path works, not how good the model is.",
        "The model was trained on real phishing that carries ether and, for 3 % of the weight, on other streams of",
        f"this simulator. The service knew {n_listed:,} of the frauds' addresses from a list, each from a time",
        "after its first fraud. Fraud is far more frequent here than on a real chain.",
    ]


def _real_words(source: str) -> list[str]:
    return [
        f"These were real transactions from {source}. What is fraud among them is not claimed here:",
        "the model may have been trained on them, and `falconet evaluate` measures it by the protocol.",
    ]


def _recall_lines(tally: Tally) -> list[str]:
    found = tally.found()
    lines = [
        f"  {'kind of fraud':<20} {'scored':>7} {'alerted':>8} {'recall':>7}   {'model':>6} {'rule':>6} {'list':>6}"
    ]
    for kind, title in KIND_TITLES.items():
        lines.append(_recall_line(title, found.get(kind, Found())))
    ordinary = found[None]
    per_thousand = 1000 * ordinary.n_alerted / ordinary.n_scored if ordinary.n_scored else 0.0
    lines.append("  Alerted by model, rule and list: one transaction may be in several of the three.")
    lines.append(
        f"False alerts: {ordinary.n_alerted:,} of {ordinary.n_scored:,} ordinary transactions, {per_thousand:.1f} in "
        f"1,000 (model {ordinary.n_by_model:,}, rule {ordinary.n_by_rule:,}, list {ordinary.n_by_list:,}; "
        f"blocked {ordinary.n_blocked:,})."
    )
    return lines


def _recall_line(title: str, found: Found) -> str:
    recall = f"{100 * found.n_alerted / found.n_scored:5.1f} %" if found.n_scored else "-"
    return (
        f"  {title:<20} {found.n_scored:>7,} {found.n_alerted:>8,} {recall:>7}   "
        f"{found.n_by_model:>6,} {found.n_by_rule:>6,} {found.n_by_list:>6,}"
    )


def _alert_lines(tally: Tally) -> list[str]:
    found = tally.found()[None]
    per_thousand = 1000 * found.n_alerted / found.n_scored if found.n_scored else 0.0
    return [f"Alerts: {found.n_alerted:,} of {found.n_scored:,} transactions, {per_thousand:.1f} in 1,000."]


def _short(address: str | None) -> str:
    return "new contract" if address is None else f"{address[:6]}…{address[-4:]}"
