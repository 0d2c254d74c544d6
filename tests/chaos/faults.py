"""The faults, each on a stream of its own: what is done to it, how often, and when it counts as over."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import Consumer
from confluent_kafka.admin import NewPartitions

from service.kafka import TRANSACTION_SECONDS
from tests.chaos.proxy import ADD_OFFSETS, END_TRANSACTION
from tests.chaos.stage import LIMIT_S, RETRY_SECONDS, ChaosError, Stage
from tests.replica import Replica

END_SECONDS_MAX = RETRY_SECONDS + TRANSACTION_SECONDS
"""A fault that cannot be survived ends the process in this time: the budget, or what a hanging call is given."""

EXPIRY_SECONDS = 11.0
"""The broker looks for transactions beyond their time every 10 s."""

DISK_MB = 16

RETRIABLE = {14: "COORDINATOR_LOAD_IN_PROGRESS", 15: "COORDINATOR_NOT_AVAILABLE", 16: "NOT_COORDINATOR"}
FATAL = {48: "INVALID_TXN_STATE", 53: "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", 90: "PRODUCER_FENCED"}


class Fault(NamedTuple):
    """One kind of fault."""

    name: str
    does: str
    """One sentence for the table."""

    since: str
    """From where the recovery is counted."""

    strike: Callable[[Stage, int], None]
    """Does it a number of times, each time until scores flow again."""

    n: int
    """How often in the long form."""

    n_lanes: int = 1
    """Streams side by side, which share the number."""

    n_partitions: int = 1
    """Of the input topic at the beginning."""

    is_ordered: bool = True
    """Whether the scores must be those of an undisturbed run: between several partitions there is no one order."""

    has_disk: bool = False
    """Whether the state stands on a small disk of its own."""


def kill_service(stage: Stage, n: int) -> None:
    """Four in five while it serves, else while it starts."""
    for _ in range(n):
        if stage.random.random() < 0.8:
            replica = stage.serving()
            stage.last(stage.random.uniform(0.0, 1.5))
        else:
            stage.until(lambda: stage.replicas, "a replica is there")
            [replica] = stage.replicas
            stage.last(stage.random.uniform(0.0, 3.0))
        stage.mark()
        replica.kill()
        stage.recover()


def kill_broker(stage: Stage, n: int) -> None:
    """With data and address kept."""
    for _ in range(n):
        stage.serving()
        stage.last(stage.random.uniform(0.5, 2.0))
        stage.broker.stop(kill=True)
        stage.last(stage.random.uniform(0.0, 2.0))
        stage.broker.start()
        stage.mark()
        stage.recover()


def freeze_beside_standby(stage: Stage, n: int) -> None:
    """Longer than the session and, in turn, than the transaction."""
    stage.n_wanted = 2
    for i in range(n):
        replica = stage.serving()
        stage.until(lambda active=replica: _has_standby(stage, active), "a standby waits")
        stage.last(stage.random.uniform(0.0, 1.0))
        stage.mark()
        frozen_s = time.monotonic()
        replica.signal(signal.SIGSTOP)
        stage.recover()
        if i % 2:
            stage.last(TRANSACTION_SECONDS + EXPIRY_SECONDS - (time.monotonic() - frozen_s))
        _thaw_and_see_it_end(stage, replica)
    stage.n_wanted = 1


def freeze_alone(stage: Stage, n: int) -> None:
    """Longer than the transaction."""
    for _ in range(n):
        replica = stage.serving()
        stage.last(stage.random.uniform(0.0, 1.0))
        replica.signal(signal.SIGSTOP)
        stage.last(TRANSACTION_SECONDS + EXPIRY_SECONDS)
        stage.mark()
        _thaw_and_see_it_end(stage, replica)
        stage.recover()


def _thaw_and_see_it_end(stage: Stage, replica: Replica) -> None:
    """Whether the group, the broker or its own clock tells it first, it may go on with nothing."""
    replica.signal(signal.SIGCONT)
    see_it_end(stage, replica)


def see_it_end(stage: Stage, replica: Replica) -> None:
    """Return when a replica has ended by itself.

    Raises:
        ChaosError: It does not in time, or not with exit code 1.
    """
    stage.until(lambda: replica.code is not None, "it ends by itself", limit_s=END_SECONDS_MAX)
    if replica.code != 1:
        raise ChaosError(f"exit code {replica.code}: {replica.last_line()!r}")


def _has_standby(stage: Stage, active: Replica) -> bool:
    return any(each.said("standby group=") for each in stage.replicas if each is not active)


def cut_network(stage: Stage, n: int) -> None:
    """Connections break and are refused."""
    for _ in range(n):
        stage.serving()
        stage.last(stage.random.uniform(0.2, 1.0))
        stage.proxy.cut()
        stage.last(stage.random.uniform(0.1, 4.0))
        stage.proxy.heal()
        stage.mark()
        stage.recover()


def silence_network(stage: Stage, n: int) -> None:
    """Connections stay and bring nothing, for less and for more than the session."""
    for _ in range(n):
        stage.serving()
        stage.last(stage.random.uniform(0.2, 1.0))
        stage.proxy.hang()
        stage.last(stage.random.uniform(1.0, 2.0 * stage.settings.session_seconds))
        stage.proxy.heal()
        stage.mark()
        stage.recover()


def slow_network(stage: Stage, n: int) -> None:
    """Frames are late and thin; scores must flow meanwhile."""
    for _ in range(n):
        stage.serving()
        stage.proxy.delay_s, stage.proxy.bytes_per_s = 0.05, 1_000_000.0
        stage.mark()
        stage.recover()
        stage.last(10.0)
        stage.proxy.heal()


def lose_network(stage: Stage, n: int) -> None:
    """Refused or silent for good: the process must end by itself, and so must the next, which never served."""
    for i in range(n):
        replica = stage.serving()
        stage.last(stage.random.uniform(0.2, 1.0))
        (stage.proxy.hang if i % 2 else stage.proxy.cut)()
        see_it_end(stage, replica)
        stage.until(lambda: any(each.code is None for each in stage.replicas), "another start")
        see_it_end(stage, next(each for each in stage.replicas if each.code is None))
        stage.proxy.heal()
        stage.mark()
        stage.recover()


def lose_answers(stage: Stage, n: int) -> None:
    """The broker commits, and the service does not learn it."""
    for _ in range(n):
        stage.serving()
        stage.last(stage.random.uniform(0.2, 1.0))
        n_before = stage.proxy.n_swallowed
        stage.proxy.swallowing.add(END_TRANSACTION)
        stage.until(lambda before=n_before: stage.proxy.n_swallowed > before, "an answer is lost")
        stage.mark()
        stage.recover()


def answer_retriably(stage: Stage, n: int) -> None:
    """The coordinator is said to be away."""
    for i in range(n):
        stage.serving()
        code = list(RETRIABLE)[i % len(RETRIABLE)]
        n_before = stage.proxy.n_answered
        stage.proxy.errors[(END_TRANSACTION, ADD_OFFSETS)[i % 2]] = code
        stage.until(lambda before=n_before: stage.proxy.n_answered > before, "an error is answered")
        stage.last(stage.random.uniform(0.5, 3.0))
        stage.proxy.heal()
        stage.mark()
        stage.recover()


def answer_fatally(stage: Stage, n: int) -> None:
    """The process must end by itself, and its successor go on."""
    for i in range(n):
        replica = stage.serving()
        stage.proxy.errors[END_TRANSACTION] = list(FATAL)[i % len(FATAL)]
        see_it_end(stage, replica)
        stage.proxy.heal()
        stage.mark()
        stage.recover()


def lack_replicas(stage: Stage, n: int) -> None:
    """The real broker's NOT_ENOUGH_REPLICAS, by `min.insync.replicas`."""
    for _ in range(n):
        stage.serving()
        stage.alter(stage.settings.scores_topic, min_insync_replicas="2")
        stage.last(stage.random.uniform(1.0, 5.0))
        stage.alter(stage.settings.scores_topic, min_insync_replicas="1")
        stage.mark()
        stage.recover()


