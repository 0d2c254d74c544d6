"""A replica takes its place, or says why it cannot."""

from pathlib import Path

import msgspec
import pytest

from features.errors import OutageError
from service.kafka import Client
from service.serve import Service
from service.settings import Settings
from tests import registries
from tests.fakes import FakeKafka
from tests.sites import ask


class Clients:
    """Hands out one stand-in after the other and remembers which were closed."""

    def __init__(self, *fakes: FakeKafka) -> None:
        self.waiting = list(fakes)
        self.closed: list[FakeKafka] = []

    def connect(self, settings: Settings) -> Client:
        fake = self.waiting.pop(0)
        topics = (settings.transactions_topic, settings.scores_topic, settings.alerts_topic, settings.dlq_topic)
        fake.topics = lambda: dict.fromkeys(topics, 1)  # type: ignore[method-assign]
        fake.close = lambda: self.closed.append(fake)  # type: ignore[method-assign]
        return fake


def settings(folder: Path, model: Path, **changes: float) -> Settings:
    return Settings(
        model=str(model), state_dir=folder, accounts_max=64, pairs_max=64, metrics_port=0, shadow_share=0.0, **changes
    )


def test_a_group_that_gives_no_partition_is_joined_again(tmp_path: Path, small_model: Path) -> None:
    """The client that failed is closed once, and another one serves."""
    first, second = FakeKafka(), FakeKafka()
    first.faults["join"] = [OutageError("no partition within 20 s")]
    clients = Clients(first, second)
    service = Service(settings(tmp_path, small_model), connect=clients.connect)
    second.on_empty = service.stop
    service.run()

    assert service.ready.is_set()
    assert clients.closed == [first, second]


def test_a_group_that_never_gives_a_partition_ends_the_start(tmp_path: Path, small_model: Path) -> None:
    """The budget holds for joining as for any outage."""
    fake = FakeKafka()
    fake.faults["join"] = [OutageError("no partition within 20 s")]
    clients = Clients(fake)
    service = Service(settings(tmp_path, small_model, broker_retry_seconds=0.0), connect=clients.connect)
    with pytest.raises(OutageError, match="no partition"):
        service.run()

    assert not service.ready.is_set()
    assert clients.closed == [fake]


def test_champion_that_changes_before_the_start_is_a_reload(tmp_path: Path) -> None:
    """A replica that waits for its place starts with the version it has read, whatever `champion` has come to name."""
    root = tmp_path / "registry"
    digest = registries.add_version(root, "1").digest
    (root / "champion").write_text("drawn/1\n")
    fake = FakeKafka()
    clients = Clients(fake)

    def connect(settings: Settings) -> Client:
        (root / "champion").write_text("drawn/2\n")
        return clients.connect(settings)

    chosen = msgspec.structs.replace(settings(tmp_path, root), model="", registry_dir=str(root))
    service = Service(chosen, connect=connect)
    fake.on_empty = lambda: until_refused(service)
    service.run()

    assert service._loop is not None
    assert service._loop._pipeline.judge.scorer.model.digest == digest


def until_refused(service: Service) -> None:
    """Stop the service once it has refused the version that is not there."""
    if service.metrics.model_reloads_total["refused"]._value.get():
        service.stop()


def test_ready_tells_what_the_replica_does(tmp_path: Path, small_model: Path) -> None:
    """A standby answers that it waits, the same replica is ready once it serves, and then that it stops."""
    fake = FakeKafka()
    told: list[tuple[int, list[str]]] = []

    def look() -> None:
        reply = ask(f"http://127.0.0.1:{service.metrics_port}/ready", token=None)
        told.append((reply.status, reply.json["reasons"]))

    def n_members() -> int:
        if service.is_standby:
            look()
        return 0 if service.is_standby else 1

    def empty() -> None:
        look()
        service.stop()
        look()

    service = Service(settings(tmp_path, small_model), connect=Clients(fake).connect)
    fake.n_members = n_members  # type: ignore[method-assign]
    fake.on_empty = empty
    service.run()

    assert told == [
        (503, ["standby: another replica holds the place in group 'falconet'"]),
        (200, []),
        (503, ["stopping"]),
    ]
