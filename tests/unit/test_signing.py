"""Signed models: who may sign, what counts as signed, and what is refused where keys are configured."""

import shutil
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from features.errors import ArtifactError, InputError, UsageError
from models import promotion, registry, signing
from models.signing import Keys
from service import cli, trust
from service.metrics import Metrics
from service.reload import Follower, Replacement
from service.settings import Settings
from tests import registries

PEM = serialization.Encoding.PEM
PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo


def write_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a key pair as OpenSSL would and return both files, the private one first."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(PEM, PUBLIC))
    return private, public


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a registry of an unsigned version and a champion that is signed by `ours`, the keys beside it."""
    folder = tmp_path_factory.mktemp("signing")
    root = folder / "registry"
    for version, seed in (("1", 1), ("2", 2)):
        registries.add_version(root, version, seed=seed, has_teacher=False, evaluation={})
    (root / "champion").write_text("drawn/1\n")
    private, _ = write_key(folder, "ours")
    write_key(folder, "theirs")
    registry.sign(root, root / "drawn" / "1", signing.read_private_key(private))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it to spoil."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def keys(place: Path, name: str = "ours") -> Keys:
    found = signing.read_keys([place / f"{name}.pub.pem"])
    assert found is not None
    return found


def settings(place: Path, *names: str, **changes: object) -> Settings:
    return Settings(
        registry_dir=str(place / "registry"),
        model_keys=tuple(place / f"{name}.pub.pem" for name in names),
        **changes,  # type: ignore[arg-type]
    )


def test_signed_version_passes_and_any_of_several_keys_will_do(made: Path) -> None:
    """The champion is found by the key that signed it, also where another is trusted besides."""
    expected = made / "registry" / "drawn" / "1" / registry.MODEL_FILE

    assert trust.model_path(settings(made, "ours")) == expected
    assert trust.model_path(settings(made, "theirs", "ours")) == expected
    assert trust.model_path(settings(made)) == expected


def test_unsigned_version_is_refused_where_a_key_is_configured(made: Path) -> None:
    """Sealed is not signed: neither the served model nor the candidate may be such a version."""
    with pytest.raises(ArtifactError, match="is not signed"):
        trust.model_path(settings(made, "ours", model="drawn/2"))
    with pytest.raises(ArtifactError, match="is not signed"):
        trust.candidate_path(settings(made, "ours", candidate_model="drawn/2"))
    with pytest.raises(ArtifactError, match="is not signed"):
        trust.model_path(settings(made, "ours", model=str(made / "registry" / "drawn" / "2")))
    with pytest.raises(ArtifactError, match="is no sealed version"):
        trust.model_path(settings(made, "ours", model=str(made / "registry" / "drawn" / "1" / registry.MODEL_FILE)))


def test_version_signed_by_another_is_refused(made: Path) -> None:
    """The refusal names the signer's key and the trusted one."""
    with pytest.raises(ArtifactError, match=r"is signed by the key '[0-9a-f]{16}', model_keys has [0-9a-f]{16}"):
        trust.model_path(settings(made, "theirs"))


def test_signature_of_other_bytes_is_refused(place: Path) -> None:
    """A manifest that was sealed anew, another version's signature, and a key's name on another's signature."""
    root = place / "registry"
    other = root / "drawn" / "2"
    shutil.copy(root / "drawn" / "1" / signing.SIGNATURE_FILE, other)
    with pytest.raises(ArtifactError, match="is of other bytes or forged"):
        registry.verify_version(root, other, keys(place))

    registry.sign(root, other, signing.read_private_key(place / "theirs.pem"))
    forged = (other / signing.SIGNATURE_FILE).read_text()
    names = [next(iter(keys(place, name)._keys)) for name in ("theirs", "ours")]
    (other / signing.SIGNATURE_FILE).write_text(forged.replace(*names))
    with pytest.raises(ArtifactError, match="is of other bytes or forged"):
        registry.verify_version(root, other, keys(place))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04\x95pickle", b"{}", b'{"algorithm":"none","key":"","signature":""}', b"[" * 5000, b"\xff" * 10_000],
)
def test_hostile_signature_is_refused(place: Path, content: bytes) -> None:
    """Whatever stands in the signature's file is refused with its place."""
    folder = place / "registry" / "drawn" / "1"
    (folder / signing.SIGNATURE_FILE).write_bytes(content)

    with pytest.raises(ArtifactError, match=r"manifest\.sig: is no signature"):
        registry.verify(folder, keys(place))


def test_signature_that_is_a_link_is_refused(place: Path) -> None:
    """A version holds plain files; what a link points to is never read."""
    path = place / "registry" / "drawn" / "1" / signing.SIGNATURE_FILE
    path.rename(place / "elsewhere")
    path.symlink_to(place / "elsewhere")

    with pytest.raises(ArtifactError, match=r"manifest\.sig"):
        registry.verify(path.parent, keys(place))


