"""The model's file: what is written is read, and nothing else is."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from features import schema
from features.errors import ArtifactError
from models import compact
from tests.boosters import READ_NAMES, drawn_rows, header, trained, write_model

_PACKED = "unknown_left"
PREFIX = struct.Struct("<8sIIQ")


@pytest.fixture(scope="module")
def booster() -> lgb.Booster:
    """A small model."""
    return trained()


@pytest.fixture
def path(tmp_path: Path, booster: lgb.Booster) -> Path:
    """The small model's file."""
    path = tmp_path / "model.falconet"
    write_model(path, booster)
    return path


def sealed(content: bytes) -> bytes:
    """Return a changed file with a length and a checksum that fit, as a forger would."""
    body = bytearray(content[:-32])
    magic, version, n_header, _ = PREFIX.unpack_from(body)
    PREFIX.pack_into(body, 0, magic, version, n_header, len(body) + 32)
    return bytes(body) + hashlib.sha256(body).digest()


def test_what_is_written_is_read(path: Path, booster: lgb.Booster) -> None:
    """Header and arrays come back as they were, and the digest is the file's."""
    trees, names, leaf_scale = compact.from_booster(booster, READ_NAMES)

    artifact = compact.read(path)

    assert artifact.header == header(trees, names, leaf_scale)
    for field, array in trees._asdict().items():
        np.testing.assert_array_equal(getattr(artifact.trees, field), array)
    assert artifact.digest == hashlib.sha256(path.read_bytes()[:-32]).hexdigest()
    assert artifact.n_bytes == path.stat().st_size


def test_same_model_gives_same_bytes(path: Path, tmp_path: Path, booster: lgb.Booster) -> None:
    """Nothing in the file depends on the time or the place of writing."""
    write_model(tmp_path / "again", booster)

    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_arrays_are_aligned(path: Path) -> None:
    """Arrays can be used in place: each starts at a multiple of 8 bytes."""
    artifact = compact.read(path)
    content = path.read_bytes()

    offsets = [content.find(array.tobytes()) for name, array in artifact.trees._asdict().items() if name != _PACKED]

    assert [offset % 8 for offset in offsets] == [0] * len(offsets)


@pytest.mark.parametrize("n_bytes", [0, 1, 23, 55, 300, -33, -1])
def test_truncated_file_is_refused(path: Path, n_bytes: int) -> None:
    """A file that ends early is no model, wherever it ends."""
    path.write_bytes(path.read_bytes()[:n_bytes])

    with pytest.raises(ArtifactError, match=r"model\.falconet: \d+ bytes"):
        compact.read(path)


def test_every_changed_byte_is_noticed(path: Path) -> None:
    """One flipped bit anywhere makes the file unreadable."""
    content = path.read_bytes()
    rng = np.random.default_rng(7)
    for place in [*range(24), *rng.integers(24, len(content), size=200).tolist()]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)

        with pytest.raises(ArtifactError):
            compact.read(path)


def test_longer_file_is_refused(path: Path) -> None:
    """Bytes after the end are refused, also when prefix and checksum count them."""
    content = path.read_bytes()
    path.write_bytes(sealed(content[:-32] + bytes(64) + content[-32:]))

    with pytest.raises(ArtifactError, match="its arrays end at"):
        compact.read(path)


