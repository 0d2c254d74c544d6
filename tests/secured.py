"""An Apache Kafka whose doors are locked: TLS with SCRAM, TLS both ways, and some with a wrong certificate."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests import servers
from tests.certificates import Authority
from tests.servers import KafkaBroker, Listener

USER = "falconet"
PASSWORD = "Tr0ub4dor-3-swordfish"
KEY_PASSWORD = "0penSesame-of-the-key"

SCRAM, MUTUAL, EXPIRED, ELSEWHERE = "SCRAM", "MUTUAL", "EXPIRED", "ELSEWHERE"


class Locked:
    """A running broker and the files of whoever may enter, and of whoever may not."""

    def __init__(self, broker: KafkaBroker, folder: Path, authority: Authority) -> None:
        self.broker = broker
        self.cafile = authority.cafile
        self.client = authority.client("client")
        self.client_locked = authority.client("client-locked", password=KEY_PASSWORD)
        self.client_expired = authority.client("client-expired", is_expired=True)
        stranger = Authority(folder, "stranger")
        self.stranger_cafile = stranger.cafile
        self.stranger = stranger.client("stranger-client")

    def scram(self, **changes: object) -> dict[str, object]:
        """Return the settings of TLS with a SCRAM login."""
        return {
            "bootstrap_servers": self.broker.address_of(SCRAM),
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": USER,
            "sasl_password": PASSWORD,
            "ssl_cafile": str(self.cafile),
        } | changes

    def mutual(self, files: tuple[Path, Path] | None = None, **changes: object) -> dict[str, object]:
        """Return the settings of TLS with a client certificate."""
        certfile, keyfile = files or self.client
        return {
            "bootstrap_servers": self.broker.address_of(MUTUAL),
            "security_protocol": "SSL",
            "ssl_cafile": str(self.cafile),
            "ssl_certfile": str(certfile),
            "ssl_keyfile": str(keyfile),
        } | changes

    def tls(self, listener: str) -> dict[str, object]:
        """Return the settings of a door that asks for nothing but TLS."""
        return {
            "bootstrap_servers": self.broker.address_of(listener),
            "security_protocol": "SSL",
            "ssl_cafile": str(self.cafile),
        }


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Locked]:
    """Run the broker in a folder, which then also holds the certificates.

    Raises:
        MissingServerError: See `servers.kafka`.
    """
    libs = servers.kafka_libs()
    authority = Authority(folder, "authority")

    def tls(certificate: Path) -> dict[str, object]:
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": certificate,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": authority.cafile,
        }

    own = tls(authority.server("broker"))
    logins = {
        "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
        **{
            f"scram-sha-{bits}.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            for bits in (256, 512)
        },
    }
    listeners = (
        Listener(SCRAM, "SASL_SSL", own | logins),
        Listener(MUTUAL, "SSL", own | {"ssl.client.auth": "required"}),
        Listener(EXPIRED, "SSL", tls(authority.server("expired", is_expired=True))),
        Listener(ELSEWHERE, "SSL", tls(authority.server("elsewhere", host="kafka.example"))),
    )
    scram = [f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]" for bits in (256, 512)]
    broker = KafkaBroker(folder / "kafka", libs, listeners=listeners, scram=scram)
    broker.home.mkdir()
    broker.start()
    try:
        yield Locked(broker, folder, authority)
    finally:
        broker.stop()
