"""The alerts of the process that reads a chain from its nodes; silent where there is none."""

from deploy.prometheus.conditions import PLACE, Alert, Condition, Proof
from deploy.prometheus.objectives import BY

JOB = "falconet-ingest"

INGEST_LAG_BLOCKS_MAX = 20
"""Four minutes of Ethereum's blocks, 12 s apart."""

REORG_BLOCKS_MAX = 8
"""A bucket's bound. Ethereum takes back one block, rarely two."""

_AT = f'job="{JOB}",chain="ethereum",instance="i:9464"'
_PLACE = PLACE | {"job": JOB}

ALERTS = (
    Alert(
        "FalconetIngestStopped",
        "page",
        "{{ $labels.chain }}: no block was published for ten minutes.",
        (
            (Condition(f"sum {BY} (increase(falconet_ingest_blocks_total[10m]))", "== 0"),),
            (Condition(f'sum {BY} (up{{job="{JOB}"}})', "< 1"),),
        ),
        "5m",
        Proof(
            {
                f"falconet_ingest_blocks_total{{{_AT}}}": "0+5x20 100x30 100+5x30",
                f"up{{{_AT}}}": "1x90",
            },
            "40m",
            "70m",
            _PLACE,
        ),
    ),
    Alert(
        "FalconetIngestBehind",
        "ticket",
        "{{ $labels.chain }}: {{ $value }} blocks wait to be published.",
        ((Condition(f"max {BY} (falconet_ingest_lag_blocks)", f"> {INGEST_LAG_BLOCKS_MAX}"),),),
        "10m",
        Proof({f"falconet_ingest_lag_blocks{{{_AT}}}": "1x10 50x20 1x20"}, "25m", "40m", _PLACE, ("50",)),
    ),
    Alert(
        "FalconetReorgDeep",
        "ticket",
        f"{{{{ $labels.chain }}}}: more than {REORG_BLOCKS_MAX} blocks were taken back at once.",
        (
            (
                Condition(
                    f"sum {BY} (increase(falconet_reorg_depth_blocks_count[1h]))\n"
                    f'  - sum {BY} (increase(falconet_reorg_depth_blocks_bucket{{le="{REORG_BLOCKS_MAX}.0"}}[1h]))',
                    "> 0",
                ),
            ),
        ),
        "0m",
        Proof(
            {
                f"falconet_reorg_depth_blocks_count{{{_AT}}}": "0x5 1x14 2x100",
                f'falconet_reorg_depth_blocks_bucket{{{_AT},le="8.0"}}': "0x5 1x120",
            },
            "30m",
            "100m",
            _PLACE,
        ),
    ),
    Alert(
        "FalconetNodeErrors",
        "ticket",
        "{{ $labels.endpoint }}: {{ $value | humanizePercentage }} of the requests fail.",
        (
            (
                Condition(
                    "sum by (job, chain, endpoint) (rate(falconet_rpc_errors_total[15m]))\n"
                    "  / sum by (job, chain, endpoint) (rate(falconet_rpc_seconds_count[15m]))",
                    "> 0.05",
                ),
            ),
        ),
        "15m",
        Proof(
            {
                f'falconet_rpc_errors_total{{{_AT},endpoint="node",fault="timeout"}}': "0x9 0+6x40 240x40",
                f'falconet_rpc_seconds_count{{{_AT},endpoint="node"}}': "0+60x90",
            },
            "45m",
            "80m",
            _PLACE | {"endpoint": "node"},
            ("10%",),
        ),
    ),
)