def test_changed_model_is_refused_though_its_manifest_is_signed(place: Path) -> None:
    """The signature reaches the model through the manifest's checksum."""
    folder = place / "registry" / "drawn" / "1"
    raw = bytearray((folder / registry.MODEL_FILE).read_bytes())
    raw[-1] ^= 1
    (folder / registry.MODEL_FILE).write_bytes(raw)

    with pytest.raises(ArtifactError, match="checksum differs"):
        registry.verify(folder, keys(place))


def test_promotion_and_rollback_want_the_signature_even_by_force(place: Path) -> None:
    """No force promotes an unsigned version; a rollback to one is refused and leaves the champion."""
    root = place / "registry"
    outcome = promotion.promote(
        root, root / "drawn" / "2", latency_budget=100, is_forced=True, reason="try", keys=keys(place)
    )
    assert not outcome.is_promoted
    assert any("is not signed" in reason for reason in outcome.verdict.broken)

    registry.sign(root, root / "drawn" / "2", signing.read_private_key(place / "ours.pem"))
    outcome = promotion.promote(
        root, root / "drawn" / "2", latency_budget=100, is_forced=True, reason="try", keys=keys(place)
    )
    assert outcome.is_promoted
    (root / "drawn" / "1" / signing.SIGNATURE_FILE).unlink()
    with pytest.raises(ArtifactError, match="is not signed"):
        promotion.rollback(root, keys=keys(place))
    assert registry.champion_id(root) == "drawn/2"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_private_key_open_to_others_is_refused(place: Path, mode: int) -> None:
    """A key that others may read is nobody's signature."""
    (place / "ours.pem").chmod(mode)

    with pytest.raises(UsageError, match=f"mode {mode:04o}"):
        signing.read_private_key(place / "ours.pem")


def test_key_files_that_hold_no_such_key_are_refused(place: Path) -> None:
    """A missing file, garbage, a public key for a private one, a key of another kind, an encrypted one."""
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    plain = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    wrong = {"no private key": b"\x80\x04\x95", "expected an Ed25519": plain, "is encrypted": encrypted}
    path = place / "key.pem"
    path.touch(mode=0o600)
    for said, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            signing.read_private_key(path)
    path.write_bytes(key.public_key().public_bytes(PEM, PUBLIC))

    with pytest.raises(UsageError, match="cannot be read"):
        signing.read_private_key(place / "none.pem")
    with pytest.raises(UsageError, match="expected an Ed25519 public key"):
        signing.read_keys([path])
    with pytest.raises(UsageError, match="holds no public key"):
        signing.read_keys([place / "ours.pem"])


def test_missing_package_is_told_only_where_a_key_is_configured(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys nothing needs `cryptography`; with one its absence ends the start with the extra's name."""
    monkeypatch.setitem(sys.modules, "cryptography", None)

    assert trust.keys(settings(made)) is None
    with pytest.raises(UsageError, match=r"install falconet\[sign\]"):
        trust.keys(settings(made, "ours"))


def test_command_signs_a_version(place: Path) -> None:
    """`model sign` writes what `model_keys` then accepts, and says the key's name but nothing of the key."""
    options = ["--key", str(place / "theirs.pem"), "--registry-dir", str(place / "registry")]
    done = CliRunner().invoke(cli.app, ["model", "sign", "drawn/2", *options])

    assert done.exit_code == 0, done.output
    assert done.stdout == f"signed drawn/2 with the key {next(iter(keys(place, 'theirs')._keys))}\n"
    assert trust.model_path(settings(place, "theirs", model="drawn/2")).is_file()


def test_command_refuses_before_it_writes(place: Path) -> None:
    """A version that is not whole is not signed."""
    folder = place / "registry" / "drawn" / "2"
    (folder / "extra").write_bytes(b"")

    with pytest.raises(InputError, match="is not listed"):
        registry.sign(place / "registry", folder, signing.read_private_key(place / "ours.pem"))
    assert not (folder / signing.SIGNATURE_FILE).exists()


class Taking:
    """Takes what a follower hands over."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def replace(self, replacement: Replacement) -> None:
        self.taken.append(replacement.scorer.model.version)
        replacement.adopted.set()


def test_hot_reload_refuses_what_is_not_signed_and_goes_on(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An unsigned champion is refused with its reason while the old model serves; once it is signed it takes over."""
    root, taking, metrics = place / "registry", Taking(), Metrics()
    chosen = settings(place, "ours", shadow_share=0.0)
    in_use = registry.verify(root / "drawn" / "1").digest
    follower = Follower(chosen, None, metrics, digest=in_use, adopter=taking)
    (root / "champion").write_text("drawn/2\n")
    follower.look()
    registry.sign(root, root / "drawn" / "2", signing.read_private_key(place / "theirs.pem"))
    follower.look()
    refusals = [record.message for record in caplog.records if "reload refused" in record.message]
    registry.sign(root, root / "drawn" / "2", signing.read_private_key(place / "ours.pem"))
    follower.look()

    assert ["is not signed" in refusals[0], "is signed by the key" in refusals[1]] == [True, True]
    assert metrics.model_reloads_total["refused"]._value.get() == 2
    assert taking.taken == ["2"]
