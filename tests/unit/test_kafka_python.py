"""What the default client does when its library fails it."""

from kafka import errors as kafka_errors

from service.kafka_python import KafkaPythonClient, _Listener


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
