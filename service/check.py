"""The `check` command: everything that `serve` needs at start, tried without touching what a running service holds."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from features import schema, screening, undo
from features.accounts import ACCOUNTS_MIN, Accounts
from features.errors import BrokerError
from features.journal import Journal
from features.screening import Screening
from models import registry
from models.scorer import Scorer
from service import policy, trust
from service.codec import Decoder
from service.pipeline import Message, Pipeline
from service.settings import Settings

# Any transaction will do, spelt as ethereum-etl does.
_EXAMPLE = Message(
    value=b'{"type": "transaction", "hash": "0x%s", "from_address": "0x%s", "to_address": "0x%s", '
    b'"value": 1000000000000000000, "input": "0x", "block_number": 6000000, "block_timestamp": 1532118564, '
    b'"block_hash": "0x%s"}' % (b"5c" * 32, b"3f" * 20, b"1a" * 20, b"0b" * 32),
    key=None,
    topic="check",
    partition=0,
    offset=-1,
    timestamp_ms=0,
)
_ORPHANED = (
    b'{"type": "orphaned_block", "block_number": 6000000, "block_hash": "0x%s", "block_timestamp": 1532118564}'
    % (b"0b" * 32)
)


def run(settings: Settings, *, is_offline: bool) -> Iterator[str]:
    """Yield one line for each thing that is as it should be.

    The settings have been validated by being read. Safe beside a running service: it joins no group, takes no
    transactional id, creates no topic and reads no state.

    Raises:
        UsageError: The Kafka library that the settings name is not installed.
        InputError: The model or a list cannot be used.
        BrokerError: No broker answers, or topics are missing that the service may not create.
        NodeError: A node that the settings name does not answer, or is of another chain.
    """
    yield f"settings  {len(settings.effective())} read"
    path = trust.model_path(settings)
    scorer = Scorer.load(path)
    yield f"model     {_described(scorer)}, schema {schema.FINGERPRINT}"
    signed = ", signed as model_keys wants" if settings.model_keys else ""
    yield f"registry  {_sealed(path)}{signed}"
    if settings.candidate_model:
        beside = trust.candidate_path(settings)
        yield f"candidate {_described(Scorer.load(beside))}; {_sealed(beside)}"
    lists = screening.read(settings.screening_lists)
    yield f"lists     {lists.n_entries:,} entries on {len(lists.names)} lists"
    started_s = time.perf_counter()
    warm(settings, scorer, lists)
    yield f"kernels   ready in {time.perf_counter() - started_s:.1f} s"
    if not is_offline:
        yield from broker(settings)
        yield from nodes(settings)


def _described(scorer: Scorer) -> str:
    model = scorer.model
    return f"{model.name} {model.version}, {model.n_bytes:,} bytes"


def _sealed(path: Path) -> str:
    """Say how far the model's file at a path, which was found sound, can be vouched for."""
    if not (path.parent / registry.MANIFEST_FILE).exists():
        return f"not used: {path} belongs to no sealed version"
    manifest = registry.read_manifest(path.parent)
    made = manifest.provenance
    return (
        f"{manifest.id}, {len(manifest.files)} files as sealed, made {made.made_at[:10]} at commit {made.commit[:12]}"
    )


def warm(settings: Settings, scorer: Scorer, lists: Screening | None) -> None:
    """Send a transaction down the path, which compiles its kernels or loads them from the cache on disk."""
    accounts = Accounts(accounts_max=ACCOUNTS_MIN, pairs_max=ACCOUNTS_MIN, screening=lists, undo_transactions=4)
    Journal(accounts, chain_id=settings.chain_id, depth=1)
    pipeline = Pipeline(
        accounts=accounts,
        scorer=scorer,
        policy=policy.policy(scorer.thresholds, lists),
        decoder=Decoder(chain_id=settings.chain_id, message_bytes_max=settings.message_bytes_max),
    )
    # One row and several take different kernels.
    for n_messages in (1, 2):
        outputs = pipeline.process([_EXAMPLE] * n_messages, now_ms=0)
        assert len(outputs.scores) == n_messages, outputs.rejections
        # Its own call, because a transaction that is allowed gets no reasons.
        scorer.reasons(outputs.verdicts.rows[0], 1)
    # Taking back and loading a journal have kernels of their own.
    assert undo.is_sound(accounts.table)
    outputs = pipeline.process([_EXAMPLE._replace(value=_ORPHANED)], now_ms=0)
    assert outputs.n_retracted == 3, outputs.refusal
    if settings.kafka_client == "kafka-python":
        # Here, because the other client needs no kafka-python.
        from service import kafka_records

        kafka_records.warm()


def broker(settings: Settings) -> Iterator[str]:
    """Yield what the broker has of the service's topics.

    Raises:
        BrokerError: No broker answers, or topics are missing and `create_topics` is false.
    """
    # Here, because an offline check needs no Kafka library.
    from service import kafka

    client = kafka.connect(settings)
    try:
        there = client.topics()
    finally:
        client.close()
    yield f"broker    {settings.bootstrap_servers} answers, by {settings.kafka_client}"
    wanted = settings.topics()
    missing = [name for name in wanted if name not in there]
    if missing and not settings.create_topics:
        raise BrokerError(
            f"Kafka at {settings.bootstrap_servers} has no topic {', '.join(map(repr, missing))}; "
            "create it, or set create_topics to true"
        )
    for name in wanted:
        yield f"topic     {name}: " + (f"{there[name]} partitions" if name in there else "serve will create it")


def nodes(settings: Settings) -> Iterator[str]:
    """Yield what each node that the settings name says of itself; nothing where they name none.

    Raises:
        UsageError: web3 is not installed.
        NodeError: A node does not answer, is of another chain, or does not give its newest block whole.
    """
    if not settings.rpc_urls:
        return
    # Here, because most checks need no web3, which takes a second to import.
    from service import heads, node
    from service.ingest_metrics import IngestMetrics

    asked = node.Node(
        [url for url in settings.rpc_urls if url.startswith("http")],
        chain_id=settings.chain_id,
        retry_seconds=0.0,
        metrics=IngestMetrics(),
        stop=threading.Event(),
    )
    for found in asked.describe():
        finalized = "no finalized block" if found.finalized is None else f"finalized {found.finalized}"
        receipts = "a block's receipts at once" if found.has_block_receipts else "receipts one by one"
        yield (
            f"node      {found.label}: {found.client}, chain {found.chain_id}, head {found.head.number}, {finalized}, "
            f"{receipts}"
        )
    sockets = [url for url in settings.rpc_urls if url.startswith("ws")]
    for url, label in zip(sockets, node.labels(sockets), strict=True):
        heads.probe(url, label)
        yield f"heads     {label}: pushed"
