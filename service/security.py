"""The knock at a broker's door before a client library goes in: TLS and the login, with a reason where either fails.

Both libraries try a refused login or certificate again and again and then say that the broker is away. A broker that
refuses us is told apart here, in one exchange on a connection of our own, so that it ends the process at once with what
is wrong. A broker that cannot be reached says nothing: the library meets the outage, and the loop's budget counts.
"""

import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from kafka.net.sasl import get_sasl_mechanism

from features.errors import BrokerError, UsageError
from service.settings import Settings

KNOCK_SECONDS = 5.0
"""Longest wait for a connection and for each answer on it."""

ATTEMPTS = 3
"""A refused certificate may show as a bare reset, and so may a broker that is just going down; a broker that resets
three connections after taking each is not going down."""

ANSWER_BYTES_MAX = 1 << 20
"""An answer here has some hundred bytes; what is longer is not Kafka's."""

_API_VERSIONS, _SASL_HANDSHAKE, _SASL_AUTHENTICATE = 18, 17, 36


class _Reset(Exception):  # noqa: N818 - no error but an answer
    """The peer ended the connection without a word."""


class _Door(NamedTuple):
    """A broker's address, with what is needed to knock."""

    settings: Settings
    context: ssl.SSLContext | None
    host: str
    port: int

    @property
    def name(self) -> str:
        return f"Kafka at {self.host}:{self.port}"


def knock(settings: Settings) -> None:
    """Return when a broker lets us in, or when none can be reached.

    Without TLS and login there is nothing that could be refused, and nobody is asked.

    Raises:
        UsageError: A certificate, key or authority of the settings cannot be used.
        BrokerError: Every broker that can be reached refuses us, or is not who it should be.
    """
    if settings.security_protocol == "PLAINTEXT":
        return
    context = _context(settings) if settings.security_protocol in ("SSL", "SASL_SSL") else None
    refusal: BrokerError | None = None
    for address in settings.bootstrap_servers.split(","):
        host, port = address.rsplit(":", 1)
        try:
            _enter(_Door(settings, context, host.strip("[]"), int(port)))
        except BrokerError as error:
            refusal = refusal or error
        except OSError:
            continue
        else:
            return
    if refusal is not None:
        raise refusal


