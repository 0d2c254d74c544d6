"""Ingestion from a real node that reorganises into Apache Kafka, by the command as a process that may be killed."""

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from features.errors import FencedError, NodeError, UsageError
from service import checkpoint, kafka
from service.anvil import Anvil
from service.ingest import Ingest, producer_settings
from service.settings import Settings
from tests import servers
from tests.integration.conftest import LIMIT_S, World, until
from tests.nodes import ingesting

BOTH = pytest.mark.parametrize("library", ["kafka-python", "confluent-kafka"], indirect=True)
BLOCK, HASH = "block_number", "block_hash"


@pytest.fixture(params=["kafka-python"])
def library(request: pytest.FixtureRequest) -> str:
    """The default client library, unless a test names others."""
    return str(request.param)


@pytest.fixture
def anvil() -> Iterator[Anvil]:
    """Run a node that mines when told to."""
    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(servers.anvil("--no-mining", chain_id=31337))
        except servers.MissingServerError as error:
            pytest.skip(str(error))
        yield node


class Sender:
    """Sends transactions of unlocked accounts and mines them."""

    def __init__(self, anvil: Anvil) -> None:
        self._anvil = anvil
        self.accounts = anvil.ask("eth_accounts")

    def block(self, n_transactions: int = 2) -> None:
        """Mine a block of some transfers."""
        for i in range(n_transactions):
            sender, recipient = self.accounts[i % 10], self.accounts[(i + 1) % 10]
            self._anvil.ask("eth_sendTransaction", {"from": sender, "to": recipient, "value": hex(i), "gas": "0x5208"})
        self._anvil.ask("evm_mine")

    def blocks(self, n: int, n_transactions: int = 2) -> None:
        """Mine several."""
        for _ in range(n):
            self.block(n_transactions)

    def reorganise(self, depth: int) -> None:
        """Replace the newest blocks by others of the same number, each with one transaction of its own."""
        tx = {"from": self.accounts[9], "to": self.accounts[8], "value": "0x7", "gas": "0x5208"}
        self._anvil.ask("anvil_reorg", depth, [[tx, i] for i in range(depth)])


def settings(world: World, anvil: Anvil, **changes: object) -> Settings:
    """Return the world's settings for a node."""
    plain = {
        "rpc_urls": (anvil.url, anvil.ws_url),
        "chain_id": 31337,
        "checkpoint_topic": f"{world.settings.group_id}.c",
    }
    return world.but(**(plain | {"start_block": "0", "rpc_retry_seconds": 10.0} | changes))


def reached(ingest: Ingest, anvil: Anvil) -> bool:
    """Say whether the node's head, of its present branch, is what is published last."""
    return (
        ingest.published is not None
        and ingest.published.tail[-1:] != ()
        and (ingest.published.tail[-1].hash == anvil.ask("eth_getBlockByNumber", "latest", False)["hash"])
    )


def messages(world: World, n: int = 0) -> list[dict[str, Any]]:
    """Return the committed messages of a topic of one partition, in its order."""
    return [msgspec.json.decode(record.value or b"") for record in world.read(world.settings.transactions_topic, n)]


def settle(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what stands after each announced block was taken back; each must be the newest that stands."""
    standing: list[dict[str, Any]] = []
    for message in found:
        if message["type"] != "orphaned_block":
            standing.append(message)
            continue
        kept = [each for each in standing if each[HASH] != message[HASH]]
        assert all(each[BLOCK] < message[BLOCK] for each in kept), "blocks are taken back newest first"
        standing = kept
    return standing


def on_chain(anvil: Anvil, first: int = 0) -> list[tuple[str, str]]:
    """Return hash and block hash of every transaction that the node holds, in the chain's order."""
    head = int(anvil.ask("eth_blockNumber"), 16)
    blocks = [anvil.ask("eth_getBlockByNumber", hex(n), True) for n in range(first, head + 1)]
    return [(tx["hash"], block["hash"]) for block in blocks for tx in block["transactions"]]


def ids(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["hash"], message[HASH]) for message in found]


def test_blocks_and_their_corrections_reach_the_topic(world: World, anvil: Anvil) -> None:
    """In order, whole, once; reorganisations of many depths leave what the node holds, the old taken back first."""
    sender = Sender(anvil)
    sender.blocks(40)
    with ingesting(settings(world, anvil)) as ingest:
        until(lambda: reached(ingest, anvil))
        for depth in (1, 2, 7, 32):
            sender.blocks(2)
            until(lambda: reached(ingest, anvil))
            sender.reorganise(depth)
            until(lambda: reached(ingest, anvil))
        text = ingest.metrics.reorg_depth._sum.get()

    found = messages(world)
    orphaned = [message for message in found if message["type"] == "orphaned_block"]
    assert [message[BLOCK] for message in orphaned[:3]] == [42, 44, 43]
    assert len(orphaned) == text == 1 + 2 + 7 + 32
    assert {frozenset(message) for message in orphaned} == {
        frozenset({"type", "chain_id", BLOCK, HASH, "block_timestamp"})
    }
    assert ids(settle(found)) == on_chain(anvil)
    assert {message["chain_id"] for message in found} == {31337}