def refuse_records(stage: Stage, n: int) -> None:
    """The real broker's MESSAGE_TOO_LARGE, by `max.message.bytes`: the process must end by itself."""
    for _ in range(n):
        replica = stage.serving()
        stage.alter(stage.settings.scores_topic, max_message_bytes="100")
        see_it_end(stage, replica)
        stage.alter(stage.settings.scores_topic, max_message_bytes="1048588")
        stage.mark()
        stage.recover()


def fill_disk(stage: Stage, n: int) -> None:
    """The stream goes on without snapshots, a kill finds the last whole one, and room brings them back."""
    filler = stage.settings.state_dir / "filler"
    for _ in range(n):
        replica = stage.serving()
        stage.until(lambda one=replica: one.said("snapshot path="), "a snapshot")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        stage.until(lambda one=replica: one.said("No space left on device"), "a snapshot fails")
        n_read = stage.n_read
        stage.until(lambda before=n_read: stage.n_read > before + 100, "scores in spite of it")
        stage.mark()
        replica.kill()
        stage.recover()
        filler.unlink()
        successor = stage.serving()
        stage.until(lambda one=successor: one.said("snapshot path="), "snapshots again")


def add_partitions(stage: Stage, n: int) -> None:
    """One more each time; what is written there must be scored as well."""
    for _ in range(n):
        stage.serving()
        stage.last(1.0)
        replica = stage.serving()
        widen_topic(stage, stage.n_partitions + 1)
        stage.last(2.0)  # until the feeder knows of it
        stage.n_partitions += 1
        see_it_end(stage, replica)
        stage.mark()
        stage.recover()


