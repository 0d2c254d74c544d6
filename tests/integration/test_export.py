"""The export of a topic on Apache Kafka: each committed record once, whatever the process or the broker dies of."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewPartitions

from features.errors import BrokerError, InputError, OutageError
from service import export, simulator
from service.settings import Settings
from tests import servers
from tests.integration.conftest import LIMIT_S, World, until

pytestmark = pytest.mark.parametrize("library", ["kafka-python"], indirect=True)

VALUES = simulator.messages(11, 400)

KILLABLE = """
import sys
from pathlib import Path
from service import archiver, export
from service.settings import Settings
archiver.CHUNK_RECORDS = 40
export.POLL_RECORDS = 25
done = export.export(
    Settings(bootstrap_servers=sys.argv[1], transactions_topic=sys.argv[2]),
    folder=Path(sys.argv[3]),
    tell=lambda n_done, n: print(n_done, flush=True),
)
print("whole", flush=True)
"""


def silent(_n_done: int, _n: int) -> None:
    """Take no notice."""


def publish(world: World, values: list[bytes], *, n_partitions: int) -> None:
    """Write values to a topic's partitions in turn."""
    producer = Producer({"bootstrap.servers": world.settings.bootstrap_servers})
    for i, value in enumerate(values):
        producer.produce(world.settings.transactions_topic, value, partition=i % n_partitions)
    producer.flush()
    producer.close()


def places(folder: Path, pattern: str = "date=*") -> list[tuple[int, int]]:
    """Return partition and offset of every row, in order."""
    found: list[tuple[int, int]] = []
    for file in folder.glob(f"{pattern}/*.parquet"):
        table = pq.read_table(file, partitioning=None)
        found += zip(table["source_partition"].to_pylist(), table["source_offset"].to_pylist(), strict=True)
    return sorted(found)


def hashes(folder: Path) -> list[str]:
    tables = [pq.read_table(file, partitioning=None) for file in folder.glob("date=*/*.parquet")]
    return sorted(pa.concat_tables(tables)["hash"].to_pylist())


@contextlib.contextmanager
def following(settings: Settings, folder: Path) -> Iterator[tuple[list[tuple[int, int]], list[BaseException]]]:
    """Follow a topic in a thread while the block runs; yields what is told and what is raised."""
    told: list[tuple[int, int]] = []
    raised: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            export.export(settings, folder=folder, follow=True, stop=stop, tell=lambda *place: told.append(place))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield told, raised
    finally:
        stop.set()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_archive_holds_each_committed_record(world: World, tmp_path: Path) -> None:
    """Both partitions, no aborted record, bad messages apart; a second run adds what came since and nothing else."""
    world.create(world.settings.transactions_topic, n_partitions=2)
    publish(world, [*VALUES[:100], b"damaged"], n_partitions=2)  # 0 to 50 and 0 to 49
    world.publish(VALUES[100:130], is_aborted=True)  # 51 to 80, a marker
    world.publish([*VALUES[130:150], None], is_aborted=False)  # 82 to 102, a marker

    done = export.export(world.settings, folder=tmp_path / "archive", tell=silent)
    assert (done.n_transactions, done.n_rejected, done.n_skipped) == (120, 1, 1)
    assert done.next == {0: 104, 1: 50}
    expected = [*((0, i) for i in range(50)), *((0, i) for i in range(82, 102)), *((1, i) for i in range(50))]
    assert places(tmp_path / "archive") == expected
    assert places(tmp_path / "archive", "rejected") == [(0, 50)]

    again = export.export(world.settings, folder=tmp_path / "archive", tell=silent)
    assert again == done
    publish(world, VALUES[150:160], n_partitions=2)
    more = export.export(world.settings, folder=tmp_path / "archive", tell=silent)
    assert (more.n_transactions, more.next) == (130, {0: 109, 1: 55})
    assert places(tmp_path / "archive") == sorted(
        [*expected, *((0, i) for i in range(104, 109)), *((1, i) for i in range(50, 55))]
    )


