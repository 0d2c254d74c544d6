"""Every alert as code, with the series that prove that it fires and resolves."""

from deploy.prometheus import ingestion
from deploy.prometheus.conditions import PLACE, Alert, Condition, Proof
from deploy.prometheus.objectives import ALERT_SHARE, BURNS, BY, LAG_SECONDS, OBJECTIVES, Objective, errors

SNAPSHOT_SECONDS_MAX = 600
"""Ten times the default of `snapshot_seconds`: a restart replays ten minutes."""

BY_PARTITION = "by (job, chain, partition)"


_AT = 'job="falconet",chain="ethereum",instance="a:9464"'


def _burning(objective: Objective, severity: str, proof: Proof) -> Alert:
    """Return the alert on a budget that burns at the speeds of one severity."""
    any_of = tuple(
        tuple(
            Condition(f'{errors(window)}{{slo="{objective.name}"}}', f"> {burn.factor} * {objective.budget}")
            for window in (burn.long, burn.short)
        )
        for burn in BURNS
        if burn.severity == severity
    )
    summary = f"{{{{ $labels.chain }}}}: {{{{ $value | humanizePercentage }}}} miss the {objective.name} objective."
    return Alert(objective.alert, severity, summary, any_of, "0m", proof)


def _budgets() -> list[Alert]:
    alerts = []
    for objective in OBJECTIVES:
        labels = PLACE | {"slo": objective.name}
        # For an hour everything is bad; the longest of the short windows, six hours, ends it.
        page = Proof(
            _bad_hour(objective.name),
            "76m",
            "480m",
            labels,
            _SHOWN[objective.name],
            interval="2m",
            severities=("page", "ticket"),
        )
        # For eight hours twice the bearable share is bad.
        slow = Proof(_bad_day(objective.name, 2 * objective.budget), *_SLOW[objective.name], interval="10m")
        alerts += [_burning(objective, "page", page), _burning(objective, "ticket", slow)]
    return alerts


_SHOWN = {
    "latency": ("93.33%", "73.68%"),  # 56 of the last 60 minutes, and of all 76
    "completeness": ("93.1%", "72.97%"),
    "availability": ("90.32%", "71.79%"),
}
"""By severity, what one bad hour makes of the windows that decide."""

_SLOW = {
    name: ("400m", "880m", PLACE | {"slo": name}, (shown,))
    for name, shown in (("latency", "2%"), ("completeness", "0.2%"), ("availability", "2.439%"))
}


def _bad_hour(name: str) -> dict[str, str]:
    """Return an hour from minute 20 on in which everything is bad, in steps of two minutes."""
    if name == "latency":
        return {
            f'falconet_end_to_end_seconds_bucket{{{_AT},le="0.1"}}': "0+6000x10 60000x30 60000+6000x210",
            f"falconet_end_to_end_seconds_count{{{_AT}}}": "0+6000x252",
        }
    if name == "completeness":
        return {
            f'falconet_transactions_total{{{_AT},outcome="rejected"}}': "0x10 0+6000x30 180000x210",
            f'falconet_transactions_total{{{_AT},outcome="scored"}}': "0+6000x10 60000x30 60000+6000x210",
        }
    return {f"up{{{_AT}}}": "1x10 0x30 1x210", f'falconet_consumer_lag_records{{{_AT},partition="0"}}': "2x252"}


def _bad_day(name: str, share: float) -> dict[str, str]:
    """Return eight hours in which a share is bad, then as many without, in steps of ten minutes."""
    bad = round(60_000 * share)
    good = 60_000 - bad
    if name == "latency":
        return {
            f'falconet_end_to_end_seconds_bucket{{{_AT},le="0.1"}}': f"0+{good}x48 {good * 48 + 60_000}+60000x48",
            f"falconet_end_to_end_seconds_count{{{_AT}}}": "0+60000x97",
        }
    if name == "completeness":
        return {
            f'falconet_transactions_total{{{_AT},outcome="rejected"}}': f"0+{bad}x48 {bad * 48}x48",
            f'falconet_transactions_total{{{_AT},outcome="scored"}}': f"0+{good}x48 {good * 48 + 60_000}+60000x48",
        }
    # Away once, an hour before the look at it: too long ago for a page.
    return {f"up{{{_AT}}}": "1x32 0 1x64", f'falconet_consumer_lag_records{{{_AT},partition="0"}}': "2x97"}