@BOTH
def test_announcements_stand_on_every_partition(world: World, anvil: Anvil) -> None:
    """Each partition has each orphaned block, without a key, before anything of the replacement."""
    world.create(world.settings.transactions_topic, n_partitions=3)
    sender = Sender(anvil)
    sender.blocks(6, 12)
    with ingesting(settings(world, anvil)) as ingest:
        until(lambda: reached(ingest, anvil))
        sender.reorganise(3)
        until(lambda: reached(ingest, anvil))

    records = world.read(world.settings.transactions_topic, 0)
    found = [(record.key, msgspec.json.decode(record.value or b"")) for record in records]
    orphaned = [(key, message) for key, message in found if message["type"] == "orphaned_block"]
    assert sorted(message[BLOCK] for _, message in orphaned) == [4, 4, 4, 5, 5, 5, 6, 6, 6]
    assert {key for key, _ in orphaned} == {None}
    assert all(key == message["hash"].encode() for key, message in found if message["type"] == "transaction")


def test_kill_at_any_instant_loses_and_doubles_nothing(world: World, anvil: Anvil) -> None:
    """A process that is killed again and again while the chain grows and reorganises leaves what the node holds."""
    draw = random.Random(1)
    sender = Sender(anvil)
    sender.blocks(30)
    chosen = settings(world, anvil)
    environment = {
        "FALCONET_" + name.upper(): str(getattr(chosen, name))
        for name in ("bootstrap_servers", "kafka_client", "transactions_topic", "checkpoint_topic", "transactional_id")
    }
    environment |= {"FALCONET_CHAIN_ID": "31337", "FALCONET_METRICS_PORT": "0", "FALCONET_START_BLOCK": "0"}
    command = [sys.executable, "-c", KILLABLE, anvil.url]
    n_kills = 0
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # An instant is so many committed runs and, from there, a drawn moment spent in a busy loop.
            for _ in range(draw.randrange(2, 8)):
                process.stdout.readline()
            for _ in range(draw.randrange(30_000)):
                pass
            process.send_signal(signal.SIGKILL)
        n_kills += process.returncode == -signal.SIGKILL
        sender.reorganise(draw.randrange(1, 9))
        sender.blocks(3)
    with ingesting(chosen) as ingest:
        until(lambda: reached(ingest, anvil))

    assert n_kills == 3
    assert ids(settle(messages(world))) == on_chain(anvil)


KILLABLE = """
import sys
from service import ingest, settings
ingest.RUN_BLOCKS = 3
whole = ingest.Ingester._publish
def publish(self, base, blocks):
    print(flush=True)
    whole(self, base, blocks)
    print(flush=True)
ingest.Ingester._publish = publish
ingest.Ingest(settings.load(overrides={"rpc_urls": [sys.argv[1]]})).run()
"""


def test_late_modes_publish_what_is_old_enough_and_correct_nothing(world: World, anvil: Anvil) -> None:
    """With confirmations, blocks come so much later; what is reorganised above them is never seen."""
    sender = Sender(anvil)
    sender.blocks(10)
    with ingesting(settings(world, anvil, finality="4")) as ingest:
        until(lambda: ingest.published is not None and ingest.published.next == 7)
        sender.reorganise(4)
        sender.blocks(2)
        until(lambda: ingest.published is not None and ingest.published.next == 9)

    found = messages(world)
    assert ids(found) == on_chain(anvil)[: len(found)]
    assert {message[BLOCK] for message in found} == set(range(1, 9))
    assert {message["type"] for message in found} == {"transaction"}


def test_what_was_final_and_changes_is_an_alarm(world: World, anvil: Anvil) -> None:
    """A reorganisation below the confirmations ends ingestion by an error that names the block."""
    sender = Sender(anvil)
    sender.blocks(10)
    with ingesting(settings(world, anvil, finality="2")) as ingest:
        until(lambda: ingest.published is not None and ingest.published.next == 9)
    sender.reorganise(5)
    sender.blocks(3)

    with (
        pytest.raises(NodeError, match=r"parent_mismatch: block 9 is no child .* finality '2' was not kept; gave up"),
        ingesting(settings(world, anvil, finality="2", rpc_retry_seconds=0.2)) as ingest,
    ):
        until(ingest.is_over.is_set)