def test_kill_at_any_instant_loses_and_doubles_nothing(world: World, tmp_path: Path) -> None:
    """A process that is killed again and again leaves, in the end, the archive of one that was left alone."""
    draw = random.Random(1)
    world.create(world.settings.transactions_topic, n_partitions=2)
    publish(world, [*VALUES, *VALUES, b"damaged", b""], n_partitions=2)
    arguments = [sys.executable, "-c", KILLABLE, world.settings.bootstrap_servers, world.settings.transactions_topic]
    n_kills = 0
    for _ in range(10):
        # An instant is so many lines of progress and, from there, a drawn moment spent in a busy loop.
        with subprocess.Popen([*arguments, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            for _ in range(draw.randrange(1, 8)):
                if next(lines, "") == "whole\n":
                    break
            for _ in range(draw.randrange(30_000)):
                pass
            process.kill()
        if process.returncode == 0:
            break
        n_kills += 1
    export.export(world.settings, folder=tmp_path / "killed", tell=silent)
    whole = export.export(world.settings, folder=tmp_path / "whole", tell=silent)

    assert n_kills > 1
    assert places(tmp_path / "killed") == places(tmp_path / "whole") == [(p, i) for p in (0, 1) for i in range(400)]
    assert places(tmp_path / "killed", "rejected") == [(0, 400)]
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert (whole.n_transactions, whole.n_rejected, whole.n_skipped) == (800, 1, 1)
    assert (tmp_path / "killed" / "offsets.json").read_bytes() == (tmp_path / "whole" / "offsets.json").read_bytes()


def test_following_takes_what_comes_and_new_partitions(world: World, tmp_path: Path) -> None:
    """While it follows, later records and partitions that are added are exported; a stop writes what was read."""
    topic = world.settings.transactions_topic
    world.create(topic)
    with following(world.settings, tmp_path / "archive") as (told, raised):
        publish(world, VALUES[:10], n_partitions=1)
        until(lambda: bool(told) and told[-1][0] == 10)
        for added in world.admin.create_partitions([NewPartitions(topic, 2)]).values():
            added.result(timeout=LIMIT_S)
        publish(world, VALUES[10:20], n_partitions=2)
        until(lambda: told[-1][0] == 20)

    assert raised == []
    assert places(tmp_path / "archive") == [*((0, i) for i in range(15)), *((1, i) for i in range(5))]


def test_deleted_records_are_not_jumped_over(world: World, tmp_path: Path) -> None:
    """Where retention was faster than the export, the gap is an error with both offsets."""
    topic = world.settings.transactions_topic
    world.create(topic)
    publish(world, VALUES[:10], n_partitions=1)
    export.export(world.settings, folder=tmp_path / "archive", tell=silent)
    publish(world, VALUES[10:20], n_partitions=1)
    for deleted in world.admin.delete_records([TopicPartition(topic, 0, 15)]).values():
        deleted.result(timeout=LIMIT_S)

    with pytest.raises(InputError, match=r"offsets 15 to 20 of '.*', partition 0, and the archive goes on at 10"):
        export.export(world.settings, folder=tmp_path / "archive", tell=silent)
    fresh = export.export(world.settings, folder=tmp_path / "fresh", tell=silent)
    assert (fresh.n_transactions, places(tmp_path / "fresh")[0]) == (5, (0, 15))


def test_other_topics_and_missing_ones_are_refused(world: World, tmp_path: Path) -> None:
    """An archive goes on with its own topic only, and a topic that is not there is named."""
    world.create(world.settings.transactions_topic)
    world.create(world.settings.scores_topic)
    export.export(world.settings, folder=tmp_path / "archive", tell=silent)
    other = world.but(transactions_topic=world.settings.scores_topic, scores_topic="x")

    with pytest.raises(InputError, match=f"is of topic '{world.settings.transactions_topic}', not of '.*scores'"):
        export.export(other, folder=tmp_path / "archive", tell=silent)
    with pytest.raises(BrokerError, match="has no topic 'nowhere'"):
        export.export(world.but(transactions_topic="nowhere"), folder=tmp_path / "other", tell=silent)


def test_command_says_what_the_archive_holds(world: World, tmp_path: Path) -> None:
    """The command ends with 0 at the topic's end, and when it follows after SIGTERM, with what was read written."""
    world.create(world.settings.transactions_topic)
    publish(world, [*VALUES[:10], b"damaged"], n_partitions=1)
    arguments = ["--bootstrap-servers", world.settings.bootstrap_servers, "--output", str(tmp_path / "archive")]
    arguments += ["--topic", world.settings.transactions_topic]
    command = [sys.executable, "-m", "service.cli", "export", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert done.returncode == 0, done.stderr
    topic = world.settings.transactions_topic
    assert f"holds 10 transactions and 1 rejected messages of '{topic}'; 0 records without a value" in done.stderr
    before = (tmp_path / "archive" / "offsets.json").stat().st_ino
    with subprocess.Popen([*command, "--follow"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        publish(world, VALUES[10:20], n_partitions=1)
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 0
    assert first.startswith("read ")
    assert "holds 20 transactions" in rest
    assert (tmp_path / "archive" / "offsets.json").stat().st_ino != before


def test_broker_that_never_answers_ends_the_export(world: World, tmp_path: Path) -> None:
    """Nothing at the address is an outage after the budget, and the command's exit code is 1."""
    [port] = servers.free_ports(1)
    command = [sys.executable, "-m", "service.cli", "export", "--output", str(tmp_path / "a")]
    environment = {"FALCONET_BROKER_RETRY_SECONDS": "0.5", "FALCONET_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert done.returncode == 1
    assert f"falconet: Kafka at 127.0.0.1:{port} failed at connecting" in done.stderr
    assert "gave up after 0.5 s" in done.stderr


def test_broker_that_dies_is_waited_for_and_then_given_up(tmp_path: Path, library: str) -> None:
    """Within the budget a restart is survived without a loss; beyond it the export ends as an outage."""
    broker = servers.KafkaBroker(tmp_path / "kafka", servers.kafka_libs())
    broker.home.mkdir()
    broker.start()
    try:
        world = World(broker.address, library, "dying", tmp_path, tmp_path)
        world.create(world.settings.transactions_topic)
        publish(world, VALUES[:20], n_partitions=1)
        with following(world.but(broker_retry_seconds=30.0), tmp_path / "archive") as (told, raised):
            until(lambda: bool(told) and told[-1][0] == 20)
            broker.stop(kill=True)
            broker.start()
            publish(world, VALUES[20:30], n_partitions=1)
            until(lambda: told[-1][0] == 30)
        assert raised == []
        with following(world.but(broker_retry_seconds=2.0), tmp_path / "archive") as (told, raised):
            until(lambda: bool(told))
            broker.stop(kill=True)
            until(lambda: bool(raised))
    finally:
        broker.stop()

    assert isinstance(raised[0], OutageError)
    assert "gave up after 2 s" in str(raised[0])
    assert places(tmp_path / "archive") == [(0, i) for i in range(30)]