def test_oversized_file_is_refused_unread(path: Path) -> None:
    """A file over the limit is refused by its size, before it takes memory."""
    with path.open("r+b") as file:
        file.truncate(compact.FILE_BYTES_MAX + 1)

    with pytest.raises(ArtifactError, match=f"over the limit of {compact.FILE_BYTES_MAX}"):
        compact.read(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there is an artefact error, not a traceback."""
    with pytest.raises(ArtifactError, match="No such file"):
        compact.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("old", "text"),
    [
        (b"FALCONET\x02", b"LIGHTGBM\x02"),
        (b"FALCONET\x02", b"FALCONET\x03"),
        (b'"slope":0.8', b'"slope":-.8'),
        (b'"slope":0.8', b'"slope":"a"'),
        (b'"slope":0.8', b'"slape":0.8'),
        (b'"prior":0.001', b'"prior":1.001'),
        (b'"review"', b'"rewiev"'),
        (b'"probability":0.1', b'"probability":9.1'),
        (b'"n_trees":20', b'"n_trees":21'),
        (b'"n_trees":20', b'"n_trees":-1'),
        (b'"leaf_scale":', b'"leaf_scale"-'),
        (b'"leaf_scale":', b'"leaf_scape":'),
        (b'"name":"drawn"', b'"name":\xff\xfe\xff\xfe\xff\xfe\xff'),
    ],
)
def test_forged_header_is_refused(path: Path, old: bytes, text: bytes) -> None:
    """A header with impossible facts is refused although its checksum fits."""
    content = path.read_bytes()
    assert content.count(old) >= 1
    assert len(old) == len(text)
    path.write_bytes(sealed(content.replace(old, text, 1)))

    with pytest.raises(ArtifactError, match=r"model\.falconet: "):
        compact.read(path)


def test_header_cannot_claim_more_than_the_file(path: Path) -> None:
    """A header length beyond the file is refused before anything is parsed."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 12, 1 << 31)
    path.write_bytes(sealed(bytes(content)))

    with pytest.raises(ArtifactError, match="header of 2147483648 bytes"):
        compact.read(path)


def _set(field: str, place: int, value: float) -> Callable[[compact.Trees], compact.Trees]:
    def change(trees: compact.Trees) -> compact.Trees:
        array = getattr(trees, field).copy()
        array[place] = value
        return trees._replace(**{field: array})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("left", 0, 0), "split 0 has the impossible child 0"),
        (_set("left", 0, 63), "impossible child 63"),
        (_set("right", 0, -40), "impossible child -40"),
        (_set("feature", 3, 99), "a split reads feature 99"),
        (_set("threshold", 3, 0x007E), "the keys of numbers are 127 to 65408"),
        (_set("threshold", 3, 0xFF81), "thresholds [0-9]+ to 65409, the keys of numbers are 127 to 65408"),
        (_set("unknown_left", 3, 7), "a NaN direction"),
        (_set("cover", 3, 0), "0 training rows"),
        (_set("n_splits", 0, 64), "splits"),
        (lambda trees: trees._replace(leaf=trees.leaf.astype(np.int64) * 2), "array leaf holds -?[0-9]+ to -?[0-9]+, "),
        (lambda trees: trees._replace(leaf=trees.leaf * 0.5), "array leaf holds float64"),
    ],
)
def test_impossible_trees_are_refused(
    tmp_path: Path, booster: lgb.Booster, change: Callable[[compact.Trees], compact.Trees], message: str
) -> None:
    """A loop, a missing child, an index out of range or a number that is none never reaches the scorer."""
    trees, names, leaf_scale = compact.from_booster(booster, READ_NAMES)

    with pytest.raises(ArtifactError, match=message):
        compact.write(tmp_path / "model", header(trees, names, leaf_scale), change(trees))
    assert not (tmp_path / "model").exists()


def test_child_with_two_parents_is_refused(tmp_path: Path, booster: lgb.Booster) -> None:
    """Two splits that lead to one leaf are no tree."""
    trees, names, leaf_scale = compact.from_booster(booster, READ_NAMES)
    parent = int(np.flatnonzero(trees.right[: trees.n_splits[0]] < 0)[-1])
    taken = int(trees.left[np.flatnonzero(trees.left[: trees.n_splits[0]] < 0)[0]])

    with pytest.raises(ArtifactError, match="impossible child"):
        compact.write(tmp_path / "model", header(trees, names, leaf_scale), _set("right", parent, taken)(trees))


def test_deep_tree_is_refused(tmp_path: Path) -> None:
    """Seven splits in a row are one more than the format holds."""
    steps = np.arange(20.0)[:, None]
    asked = {"objective": "regression", "num_threads": 1, "verbose": -1, "num_leaves": 9, "min_data_in_bin": 1}
    # Each step is three times the one before it: the best split takes the last one off, again and again.
    booster = lgb.train(asked | {"min_data_in_leaf": 1}, lgb.Dataset(steps, 3.0 ** steps[:, 0]), 1)
    trees, _, leaf_scale = compact.from_booster(booster, READ_NAMES[:1])

    with pytest.raises(ArtifactError, match="deeper than 6 splits"):
        compact.write(tmp_path / "model", header(trees, READ_NAMES[:1], leaf_scale), trees)


@pytest.mark.parametrize("leaf_scale", [0.0, -1e-3, float("inf")])
def test_impossible_scale_is_refused(tmp_path: Path, booster: lgb.Booster, leaf_scale: float) -> None:
    """A scale of 0 or below would turn the scores to nothing or around."""
    trees, names, _ = compact.from_booster(booster, READ_NAMES)

    with pytest.raises(ArtifactError, match=r"leaf_scale|header"):
        compact.write(tmp_path / "model", header(trees, names, leaf_scale), trees)


def test_wide_tree_is_refused() -> None:
    """A tree of 17 leaves is one leaf too wide."""
    with pytest.raises(ArtifactError, match="LightGBM tree 0: 17 leaves, the limit is 16"):
        compact.from_booster(trained(n_trees=1, num_leaves=17), READ_NAMES)


def test_too_many_features_are_refused() -> None:
    """A model may read as many features as the format names, and no more."""
    rows = compact.quantise(drawn_rows(3_000, seed=3)[:, :40])
    label = np.nan_to_num(rows / np.nanstd(rows, axis=0)).sum(axis=1) > 0
    asked = {"objective": "binary", "num_leaves": 16, "num_threads": 1, "verbose": -1, "feature_fraction": 0.2}
    booster = lgb.train(asked, lgb.Dataset(rows, label), 40)

    with pytest.raises(ArtifactError, match=r"reads \d+ features, the limit is 24"):
        compact.from_booster(booster, [str(i) for i in range(40)])


