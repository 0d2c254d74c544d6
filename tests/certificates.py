"""Certificates and keys for tests: an authority of one's own, what it signs, and what is wrong on purpose."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates, each written as PEM files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            _builder(self._name, self._name, self._key.public_key(), is_expired=False)
            .add_extension(basic, critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.cafile = folder / f"{name}.pem"
        self.cafile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, *, host: str = "127.0.0.1", is_expired: bool = False) -> Path:
        """Write a broker's key and certificate into one file, as Kafka reads them, and return it."""
        key, certificate = self._signed(name, host=host, is_expired=is_expired)
        path = self._folder / f"{name}.pem"
        path.write_bytes(key + certificate)
        return path

    def client(self, name: str, *, is_expired: bool = False, password: str | None = None) -> tuple[Path, Path]:
        """Write a client's certificate and its key, encrypted where there is a password, and return both files."""
        key, certificate = self._signed(name, host=None, is_expired=is_expired, password=password)
        certfile, keyfile = self._folder / f"{name}.cert.pem", self._folder / f"{name}.key.pem"
        certfile.write_bytes(certificate)
        keyfile.write_bytes(key)
        return certfile, keyfile

    def _signed(
        self, name: str, *, host: str | None, is_expired: bool, password: str | None = None
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key.public_key(), is_expired=is_expired)
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if host is None else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if host is not None:
            # An address counts only as an address, a name only as a name.
            is_address = host.replace(".", "").isdigit()
            known = x509.IPAddress(ipaddress.ip_address(host)) if is_address else x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([known]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password.encode())
        pem = serialization.Encoding.PEM
        return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption), certificate.public_bytes(pem)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, is_expired: bool
) -> x509.CertificateBuilder:
    """Begin a certificate of four days, two of them past, or one that ended yesterday."""
    begins = datetime.datetime.now(datetime.UTC) - 2 * DAY
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + (DAY if is_expired else 4 * DAY))
    )
