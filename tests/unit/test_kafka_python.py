"""What the default client does when its library fails it."""

import pytest
from kafka import errors as kafka_errors

from service.kafka import poll_interval_ms
from service.kafka_python import KafkaPythonClient, _Listener
from service.settings import Settings


class Unclosable:
    """A client of the library whose broker is away."""

    def __init__(self) -> None:
        self.n_closed = 0

    def close(self, **_options: object) -> None:
        self.n_closed += 1
        raise kafka_errors.KafkaTimeoutError("Timeout waiting for future")


def test_close_hides_no_error_and_closes_all() -> None:
    """Closing in an outage raises nothing over the error that ends the process, and leaves nothing open."""
    client = KafkaPythonClient.__new__(KafkaPythonClient)  # connecting takes a broker
    client._listener, client._calls = _Listener(), None
    opened = client._producer, client._consumer, client._admin = Unclosable(), Unclosable(), Unclosable()

    client.close()

    assert [each.n_closed for each in opened] == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 90),
        ({"broker_retry_seconds": 0.0}, 60),
        ({"broker_retry_seconds": 86_400.0}, 86_400),
        ({"session_seconds": 300.0}, 300),
    ],
)
def test_group_waits_for_a_poll_longer_than_an_outage_lasts(changes: dict[str, float], seconds: int) -> None:
    """No member is struck off while it tries again, and none that is gone is waited for without end."""
    assert poll_interval_ms(Settings(**changes)) == seconds * 1000