def test_too_deep_a_reorganisation_is_an_alarm(world: World, anvil: Anvil) -> None:
    """Deeper than what may be taken back, nothing is published and the process ends."""
    sender = Sender(anvil)
    sender.blocks(12)
    with ingesting(settings(world, anvil, reorg_depth_max=4)) as ingest:
        until(lambda: reached(ingest, anvil))
    sender.reorganise(6)

    with (
        pytest.raises(NodeError, match=r"deep_reorg: .* below block 8, deeper than the 4 blocks"),
        ingesting(settings(world, anvil, reorg_depth_max=4)) as ingest,
    ):
        until(ingest.is_over.is_set)
    assert {message["type"] for message in messages(world)} == {"transaction"}


def test_start_is_where_it_is_told_and_then_the_checkpoint(world: World, anvil: Anvil) -> None:
    """`latest` begins with the head, a number there, a checkpoint wins over both; none is refused when insisted on."""
    sender = Sender(anvil)
    sender.blocks(5, 1)

    with (
        pytest.raises(UsageError, match="has no checkpoint of chain 31337"),
        ingesting(settings(world, anvil, start_block="checkpoint")),
    ):
        pass
    with ingesting(settings(world, anvil, start_block="latest")) as ingest:
        until(lambda: reached(ingest, anvil))
    sender.blocks(2, 1)
    with ingesting(settings(world, anvil, start_block="1")) as ingest:
        until(lambda: reached(ingest, anvil))
    assert [message[BLOCK] for message in messages(world)] == [5, 6, 7]


def test_second_ingester_of_a_chain_fences_the_first(world: World, anvil: Anvil) -> None:
    """The one that was there first ends at its next block, and nothing is doubled."""
    sender = Sender(anvil)
    sender.blocks(3, 1)
    chosen = settings(world, anvil)

    def both() -> None:
        with ingesting(chosen) as first:
            until(lambda: reached(first, anvil))
            with ingesting(chosen) as second:
                sender.block(1)
                until(lambda: reached(second, anvil))
            until(first.is_over.is_set)

    with pytest.raises(FencedError):
        both()
    assert ids(messages(world)) == on_chain(anvil)


def test_command_ends_by_a_signal_with_zero(world: World, anvil: Anvil) -> None:
    """`falconet ingest` publishes, says how far it is, and ends with 0; a wrong chain is exit code 1, no node 2."""
    sender = Sender(anvil)
    sender.blocks(3, 1)
    topics = {
        "FALCONET_TRANSACTIONS_TOPIC": world.settings.transactions_topic,
        "FALCONET_CHECKPOINT_TOPIC": f"{world.settings.group_id}.c",
        "FALCONET_METRICS_PORT": "0",
    }
    base = [sys.executable, "-m", "service.cli", "ingest", "--bootstrap-servers", world.settings.bootstrap_servers]
    command = [*base, "--rpc", anvil.url, "--rpc", anvil.ws_url, "--start-block", "0"]
    environment = topics | {"FALCONET_CHAIN_ID": "31337"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert len(messages(world, 3)) == 3
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == 0, told
    assert anvil.url not in told

    wrong = subprocess.run(command, env=topics, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert wrong.returncode == 1
    assert "wrong_chain: 127.0.0.1:" in wrong.stderr
    none = subprocess.run(base, env=topics, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert none.returncode == 2
    assert "no node to ask" in none.stderr


def test_checkpoint_of_the_chain_is_read_among_others(world: World, anvil: Anvil) -> None:
    """Two chains share the topic; each finds its own, however often it was written."""
    sender = Sender(anvil)
    sender.blocks(4, 1)
    chosen = settings(world, anvil)
    with ingesting(chosen) as ingest:
        until(lambda: reached(ingest, anvil))
    other = msgspec.structs.replace(chosen, chain_id=5)
    client = kafka.connect(producer_settings(other))
    try:
        client.begin_producing()
        client.begin()
        client.send(
            chosen.checkpoint_topic, [(checkpoint.key(other), b'{"chain_id":5,"start":1,"tail":[]}')], partition=0
        )
        client.commit({})
        assert client.wait(LIMIT_S) is not None
    finally:
        client.close()

    found = checkpoint.read(chosen)
    assert found is not None
    assert (found.chain_id, found.next) == (31337, 5)
    beside = checkpoint.read(other)
    assert beside is not None
    assert beside.next == 1
