"""Who made a model: an Ed25519 signature over a version's manifest, which holds the checksum of every other file.

The manifest proves that a version is whole, not whose it is: whoever can write the registry can seal one. With public
keys configured, a version counts only with a signature by one of their owners. Signing and checking need the package
`cryptography` (the `sign` extra); without keys nothing here is imported.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from features.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = "manifest.sig"
SIGNATURE_BYTES_MAX = 4096
"""One of ours has 240."""

KEY_BYTES_MAX = 4096
"""A PEM file of one key has 113 to 119."""

_CONTEXT = b"falconet model manifest, version 1\n"
"""Before the signed bytes, so that a signature for another purpose by the same key never passes for one of a model."""


class Signature(Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `manifest.sig`."""

    algorithm: Literal["ed25519"]
    key: str
    """The signer's key as `fingerprint` gives it: tells an unknown signer from a changed manifest."""

    signature: str
    """64 bytes in hexadecimal."""


class Keys:
    """The public keys whose owners' models count."""

    def __init__(self, keys: "dict[str, Ed25519PublicKey]") -> None:
        self._keys = keys

    def check(self, manifest: bytes, signature: bytes | None, place: Path) -> None:
        """Return if one of the keys signed a manifest.

        Args:
            manifest: Its bytes as they are parsed afterwards.
            signature: What `manifest.sig` holds, None where there is none.
            place: The manifest's, for the message.

        Raises:
            ArtifactError: It is not signed, by another key, or not as it stands here.
        """
        from cryptography.exceptions import InvalidSignature

        trusted = ", ".join(self._keys)
        if signature is None:
            raise ArtifactError(f"{place}: is not signed, and model_keys wants a signature by {trusted}")
        try:
            found = msgspec.json.decode(signature, type=Signature)
            raw = bytes.fromhex(found.signature)
        except (msgspec.DecodeError, ValueError) as error:
            raise ArtifactError(f"{place.with_name(SIGNATURE_FILE)}: is no signature: {error}") from error
        key = self._keys.get(found.key)
        if key is None:
            raise ArtifactError(f"{place}: is signed by the key {found.key[:16]!r}, model_keys has {trusted}")
        try:
            key.verify(raw, _CONTEXT + manifest)
        except InvalidSignature as error:
            raise ArtifactError(f"{place}: the signature by {found.key} is of other bytes or forged") from error


def read_keys(paths: Sequence[Path]) -> Keys | None:
    """Return the public keys in PEM files, None where there are none: then nothing needs a signature.

    Raises:
        UsageError: A file holds no Ed25519 public key, or `cryptography` is not installed.
    """
    if not paths:
        return None
    _require("model_keys is set")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                key = load_pem_public_key(file.read(KEY_BYTES_MAX))
        except OSError as error:
            raise UsageError(f"model_keys {path}: cannot be read: {error.strerror}") from error
        except Exception as error:  # the library names no common class for what a foreign file may hold
            raise UsageError(f"model_keys {path}: holds no public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"model_keys {path}: holds a {type(key).__name__}, expected an Ed25519 public key")
        keys[fingerprint(key)] = key
    return Keys(keys)


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Return the key of a PEM file that nobody but its owner may open.

    Raises:
        UsageError: The file is open to others, encrypted, or holds no Ed25519 key; or `cryptography` is not installed.
    """
    _require("signing a model")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            # Of the opened file, not of its name, which may come to mean another between two calls.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise UsageError(f"{path}: is open to group or others (mode {mode:04o}); chmod 600 it")
            raw = file.read(KEY_BYTES_MAX)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        key = load_pem_private_key(raw, password=None)
    except TypeError as error:
        raise UsageError(f"{path}: the key is encrypted; sign where it may lie in the clear") from error
    except Exception as error:  # see `read_keys`; the cause may quote the file, so it is not told
        raise UsageError(f"{path}: holds no private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: holds a {type(key).__name__}, expected an Ed25519 private key")
    return key


def sign(manifest: bytes, key: "Ed25519PrivateKey") -> bytes:
    """Return the content of `manifest.sig`; the same manifest and key give the same bytes."""
    signature = Signature("ed25519", fingerprint(key.public_key()), key.sign(_CONTEXT + manifest).hex())
    return msgspec.json.format(msgspec.json.encode(signature)) + b"\n"


def fingerprint(key: "Ed25519PublicKey") -> str:
    """Return a key's name: the first 64 bits of the SHA-256 of its 32 bytes."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _require(what: str) -> None:
    try:
        import cryptography  # noqa: F401 - looked for, not used
    except ImportError as error:
        raise UsageError(f"{what}, and the package cryptography is not installed: install falconet[sign]") from error