def widen_topic(stage: Stage, n_partitions: int) -> None:
    """Give the input topic more partitions, which nothing is fed to yet."""
    wanted = NewPartitions(stage.settings.transactions_topic, n_partitions)
    for made in stage.admin.create_partitions([wanted]).values():
        made.result(timeout=LIMIT_S)


def storm_group(stage: Stage, n: int) -> None:
    """Strangers join the group and leave it, three times in a row."""
    for _ in range(n):
        stage.serving()
        stage.last(stage.random.uniform(0.2, 1.0))
        for _ in range(3):
            stranger = Consumer(
                {
                    "bootstrap.servers": stage.broker.address,
                    "group.id": stage.settings.group_id,
                    "enable.auto.commit": False,
                    "log_level": 2,
                }
            )
            stranger.subscribe([stage.settings.transactions_topic])
            end_s = time.monotonic() + stage.random.uniform(0.5, 2.0)
            while time.monotonic() < end_s:
                stranger.poll(0.02)
                stage.tend()
            stranger.close()
        stage.mark()
        stage.recover()


def share_identity(stage: Stage, n: int) -> None:
    """Both are killed, and both start at once when the group is free."""
    stage.n_wanted = 2
    for _ in range(n):
        stage.serving()
        stage.last(stage.random.uniform(0.5, 1.5))
        stage.mark()
        for replica in list(stage.replicas):
            replica.kill()
        stage.recover()
    stage.n_wanted = 1


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Mount a file system of DISK_MB on a folder; only root may.

    Raises:
        PermissionError: We may not.
    """
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        raise PermissionError("only root can mount a small disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


FAULTS = (
    Fault("kill", "`kill -9` of the service, also while it starts", "the kill", kill_service, 100, n_lanes=2),
    Fault(
        "kill-partitions",
        "`kill -9` of the service, with three partitions",
        "the kill",
        kill_service,
        20,
        n_lanes=2,
        n_partitions=3,
        is_ordered=False,
    ),
    Fault("broker", "`kill -9` of the broker, back with its data", "its answering again", kill_broker, 10),
    Fault(
        "freeze",
        "SIGSTOP beside a standby, beyond session or transaction time-out; thawed, it must end",
        "the freeze",
        freeze_beside_standby,
        4,
    ),
    Fault(
        "frozen-alone",
        "SIGSTOP without a standby, beyond both time-outs; thawed, it must end",
        "the thaw",
        freeze_alone,
        2,
    ),
    Fault("cut", "connections broken and refused for up to 4 s", "the repair", cut_network, 10),
    Fault("silent", "connections that bring nothing for 1 to 12 s", "the repair", silence_network, 6),
    Fault(
        "gone",
        "refused or silent for good, while it serves and while it starts: must end",
        "the repair",
        lose_network,
        4,
    ),
    Fault("slow", "every frame 50 ms late, 1 MB/s a connection", "the beginning", slow_network, 3),
    Fault("lost-answer", "a commit done whose answer is lost", "the loss", lose_answers, 10),
    Fault("retriable", f"answers {', '.join(RETRIABLE.values())}", "the last such answer", answer_retriably, 6),
    Fault("replicas", "real NOT_ENOUGH_REPLICAS for 1 to 5 s", "the repair", lack_replicas, 4),
    Fault("fatal", f"answers {', '.join(FATAL.values())}: must end", "the end", answer_fatally, 3),
    Fault("too-large", "real MESSAGE_TOO_LARGE: must end", "the end", refuse_records, 2),
    Fault("disk", "no room for snapshots (tmpfs), then `kill -9`", "the kill", fill_disk, 3, has_disk=True),
    Fault(
        "partitions",
        "a partition more in the topic: must end, and read it",
        "the end",
        add_partitions,
        3,
        is_ordered=False,
    ),
    Fault("storm", "strangers join and leave the group, three at a time", "the last one's leaving", storm_group, 5),
    Fault("identity", "two services of one identity start at once", "the kill before", share_identity, 5),
)
