"""The `check` command: everything that `serve` needs at start, tried without touching what a running service holds."""

import time
from collections.abc import Iterator

import numpy as np

from features import schema, screening, transaction
from features.accounts import ACCOUNTS_MIN, Accounts
from features.errors import BrokerError
from features.screening import Screening
from models import registry
from models.scorer import Scorer
from service.settings import Settings

# Any transaction will do; this one's value moves one ether and its input has no selector.
_EXAMPLE = transaction.Transaction(
    type="transaction",
    hash="0x" + "5c" * 32,
    log_index=None,
    chain_id=1,
    block_number=6_000_000,
    block_hash=None,
    block_timestamp=1_532_118_564,
    transaction_index=None,
    from_address="0x" + "3f" * 20,
    to_address="0x" + "1a" * 20,
    value=10**18,
    input="0x",
)


def run(settings: Settings, *, is_offline: bool) -> Iterator[str]:
    """Yield one line for each thing that is as it should be.

    The settings have been validated by being read. Safe beside a running service: it joins no group, takes no
    transactional id, creates no topic and reads no state.

    Raises:
        UsageError: The Kafka library that the settings name is not installed.
        InputError: The model or a list cannot be used.
        BrokerError: No broker answers, or topics are missing that the service may not create.
    """
    yield f"settings  {len(settings.effective())} read"
    scorer = Scorer.load(registry.model_path(settings.model))
    model = scorer.model
    yield f"model     {model.name} {model.version}, {model.n_bytes:,} bytes, schema {schema.FINGERPRINT}"
    lists = screening.read(settings.screening_lists)
    yield f"lists     {lists.n_entries:,} entries on {len(lists.names)} lists"
    started_s = time.perf_counter()
    warm(scorer, lists)
    yield f"kernels   ready in {time.perf_counter() - started_s:.1f} s"
    if not is_offline:
        yield from broker(settings)


def warm(scorer: Scorer, lists: Screening) -> None:
    """Run every kernel of the path once, which compiles it or loads it from the cache on disk."""
    accounts = Accounts(accounts_max=ACCOUNTS_MIN, pairs_max=ACCOUNTS_MIN, screening=lists)
    packed = transaction.pack(_EXAMPLE)
    # One row and several take different kernels.
    for n_rows in (1, 2):
        rows, _ = accounts.score_rows(transaction.records([packed] * n_rows))
        probabilities = scorer.probabilities(scorer.margins(rows))
        scorer.reasons(rows[0], 1)
        assert rows.shape == (n_rows, schema.N_FEATURES)
        assert np.all((probabilities >= 0) & (probabilities <= 1))


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
    wanted = (settings.transactions_topic, settings.scores_topic, settings.alerts_topic, settings.dlq_topic)
    missing = [name for name in wanted if name not in there]
    if missing and not settings.create_topics:
        raise BrokerError(
            f"Kafka at {settings.bootstrap_servers} has no topic {', '.join(map(repr, missing))}; "
            "create it, or set create_topics to true"
        )
    for name in wanted:
        yield f"topic     {name}: " + (f"{there[name]} partitions" if name in there else "serve will create it")
