"""What the service promises, as code, and the rules that tell how fast the promise is being used up.

Each objective allows a share of bad events over 30 days: its error budget. The rules follow the multi-window
multi-burn-rate method (Google, The Site Reliability Workbook, 2018, chapter 5): an alert needs a long window, so that
what it tells matters, and a short one, so that it ends soon after the trouble does.
"""

from typing import NamedTuple

PERIOD_DAYS = 30

BY = "by (job, chain)"
"""What every figure is told by: one service stands for one chain."""

LATENCY_SECONDS_MAX = 0.1
"""A bucket's bound. The p99 at 2,000 transactions a second is 25 ms (docs/bench.json): four times that is trouble."""

LAG_RECORDS_AT_REST = 1_000
"""Records that may stay unread while the service keeps up: the batch at hand and the markers of transactions."""

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


class Burn(NamedTuple):
    """A speed at which the budget burns, and what it calls for."""

    severity: str
    factor: float
    """Times the speed that uses the budget up in exactly the period."""
    long: str
    short: str


BURNS = (
    Burn("page", 14.4, "1h", "5m"),  # 2 % of the budget in an hour: 0.02 * 30 * 24 / 1
    Burn("page", 6.0, "6h", "30m"),  # 5 % in six hours
    Burn("ticket", 3.0, "1d", "2h"),  # 10 % in a day
    Burn("ticket", 1.0, "3d", "6h"),  # 10 % in three days
)


class Objective(NamedTuple):
    """One promise."""

    name: str
    alert: str
    share: float
    """Of good events."""
    sentence: str
    errors: str
    """The share of bad events in a window, which `WINDOW` stands for."""

    @property
    def budget(self) -> float:
        """The share of events that may be bad."""
        return round(1.0 - self.share, 9)


OBJECTIVES = (
    Objective(
        "latency",
        "FalconetLatencyBudget",
        0.99,
        "99 % of transactions have their score committed within 100 ms of their Kafka timestamp.",
        f'1 - sum {BY} (rate(falconet_end_to_end_seconds_bucket{{le="{LATENCY_SECONDS_MAX}"}}[WINDOW]))\n'
        f"  / sum {BY} (rate(falconet_end_to_end_seconds_count[WINDOW]))",
    ),
    Objective(
        "completeness",
        "FalconetCompletenessBudget",
        0.999,
        "99.9 % of messages get a score; the rest went to the dead-letter topic.",
        f'sum {BY} (rate(falconet_transactions_total{{outcome="rejected"}}[WINDOW]))\n'
        f'  / sum {BY} (rate(falconet_transactions_total{{outcome!="skipped"}}[WINDOW]))',
    ),
    Objective(
        "availability",
        "FalconetAvailabilityBudget",
        0.999,
        "99.9 % of the time one replica answers and either commits transactions or has none to wait for.",
        "1 - avg_over_time(falconet:available:bool[WINDOW])",
    ),
)


def errors(window: str) -> str:
    """Return the name of the recorded share of bad events over a window."""
    return f"falconet:slo_errors:ratio_rate{window}"


class Record(NamedTuple):
    """One recording rule."""

    name: str
    expr: str
    labels: dict[str, str]


LAG_SECONDS = "falconet:lag:seconds"
ALERT_SHARE = "falconet:alert_share:ratio_rate30m"
BUDGET_BURN = "falconet:budget_burn:ratio_rate1h"

SHORTHANDS = (
    Record(
        "falconet:available:bool",
        f"""max {BY} (
  up{{job="falconet"}}
  and on (instance) (
    sum by (instance) (rate(falconet_transactions_total[1m])) > 0
    or sum by (instance) (falconet_consumer_lag_records) < {LAG_RECORDS_AT_REST}
  )
)
or max {BY} (up{{job="falconet"}}) * 0""",
        {},
    ),
    Record(
        LAG_SECONDS,
        f"""sum {BY} (falconet_consumer_lag_records)
  / clamp_min(sum {BY} (rate(falconet_transactions_total[5m])), 1)""",
        {},
    ),
    Record(
        ALERT_SHARE,
        f"""sum {BY} (rate(falconet_decisions_total{{decision!="allow"}}[30m]))
  / sum {BY} (rate(falconet_decisions_total[30m]))""",
        {},
    ),
)


def records() -> list[Record]:
    """Return every recording rule, each after those it reads."""
    ratios = [
        Record(errors(window), objective.errors.replace("WINDOW", window), {"slo": objective.name})
        for objective in OBJECTIVES
        for window in WINDOWS
    ]
    burns = [
        Record(BUDGET_BURN, f'{errors("1h")}{{slo="{each.name}"}} / {each.budget}', {"slo": each.name})
        for each in OBJECTIVES
    ]
    return [*SHORTHANDS, *ratios, *burns]