def test_too_large_model_is_refused(tmp_path: Path) -> None:
    """More trees than 32 KiB hold are refused when they are written, and no file appears."""
    booster = trained(n_trees=300)
    assert compact.FILE_BYTES_MAX == 32 * 1024

    with pytest.raises(ArtifactError, match="bytes, over the limit of 32768"):
        write_model(tmp_path / "model", booster)
    assert not (tmp_path / "model").exists()


def test_format_1_is_refused_by_its_number(path: Path) -> None:
    """A model of the wider format is named as such, not read as something else."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 8, 1)
    path.write_bytes(sealed(bytes(content)))

    with pytest.raises(ArtifactError, match="format version 1, this program reads 2"):
        compact.read(path)


def test_bits_after_the_last_direction_are_refused(tmp_path: Path) -> None:
    """Bits that mean nothing would give one model two digests."""
    booster = trained(n_trees=1, num_leaves=4)
    trees, names, leaf_scale = compact.from_booster(booster, READ_NAMES)
    compact.write(tmp_path / "model", header(trees, names, leaf_scale), trees)
    content = bytearray((tmp_path / "model").read_bytes())
    # The last three arrays take 8 bytes each: directions, leaves and covers.
    content[-32 - 24] |= 0x80
    (tmp_path / "model").write_bytes(sealed(bytes(content)))

    with pytest.raises(ArtifactError, match="a bit is set after the 3 NaN directions"):
        compact.read(tmp_path / "model")


def test_leaves_are_off_by_half_the_scale_at_most() -> None:
    """16 bits for the largest leaf of either sign, and one scale for all."""
    leaves = np.random.default_rng(4).normal(size=1_000)

    rounded, scale = compact.quantise_leaves(leaves)

    assert scale == np.abs(leaves).max() / 32_767
    assert np.abs(rounded * scale - leaves).max() <= scale / 2 * (1 + 1e-9)
    assert compact.quantise_leaves(np.zeros(3))[1] == 1.0


def test_covers_keep_their_proportions() -> None:
    """Counts over 16 bits are scaled down together, and none becomes 0."""
    assert compact.quantise_cover(np.array([1, 500, 65_535])).tolist() == [1, 500, 65_535]
    assert compact.quantise_cover(np.array([1, 65_535, 131_070])).tolist() == [1, 32_768, 65_535]


def test_models_the_format_does_not_hold_are_refused() -> None:
    """Several classes, averaged forests, categorical splits and zero-as-missing would change the scores."""
    rows = np.abs(np.round(drawn_rows(500, seed=3)[:, 1:2] * 10) % 5).astype(np.float64)
    base = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "min_data_per_group": 1, "objective": "binary"}
    label = rows[:, 0] % 2
    forest = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}
    classes = lgb.train(base | {"objective": "multiclass", "num_class": 5}, lgb.Dataset(rows, rows[:, 0]), 2)
    averaged = lgb.train(base | forest, lgb.Dataset(rows, label), 2)
    categorical = lgb.train(base, lgb.Dataset(rows, label, categorical_feature=[0]), 2)
    zero = lgb.train(base | {"zero_as_missing": True}, lgb.Dataset(rows, label), 2)

    for booster, message in (
        (classes, "one output"),
        (averaged, "one output"),
        (categorical, "categorical"),
        (zero, "NaN"),
    ):
        with pytest.raises(ArtifactError, match=message):
            compact.from_booster(booster, ["x"])


def test_only_features_that_are_read_are_named(path: Path, booster: lgb.Booster) -> None:
    """The header names the features of the splits, in the schema's order, and no other."""
    importance = booster.feature_importance("split")

    assert compact.read(path).header.features == [name for name, n in zip(READ_NAMES, importance, strict=True) if n]
    assert set(compact.read(path).header.features) <= {feature.name for feature in schema.FEATURES}


def test_floor_is_the_largest_float32_at_most() -> None:
    """No float32 lies between a threshold and its floor, also where float32 ends."""
    rng = np.random.default_rng(5)
    doubles = rng.normal(size=2_000) * 10.0 ** rng.integers(-50, 60, size=2_000)
    doubles = np.concatenate([doubles, [0.0, 1e-35, -1e-35, 1e300, -1e300, 3.4028235e38, 0.5, np.pi]])

    floors = compact.floor_to_float32(doubles)

    with np.errstate(over="ignore"):
        above = np.nextafter(floors, np.float32(np.inf)).astype(np.float64)
    assert (floors.astype(np.float64) <= doubles).all()
    assert (above > doubles).all()