ALERTS = (
    *_budgets(),
    Alert(
        "FalconetDown",
        "page",
        "No replica answers Prometheus.",
        ((Condition('(sum(up{job="falconet"}) or vector(0))', "< 1"),),),
        "2m",
        Proof({f"up{{{_AT}}}": "1x10 0x10 1x10"}, "15m", "25m", {}),
    ),
    Alert(
        "FalconetRestarting",
        "page",
        "{{ $labels.instance }} started {{ $value | humanize }} times in half an hour.",
        ((Condition('changes(process_start_time_seconds{job=~"falconet.*"}[30m])', "> 3"),),),
        "0m",
        Proof(
            {f"process_start_time_seconds{{{_AT}}}": "100x5 200x2 300x2 400x2 500x2 600x60"},
            "20m",
            "60m",
            PLACE | {"instance": "a:9464"},
            ("5",),
        ),
    ),
    Alert(
        "FalconetNoTransactions",
        "ticket",
        "{{ $labels.chain }}: no transaction was read for half an hour.",
        ((Condition(f"sum {BY} (rate(falconet_transactions_total[15m]))", "== 0"),),),
        "15m",
        Proof(
            {f'falconet_transactions_total{{{_AT},outcome="scored"}}': "0+600x30 18000x60 18000+600x60"},
            "65m",
            "100m",
            PLACE,
        ),
    ),
    Alert(
        "FalconetLag",
        "page",
        "{{ $labels.chain }}: the lag would take {{ $value | humanizeDuration }} to clear at the present rate.",
        ((Condition(LAG_SECONDS, "> 60"),),),
        "5m",
        Proof(
            {
                f'falconet_consumer_lag_records{{{_AT},partition="0"}}': "3x10 12000x15 3x20",
                f'falconet_transactions_total{{{_AT},outcome="scored"}}': "0+6000x50",
            },
            "20m",
            "30m",
            PLACE,
            ("2m 0s",),
        ),
    ),
    Alert(
        "FalconetPartitionStuck",
        "page",
        "{{ $labels.chain }}: partition {{ $labels.partition }} stands still, {{ $value | humanize }} records behind.",
        (
            (
                Condition(f"max {BY_PARTITION} (min_over_time(falconet_consumer_lag_records[10m]))", "> 100"),
                Condition(f"max {BY_PARTITION} (changes(falconet_next_offset[10m]))", "== 0"),
            ),
        ),
        "5m",
        Proof(
            {
                f'falconet_consumer_lag_records{{{_AT},partition="0"}}': "3+100x40 3x20",
                f'falconet_next_offset{{{_AT},partition="0"}}': "700x40 800+100x20",
                f'falconet_consumer_lag_records{{{_AT},partition="1"}}': "500x60",
                f'falconet_next_offset{{{_AT},partition="1"}}': "0+100x60",
            },
            "30m",
            "55m",
            PLACE | {"partition": "0"},
            ("2.003k",),
        ),
    ),
    Alert(
        "FalconetDeadLetters",
        "ticket",
        "{{ $labels.chain }}: {{ $value | humanizePercentage }} of the messages go to the dead-letter topic.",
        (
            (
                Condition(
                    f'sum {BY} (rate(falconet_transactions_total{{outcome="rejected"}}[15m]))\n'
                    f"  / sum {BY} (rate(falconet_transactions_total[15m]))",
                    "> 0.01",
                ),
            ),
        ),
        "15m",
        Proof(
            {
                f'falconet_transactions_total{{{_AT},outcome="rejected"}}': "0x20 0+120x60 7200x60",
                f'falconet_transactions_total{{{_AT},outcome="scored"}}': "0+5880x140",
            },
            "70m",
            "120m",
            PLACE,
            ("2%",),
        ),
    ),
    Alert(
        "FalconetStateNearlyFull",
        "ticket",
        "{{ $labels.instance }}: the account table is {{ $value | humanizePercentage }} full.",
        ((Condition("falconet_state_accounts / falconet_state_accounts_max", "> 0.9"),),),
        "1h",
        Proof(
            {
                f"falconet_state_accounts{{{_AT}}}": "800x20 950x120 800x30",
                f"falconet_state_accounts_max{{{_AT}}}": "1000x200",
            },
            "90m",
            "150m",
            PLACE | {"instance": "a:9464"},
            ("95%",),
        ),
    ),
    Alert(
        "FalconetForgetsTooSoon",
        "ticket",
        "{{ $labels.instance }}: an account is forgotten after {{ $value | humanizeDuration }} at the present rate.",
        ((Condition("falconet_state_accounts / rate(falconet_state_evictions_total[6h])", f"< {30 * 24 * 3600}"),),),
        "1h",
        Proof(
            {
                f"falconet_state_accounts{{{_AT}}}": "864000x120",
                f"falconet_state_evictions_total{{{_AT}}}": "0+600x60 36000x60",
            },
            "500m",
            "1100m",
            PLACE | {"instance": "a:9464"},
            ("10d 0h 0m 0s",),
            interval="10m",
        ),
    ),
    Alert(
        "FalconetDrift",
        "ticket",
        '{{ $labels.chain }}: {{ $labels.feature }} has moved from what the model knows: {{ $value | printf "%.2f" }}.',
        ((Condition("max by (job, chain, feature) (falconet_drift_psi)", "> 0.25"),),),
        "1h",
        Proof(
            {f'falconet_drift_psi{{{_AT},feature="score"}}': "_x5 0.02x10 0.5x100 0.02x30"},
            "90m",
            "130m",
            PLACE | {"feature": "score"},
            ("0.50",),
        ),
    ),
    Alert(
        "FalconetBreakerOpen",
        "page",
        "{{ $labels.chain }}: so much is flagged that nothing is blocked any more.",
        ((Condition(f"max {BY} (falconet_breaker_open)", "> 0"),),),
        "1m",
        Proof(
            {f"falconet_breaker_open{{{_AT}}}": "0x30 1x60 0x60"},
            "60m",
            "120m",
            PLACE,
        ),
    ),
    Alert(
        "FalconetAlertShareHigh",
        "ticket",
        "{{ $labels.chain }}: {{ $value | humanizePercentage }} of the transactions are not allowed.",
        ((Condition(ALERT_SHARE, "> 0.05"),),),
        "30m",
        Proof(
            {
                f'falconet_decisions_total{{{_AT},decision="review"}}': "0x30 0+600x120 72000x90",
                f'falconet_decisions_total{{{_AT},decision="allow"}}': "0+5400x240",
            },
            "120m",
            "200m",
            PLACE,
            ("10%",),
        ),
    ),
    Alert(
        "FalconetAlertShareZero",
        "ticket",
        "{{ $labels.chain }}: not one transaction in a day was reviewed or blocked.",
        (
            (
                Condition(f'sum {BY} (increase(falconet_decisions_total{{decision!="allow"}}[1d]))', "== 0"),
                Condition(f"sum {BY} (increase(falconet_decisions_total[1d]))", "> 100000"),
            ),
        ),
        "1h",
        Proof(
            {
                f'falconet_decisions_total{{{_AT},decision="review"}}': "0+1x6 6x164 6+1x30",
                f'falconet_decisions_total{{{_AT},decision="allow"}}': "0+6000x240",
            },
            "1640m",
            "1740m",
            PLACE,
            interval="10m",
        ),
    ),
    Alert(
        "FalconetModelMismatch",
        "ticket",
        "{{ $labels.chain }}: {{ $value }} different models decide.",
        ((Condition(f'count {BY} (count by (job, chain, digest) (falconet_model_info{{model="student"}}))', "> 1"),),),
        "15m",
        Proof(
            {
                f'falconet_model_info{{{_AT},model="student",digest="aa"}}': "1x60",
                'falconet_model_info{job="falconet",chain="ethereum",instance="b:9464",model="student",digest="bb"}': (
                    "1x30 stale"
                ),
            },
            "20m",
            "45m",
            PLACE,
            ("2",),
        ),
    ),
    Alert(
        "FalconetModelRefused",
        "ticket",
        "{{ $labels.instance }} refused a promoted model.",
        ((Condition('increase(falconet_model_reloads_total{outcome="refused"}[1h])', "> 0"),),),
        "0m",
        Proof(
            {f'falconet_model_reloads_total{{{_AT},outcome="refused"}}': "0x10 1x100"},
            "30m",
            "90m",
            PLACE | {"instance": "a:9464", "outcome": "refused"},
        ),
    ),
    Alert(
        "FalconetReorgRefused",
        "page",
        "{{ $labels.chain }}: a reorganisation cannot be followed; nothing is scored until somebody decides.",
        # The process ends 45 s after it refused and counts from 0 again: neither a rate nor the last value would stay.
        ((Condition(f"max {BY} (max_over_time(falconet_reorgs_refused_total[15m]))", "> 0"),),),
        "0m",
        Proof(
            {f"falconet_reorgs_refused_total{{{_AT}}}": "0x20 1 stale _x2 0x60"},
            "30m",
            "60m",
            PLACE,
        ),
    ),
    Alert(
        "FalconetSnapshotOld",
        "ticket",
        "{{ $labels.instance }}: the newest snapshot is {{ $value | humanizeDuration }} old.",
        ((Condition("falconet_snapshot_age_seconds", f"> {SNAPSHOT_SECONDS_MAX}"),),),
        "5m",
        Proof(
            {f"falconet_snapshot_age_seconds{{{_AT}}}": "0+60x30 0x20"},
            "20m",
            "40m",
            PLACE | {"instance": "a:9464"},
            ("20m 0s",),
        ),
    ),
    *ingestion.ALERTS,
)