def _context(settings: Settings) -> ssl.SSLContext:
    """Load authority, certificate and key as both libraries will.

    Raises:
        UsageError: One of them cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ssl_cafile is None:
        context.load_default_certs()
    else:
        _load(f"ssl_cafile {settings.ssl_cafile}", lambda: context.load_verify_locations(settings.ssl_cafile))
    if settings.ssl_certfile is not None:
        certfile, keyfile = settings.ssl_certfile, settings.ssl_keyfile
        # A function, so that an encrypted key without a password fails instead of asking the terminal for it.
        password = settings.ssl_key_password or ""
        _load(
            f"ssl_certfile {certfile} with ssl_keyfile {keyfile}",
            lambda: context.load_cert_chain(certfile, keyfile, password=lambda: password),
        )
    return context


def _load(what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and "KEY_VALUES_MISMATCH" in str(error):
            raise UsageError(f"{what} cannot be used: the key belongs to another certificate") from error
        hint = "" if isinstance(error, FileNotFoundError | PermissionError) else _HINT
        raise UsageError(f"{what} cannot be used: {_reason(error)}{hint}") from error


_HINT = "; it must be PEM, and an encrypted key needs its ssl_key_password"


def _enter(door: _Door) -> None:
    """Go through TLS and the login once.

    Raises:
        BrokerError: We are refused, or the broker is not who it should be.
        OSError: It cannot be reached, or does not answer in time.
    """
    for attempt in range(ATTEMPTS):
        try:
            # Not reachable is no refusal, so this stands outside of what may be one.
            with socket.create_connection((door.host, door.port), KNOCK_SECONDS) as plain:
                connection = _handshake(door, plain)
                with connection:
                    _converse(door, connection)
            return
        except _Reset as error:
            if attempt == ATTEMPTS - 1:
                raise BrokerError(f"{door.name} {error}{_own_fault(door)}") from error


def _handshake(door: _Door, plain: socket.socket) -> socket.socket:
    if door.context is None:
        return plain
    try:
        return door.context.wrap_socket(plain, server_hostname=door.host)
    except ssl.SSLCertVerificationError as error:
        raise BrokerError(
            f"{door.name} shows a certificate that is not accepted: {error.verify_message};"
            f" ssl_cafile is {door.settings.ssl_cafile or 'not set, the system’s authorities count'}"
        ) from error
    except (ssl.SSLEOFError, ConnectionError) as error:
        raise _Reset("ends the connection during the TLS handshake: it may not speak TLS there") from error
    except ssl.SSLError as error:
        raise _refused(door, error) from error


def _converse(door: _Door, connection: socket.socket) -> None:
    """Ask what any client asks first, and log in.

    With TLS 1.3 the client's certificate is judged after the client's handshake is over: the first answer tells.
    """
    try:
        _ask(door, connection, _API_VERSIONS, 0, b"")
        if door.settings.sasl_mechanism is not None:
            _log_in(door, connection, door.settings.sasl_mechanism)
    except ssl.SSLError as error:
        raise _refused(door, error) from error
    except ConnectionError as error:
        raise _Reset(
            "ends the connection after the handshake: it refuses the certificate, wants one, or wants another protocol"
            if door.context is not None
            else f"ends the connection: it may not speak {door.settings.security_protocol} there"
        ) from error


def _log_in(door: _Door, connection: socket.socket, wanted: str) -> None:
    settings = door.settings
    answer = _ask(door, connection, _SASL_HANDSHAKE, 1, _string(wanted))
    if struct.unpack_from(">h", answer)[0] != 0:
        raise BrokerError(f"{door.name} does not offer sasl_mechanism {wanted}")
    mechanism: Any = get_sasl_mechanism(wanted)(
        sasl_mechanism=wanted,
        sasl_plain_username=settings.sasl_username,
        sasl_plain_password=settings.sasl_password,
    )
    while not mechanism.is_done():
        token = mechanism.auth_bytes()
        answer = _ask(door, connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
        code, length = struct.unpack_from(">hh", answer)
        text = answer[4 : 4 + max(length, 0)]
        if code != 0:
            said = text.decode(errors="replace") or f"error {code}"
            raise BrokerError(f"{door.name} refuses the login of {settings.sasl_username!r}: {said}")
        try:
            mechanism.receive(answer[4 + len(text) + 4 :])
        except (ValueError, KeyError) as error:
            raise BrokerError(f"{door.name} does not prove that it knows the password: {error}") from error


def _ask(door: _Door, connection: socket.socket, api: int, version: int, body: bytes) -> bytes:
    """Send one request in Kafka's frame and return what follows the answer's correlation id."""
    request = struct.pack(">hhi", api, version, 1) + _string("falconet") + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    (length,) = struct.unpack(">i", _read(connection, 4))
    if not 4 <= length <= ANSWER_BYTES_MAX:
        # The alert of a broker that speaks TLS reads as a frame of 352,518,912 bytes.
        raise BrokerError(
            f"{door.name} does not answer as Kafka does, with a frame of {length} bytes:"
            f" it may not speak {door.settings.security_protocol} there"
        )
    return _read(connection, length)[4:]


def _read(connection: socket.socket, n: int) -> bytes:
    found = b""
    while len(found) < n:
        more = connection.recv(n - len(found))
        if not more:
            raise ConnectionResetError("the connection was ended")
        found += more
    return found


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _refused(door: _Door, error: ssl.SSLError) -> BrokerError:
    """Return the error of an alert, or of bytes that are no TLS."""
    if isinstance(error, ssl.SSLEOFError):
        raise _Reset("ends the connection after the handshake") from error
    if "ALERT" in str(error.reason):
        return BrokerError(f"{door.name} refuses the TLS connection: {_reason(error)}{_own_fault(door)}")
    return BrokerError(f"{door.name} does not speak TLS there, or a TLS that is not taken: {_reason(error)}")


def _own_fault(door: _Door) -> str:
    """Return what can be said of our own certificate without the broker."""
    settings = door.settings
    if door.context is None:
        return ""
    if settings.ssl_certfile is None:
        return "; ssl_certfile is not set, and the broker may demand a certificate"
    fault = _fault(settings)
    return f"; ssl_certfile {settings.ssl_certfile} is " + (f"refused here, too: {fault}" if fault else "in date")


def _fault(settings: Settings) -> str | None:
    """Return why the client certificate does not hold by itself, its authority taken for granted; None where it does.

    The standard library reads no dates from a certificate, but it judges one in a handshake: this one is with
    ourselves, in memory, and trusts nothing but this certificate.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server.load_verify_locations(settings.ssl_certfile)
    for each in (server, client):
        each.load_cert_chain(
            str(settings.ssl_certfile), settings.ssl_keyfile, password=lambda: settings.ssl_key_password or ""
        )
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    # Hello, the server's flight, the client's, the end: each side comes to its turn twice.
    for side in sides * 2:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return None


def _reason(error: Exception) -> str:
    """Return the words of an error without OpenSSL's file and line."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)
