"""Which metrics there are: `Metrics` makes each from its row here, and the docs' table is rendered from them."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

PREFIX = "falconet_"


class Spec(Struct, frozen=True):
    """One row of the catalogue."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    labels: tuple[str, ...]
    unit: str
    sentence: str


CATALOGUE = (
    Spec("stage_seconds", "histogram", ("stage",), "seconds", "Time of a stage per transaction: its batch's share."),
    Spec(
        "decision_seconds",
        "histogram",
        (),
        "seconds",
        "From the return of poll to the score handed to the producer, per transaction, waiting in the batch included.",
    ),
    Spec(
        "end_to_end_seconds",
        "histogram",
        (),
        "seconds",
        "From the Kafka timestamp of a transaction to the commit of its score.",
    ),
    Spec("inference_seconds", "histogram", ("model",), "seconds", "Time a model takes per transaction."),
    Spec("model_info", "info", ("model", "name", "version", "digest"), "", "The models in use, always 1."),
    Spec("model_bytes", "gauge", ("model",), "bytes", "Size of a model's file."),
    Spec("model_reloads_total", "counter", ("outcome",), "models", "Newly promoted models, by what became of them."),
    Spec("transactions_total", "counter", ("outcome",), "messages", "Messages read, by what became of them."),
    Spec("decisions_total", "counter", ("decision",), "transactions", "Scored transactions, by decision."),
    Spec(
        "alert_reasons_total",
        "counter",
        ("reason",),
        "transactions",
        "Transactions that were not allowed, by what says most: `listed`, else the feature of a broken rule, else the "
        "one that raised the model's risk most.",
    ),
    Spec("list_hits_total", "counter", ("list",), "addresses", "Listed senders and recipients, by screening list."),
    Spec(
        "breaker_open",
        "gauge",
        (),
        "breakers",
        "1 while the circuit breaker is open: so much is flagged that nothing is blocked; else 0.",
    ),
    Spec("breaker_share", "gauge", (), "ratio", "Share of the breaker's window that was meant not to be allowed."),
    Spec("breaker_trips_total", "counter", (), "openings", "How often the circuit breaker has opened."),
    Spec(
        "breaker_held_total",
        "counter",
        (),
        "transactions",
        "Scored transactions at which the circuit breaker was open.",
    ),
    Spec("score", "histogram", (), "probability", "Distribution of the scores."),
    Spec("candidate_score", "histogram", (), "probability", "Distribution of the candidate's scores."),
    Spec(
        "candidate_decisions_total",
        "counter",
        ("champion", "candidate"),
        "transactions",
        "Scored transactions, by the decision taken and the one the candidate would have taken.",
    ),
    Spec(
        "drift_psi",
        "gauge",
        ("feature",),
        "index",
        "Population stability index of a feature of the model, or of the score, over the last sampled transactions: "
        "below 0.1 is stable, above 0.25 is shifted; NaN until 500 are sampled.",
    ),
    Spec("consumer_lag_records", "gauge", ("partition",), "records", "Records not read yet, markers included."),
    Spec(
        "next_offset",
        "gauge",
        ("partition",),
        "offset",
        "Offset after the last message that was scored; it stands still where nothing is read.",
    ),
    Spec("state_accounts", "gauge", (), "accounts", "Accounts in the account table."),
    Spec("state_accounts_max", "gauge", (), "accounts", "Accounts that fit into the account table."),
    Spec("state_pairs", "gauge", (), "pairs", "Sender and recipient pairs in the pair table."),
    Spec("state_pairs_max", "gauge", (), "pairs", "Sender and recipient pairs that fit into the pair table."),
    Spec("state_evictions_total", "counter", (), "accounts", "Accounts forgotten because the table was full."),
    Spec(
        "snapshot_age_seconds",
        "gauge",
        (),
        "seconds",
        "Age of the past that a restart would begin with; NaN while there is no snapshot.",
    ),
    Spec("snapshots_total", "counter", ("outcome",), "snapshots", "Periodic snapshots, by what became of them."),
    Spec("snapshot_pause_seconds", "gauge", (), "seconds", "How long the stream waited for the last snapshot."),
    Spec(
        "restore_seconds",
        "gauge",
        (),
        "seconds",
        "Time the last start spent on loading the account state and replaying to the committed offsets.",
    ),
    Spec("restore_replayed", "gauge", (), "transactions", "Messages that the last start replayed without scoring."),
    Spec("standby", "gauge", (), "replicas", "1 while this replica waits for another one's place, else 0."),
    Spec("retractions_total", "counter", (), "transactions", "Scores retracted because their block was orphaned."),
    Spec(
        "undo_blocks",
        "gauge",
        (),
        "blocks",
        "Newest blocks by which the account state can go back; those without transactions are not counted.",
    ),
    Spec(
        "energy_joules_total",
        "counter",
        ("source",),
        "joules",
        "Energy since the start: `rapl` is the processor's own counter, whoever used it; where that cannot be read, "
        "`estimate` is processor seconds of the service times 5 W of one busy core.",
    ),
    Spec("reorgs_refused_total", "counter", (), "reorganisations", "Reorganisations too deep or unclear to follow."),
    Spec("dlq_total", "counter", ("reason",), "messages", "Messages sent to the dead-letter topic, by reason."),
    Spec(
        "shadow_dropped_total",
        "counter",
        (),
        "transactions",
        "Sampled transactions that the shadow model never saw because its queue was full.",
    ),
)
"""In the order in which a transaction meets them."""


def markdown_table(catalogue: Sequence[Spec] = CATALOGUE) -> str:
    """Render a catalogue as the Markdown table that the operations page holds, ending in a newline."""
    lines = ["| Metric | Type | Labels | Unit | Meaning |", "| --- | --- | --- | --- | --- |"]
    for spec in catalogue:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        lines.append(f"| `{PREFIX}{spec.name}` | {spec.kind} | {labels} | {spec.unit} | {spec.sentence} |")
    return "\n".join(lines) + "\n"
