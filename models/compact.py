"""The model's file: magic, sizes, a JSON header, plain little-endian arrays, and a SHA-256 over all of it.

Nothing in it is executed or unpickled. The reader trusts no byte: every size, index and number is checked before use,
so that a truncated, foreign or hostile file ends in an `ArtifactError` and never in a wrong score.

Thresholds are 16 bits wide. The bits of a float32 map to integers in the order of the floats; the upper 16 of them are
the value's key, and a split compares keys. A key is a cell of floats side by side, 2^-7 of their magnitude wide, so
`key16(x) <= k` is `x <= edge(k)` for every float32 x but NaN: the integer model and the float model with the edges as
thresholds are one function.
"""

import hashlib
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.errors import ArtifactError

if TYPE_CHECKING:
    from lightgbm import Booster

MAGIC = b"FALCONET"
FORMAT_VERSION = 2
DEPTH_MAX = 6
"""Splits from root to leaf: a leaf's Shapley values are tabled by which of its features a row satisfies, 2^6 sets."""
LEAVES_MAX = 16
"""Of a tree. A quarter of a perfect tree of that depth: a split costs every row its comparison, taken or not."""
TREES_MAX = 512
"""512 leaves of at most 2^15 sum to at most 2^24: exact in float32, which ONNX sums in."""
FEATURES_MAX = 24
HEADER_BYTES_MAX = 1 << 14
FILE_BYTES_MAX = 1 << 15
"""32 KiB: 150 trees of 15 x 5.1 + 16 x 4 bytes are 21 KB, the header is 3 to 4 KB."""

_PREFIX = struct.Struct("<8sIIQ")
_ALIGNMENT = 8
_DIGEST_BYTES = 32

_LOWEST_KEY, _HIGHEST_KEY = 0x007F, 0xFF80
"""Of minus and plus infinity; beyond them are the bits of NaN. A threshold of plus infinity parts known and unknown."""
_MINUS_ZERO = np.uint32(0x80000000)
_LEAF_MAX = 32_767
_COVER_MAX = 65_535

_ZERO = np.float32(1e-35)
"""LightGBM reads every value of at most this magnitude as 0 when it predicts."""

_CATEGORICAL = 1
_DEFAULT_LEFT = 2
_MISSING_NONE, _MISSING_NAN = 0, 2


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """From a margin to a probability: 1 / (1 + exp(-(slope * margin + intercept)))."""

    slope: float
    intercept: float
    prior: float
    """The share of fraud at which the probability holds. The intercept already carries the shift to it."""

    chosen: str
    """On which rows the slope and the intercept were fitted, in words."""


class Threshold(Struct, frozen=True, forbid_unknown_fields=True):
    """From which probability a decision is taken."""

    probability: float
    chosen: str
    """How the value was chosen, in words."""


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """What the model was made from, enough to make it again."""

    data: str
    """SHA-256 over the training files."""

    teacher: str
    """Digest of the model whose scores this one learnt, empty where it learnt from labels alone."""

    seed: int
    n_rows: int
    n_positive: int
    settings: dict[str, bool | int | float | str | None]
    libraries: dict[str, str]
    method: dict[str, bool | int | float | str]
    """How it was distilled, pruned and quantised."""


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is not numbers of trees."""

    name: str
    version: str
    schema: str
    """Fingerprint of the feature table the model was trained on."""

    features: list[str]
    """Names of the features the trees read; `Trees.feature` counts into this list."""

    calibration: Calibration
    thresholds: dict[str, Threshold]
    training: Training
    leaf_scale: float
    """A margin is the sum of its leaves times this."""

    n_trees: int
    n_splits: int


class Trees(NamedTuple):
    """Every tree's splits, then every tree's leaves, one tree after the other in LightGBM's order.

    A tree of k splits has k + 1 leaves. A child c >= 0 is the tree's split c, c < 0 its leaf ~c; split 0 is the root.
    """

    n_splits: NDArray[np.uint8]
    """Splits of each tree, shape (n_trees,)."""
    feature: NDArray[np.uint8]
    threshold: NDArray[np.uint16]
    """A value goes left when its key is at most this."""
    left: NDArray[np.int8]
    right: NDArray[np.int8]
    unknown_left: NDArray[np.uint8]
    """1: NaN goes left. One bit a split in the file."""
    leaf: NDArray[np.int16]
    """In units of the header's `leaf_scale`."""
    cover: NDArray[np.uint16]
    """Training rows that fell into the leaf, in proportion within the tree: the weights of the Shapley values."""


class Artifact(NamedTuple):
    """A model as read from its file."""

    header: Header
    trees: Trees
    digest: str
    """SHA-256 of the file without its last 32 bytes, which hold it: 64 hex digits."""
    n_bytes: int


_DTYPES = {"n_splits": "u1", "feature": "u1", "threshold": "<u2", "left": "i1", "right": "i1"}
_DTYPES |= {"unknown_left": "u1", "leaf": "<i2", "cover": "<u2"}


def _lengths(n_trees: int, n_splits: int) -> dict[str, int]:
    lengths = dict.fromkeys(Trees._fields, n_splits)
    packed = -(-n_splits // 8)
    return lengths | {
        "n_splits": n_trees,
        "unknown_left": packed,
        "leaf": n_splits + n_trees,
        "cover": n_splits + n_trees,
    }


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def write(path: Path, header: Header, trees: Trees) -> str:
    """Write the file and return its digest. The same model gives the same bytes.

    Raises:
        ArtifactError: The model is over a limit or no sound one; nothing is written.
    """
    _check_range(trees, path)
    stored = trees._replace(unknown_left=np.packbits(trees.unknown_left, bitorder="little"))
    text = msgspec.json.encode(header)
    body = bytearray(_PREFIX.size)
    body += text
    body += bytes(_aligned(len(body)) - len(body))
    for name, dtype in _DTYPES.items():
        body += np.ascontiguousarray(getattr(stored, name), dtype=dtype).tobytes()
        body += bytes(_aligned(len(body)) - len(body))
    _PREFIX.pack_into(body, 0, MAGIC, FORMAT_VERSION, len(text), len(body) + _DIGEST_BYTES)
    digest = hashlib.sha256(body)
    _parse(bytes(body) + digest.digest(), path)
    path.write_bytes(bytes(body) + digest.digest())
    return digest.hexdigest()


def read(path: Path) -> Artifact:
    """Read and check a model's file.

    Raises:
        ArtifactError: The file is missing, truncated, oversized, foreign, damaged, or holds impossible trees.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # A pipe that nobody writes to would keep its reader for ever.
            raise ArtifactError(f"{path}: cannot be read: is no plain file")
        if status.st_size > FILE_BYTES_MAX:
            raise ArtifactError(f"{path}: {status.st_size} bytes, over the limit of {FILE_BYTES_MAX}")
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> Artifact:
    if len(content) > FILE_BYTES_MAX:
        raise ArtifactError(f"{path}: {len(content)} bytes, over the limit of {FILE_BYTES_MAX}")
    if len(content) < _PREFIX.size + _DIGEST_BYTES:
        raise ArtifactError(
            f"{path}: {len(content)} bytes, shorter than the {_PREFIX.size + _DIGEST_BYTES} of any model"
        )
    magic, version, n_header, n_bytes = _PREFIX.unpack_from(content)
    if magic != MAGIC:
        raise ArtifactError(f"{path}: starts with {magic!r}, a model starts with {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    if n_bytes != len(content):
        raise ArtifactError(f"{path}: {len(content)} bytes, its prefix says {n_bytes}")
    digest = hashlib.sha256(content[:-_DIGEST_BYTES])
    if digest.digest() != content[-_DIGEST_BYTES:]:
        raise ArtifactError(f"{path}: checksum differs, the file is damaged")
    if n_header > min(HEADER_BYTES_MAX, len(content) - _PREFIX.size - _DIGEST_BYTES):
        raise ArtifactError(
            f"{path}: header of {n_header} bytes, over the limit of {HEADER_BYTES_MAX} or the file's end"
        )
    try:
        header = msgspec.json.decode(content[_PREFIX.size : _PREFIX.size + n_header], type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: header: {error}") from error
    _check_header(header, path)
    trees = _arrays(content, _aligned(_PREFIX.size + n_header), header, path)
    _check_trees(trees, len(header.features), path)
    return Artifact(header, trees, digest.hexdigest(), len(content))


def _arrays(content: bytes, start: int, header: Header, path: Path) -> Trees:
    lengths = _lengths(header.n_trees, header.n_splits)
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in _DTYPES.items():
        end = start + lengths[name] * np.dtype(dtype).itemsize
        if end > len(content) - _DIGEST_BYTES:
            raise ArtifactError(f"{path}: array {name} ends at byte {end}, the file has {len(content)}")
        arrays[name] = np.frombuffer(content, dtype, lengths[name], start)
        start = _aligned(end)
    if start != len(content) - _DIGEST_BYTES:
        raise ArtifactError(f"{path}: {len(content)} bytes, its arrays end at {start + _DIGEST_BYTES}")
    bits = np.unpackbits(arrays["unknown_left"], bitorder="little")
    if bits[header.n_splits :].any():
        raise ArtifactError(f"{path}: a bit is set after the {header.n_splits} NaN directions")
    arrays["unknown_left"] = bits[: header.n_splits]
    return Trees(**arrays)


def _check_header(header: Header, path: Path) -> None:
    n_features = len(header.features)
    calibration = header.calibration
    problems = {
        f"n_trees {header.n_trees}, allowed 1 to {TREES_MAX}": not 1 <= header.n_trees <= TREES_MAX,
        f"n_splits {header.n_splits}, allowed 0 to {header.n_trees * (LEAVES_MAX - 1)}": not (
            0 <= header.n_splits <= header.n_trees * (LEAVES_MAX - 1)
        ),
        f"{n_features} features, the limit is {FEATURES_MAX}": n_features > FEATURES_MAX,
        "a feature is named twice": len(set(header.features)) != n_features,
        f"calibration slope {calibration.slope} is not above 0": not 0 < calibration.slope < np.inf,
        f"calibration intercept {calibration.intercept} is not finite": not np.isfinite(calibration.intercept),
        f"leaf_scale {header.leaf_scale} is not above 0": not 0 < header.leaf_scale < np.inf,
        f"prior {calibration.prior} is not between 0 and 1": not 0 < calibration.prior < 1,
        f"thresholds {sorted(header.thresholds)} lack review or block": not {"review", "block"}
        <= set(header.thresholds),
    }
    for name, threshold in header.thresholds.items():
        wrong = not 0 <= threshold.probability <= 1
        problems[f"threshold {name} {threshold.probability} is not between 0 and 1"] = wrong
    for problem, is_found in problems.items():
        if is_found:
            raise ArtifactError(f"{path}: header: {problem}")


def _check_trees(trees: Trees, n_features: int, path: Path) -> None:
    if int(trees.n_splits.sum(dtype=np.int64)) != len(trees.feature):
        raise ArtifactError(f"{path}: trees have {trees.n_splits.sum()} splits, the header says {len(trees.feature)}")
    if len(trees.n_splits) and int(trees.n_splits.max()) >= LEAVES_MAX:
        raise ArtifactError(f"{path}: a tree has {trees.n_splits.max()} splits, the limit is {LEAVES_MAX - 1}")
    if len(trees.feature) and int(trees.feature.max()) >= n_features:
        raise ArtifactError(f"{path}: a split reads feature {trees.feature.max()}, the header names {n_features}")
    if len(trees.threshold) and not (
        int(trees.threshold.min()) >= _LOWEST_KEY and int(trees.threshold.max()) <= _HIGHEST_KEY
    ):
        raise ArtifactError(
            f"{path}: thresholds {trees.threshold.min()} to {trees.threshold.max()}, "
            f"the keys of numbers are {_LOWEST_KEY} to {_HIGHEST_KEY}"
        )
    if not trees.cover.min():
        raise ArtifactError(f"{path}: a leaf was reached by 0 training rows, its Shapley values are undefined")
    start = 0
    for tree_index, n_splits in enumerate(trees.n_splits.tolist()):
        _check_tree(trees, slice(start, start + n_splits), f"{path}: tree {tree_index}")
        start += n_splits


def _check_range(trees: Trees, path: Path) -> None:
    """Refuse arrays that the file's narrower types would change."""
    if (np.asarray(trees.unknown_left) > 1).any():
        raise ArtifactError(f"{path}: a NaN direction is neither 0 nor 1")
    for name, dtype in _DTYPES.items():
        array, limits = np.asarray(getattr(trees, name)), np.iinfo(dtype)
        if array.dtype.kind not in "iu":
            raise ArtifactError(f"{path}: array {name} holds {array.dtype}, the file {limits.dtype}")
        if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
            raise ArtifactError(f"{path}: array {name} holds {array.min()} to {array.max()}, over {limits.dtype}")


def _check_tree(trees: Trees, splits: slice, place: str) -> None:
    """Refuse what is no tree: each split but the root, and each leaf, is the child of exactly one earlier split."""
    left, right = trees.left[splits].tolist(), trees.right[splits].tolist()
    n_splits = len(left)
    depth = [0] * n_splits
    seen: set[int] = set()
    for parent in range(n_splits):
        for child in (left[parent], right[parent]):
            if not -n_splits - 1 <= child < n_splits or 0 <= child <= parent or child in seen:
                raise ArtifactError(f"{place}: split {parent} has the impossible child {child}")
            seen.add(child)
            if child >= 0:
                depth[child] = depth[parent] + 1
                if depth[child] >= DEPTH_MAX:
                    raise ArtifactError(f"{place}: deeper than {DEPTH_MAX} splits")
    if len(seen) != 2 * n_splits:
        raise ArtifactError(f"{place}: {len(seen)} of {2 * n_splits} children are reached")


def key16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper 16 bits of each value's place in the order of all float32; NaN has no key.

    >>> [hex(key) for key in key16(np.array([-np.inf, -1, -0.0, 0, 1, np.inf], dtype=np.float32))]
    ['0x7f', '0x407f', '0x8000', '0x8000', '0xbf80', '0xff80']
    """
    # By its bits alone: arithmetic would flush subnormal numbers where the processor was told to.
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    bits = np.where(bits == _MINUS_ZERO, np.uint32(0), bits)
    ordered = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return np.asarray(ordered >> np.uint32(16), dtype=np.uint16)


def edge(keys: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the largest float32 of each key: `key16(x) <= key` is `x <= edge(key)`.

    >>> edge(key16(np.array([-np.inf, -1, 0, 1, np.inf], dtype=np.float32))).tolist()
    [-inf, -1.0, 9.183409485952689e-41, 1.0078123807907104, inf]
    """
    return _values((np.asarray(keys).astype(np.uint32) << np.uint32(16)) | np.uint32(0xFFFF))


def quantise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each value's smallest neighbour of the same key, NaN as it is.

    A model that is trained on such rows has its thresholds between keys, and gives any row what it gives the quantised.

    >>> quantise(np.array([1.0, 1.007, -1.0, np.nan], dtype=np.float32)).tolist()
    [1.0, 1.0, -1.0078123807907104, nan]
    """
    smallest = _values(key16(rows).astype(np.uint32) << np.uint32(16))
    return np.where(np.isnan(rows), np.float32(np.nan), smallest)


def _values(ordered: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return the floats at places of the order; beyond the infinities it is them, and -0.0 is the float below it."""
    # Minus infinity is the last place of its key and plus infinity the first: the rest are the bits of NaN.
    ordered = np.clip(ordered, np.uint32(0x007FFFFF), np.uint32(0xFF800000))
    ordered = np.where(ordered == 0x7FFFFFFF, np.uint32(0x7FFFFFFE), ordered).astype(np.uint32)
    bits = ordered ^ np.where(ordered >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return bits.astype(np.uint32).view(np.float32)


def quantise_leaves(leaves: NDArray[np.float64]) -> tuple[NDArray[np.int16], float]:
    """Return leaves as multiples of a scale, and the scale; each is off by half of it at most.

    >>> quantise_leaves(np.array([0.5, -1.0]))
    (array([ 16384, -32767], dtype=int16), 3.051850947599719e-05)
    """
    largest = float(np.abs(leaves).max(initial=0.0))
    scale = largest / _LEAF_MAX if largest else 1.0
    return np.rint(leaves / scale).astype(np.int16), scale


def quantise_cover(n_rows: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return one tree's leaf counts scaled to fit 16 bits, none of them 0."""
    scale = min(1.0, _COVER_MAX / max(1, int(n_rows.max())))
    return np.asarray(np.maximum(1, np.rint(n_rows * scale)), dtype=np.uint16)


def from_booster(booster: "Booster", feature_names: Sequence[str]) -> tuple[Trees, list[str], float]:
    """Convert a LightGBM model that was trained on quantised rows; each row reaches the leaf it reached there.

    A threshold becomes the key of the largest float32 at most it, so a model trained on other rows has its thresholds
    moved up by at most 2^-7 of their magnitude.

    Args:
        booster: Numeric features only, one output, at most LEAVES_MAX leaves and DEPTH_MAX splits deep.
        feature_names: Of the booster's columns, in their order.

    Returns:
        The trees, the names of the features they read, to which `Trees.feature` points, and the scale of the leaves.

    Raises:
        ArtifactError: The model uses what the format does not hold.
    """
    head, *sections = booster.model_to_string(num_iteration=-1).split("\nTree=")
    facts = _fields(head)
    if facts.get("num_class") != "1" or "average_output" in head.splitlines():
        raise ArtifactError("LightGBM model: only one output, summed over trees, can be converted")
    columns = [_tree(_fields(section), f"LightGBM tree {i}") for i, section in enumerate(sections)]
    n_splits, feature, threshold, left, right, unknown_left, leaves, cover = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    used, position = np.unique(feature, return_inverse=True)
    if len(used) > FEATURES_MAX:
        raise ArtifactError(f"LightGBM model: reads {len(used)} features, the limit is {FEATURES_MAX}")
    leaf, scale = quantise_leaves(leaves)
    trees = Trees(n_splits, position.astype(np.uint8), threshold, left, right, unknown_left, leaf, cover)
    return trees, [feature_names[i] for i in used.tolist()], scale


def _fields(section: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in section.splitlines() if "=" in line)


def _tree(facts: dict[str, str], place: str) -> tuple[NDArray[Any], ...]:
    """Return one tree's parts in the order of `Trees`."""

    def numbers(name: str, dtype: type) -> NDArray[Any]:
        return np.array(facts.get(name, "").split(), dtype=dtype)

    if facts.get("num_cat") != "0" or facts.get("is_linear", "0") != "0":
        raise ArtifactError(f"{place}: categorical splits and linear leaves cannot be converted")
    decision = numbers("decision_type", np.int64)
    missing = (decision >> 2) & 3
    if (decision & _CATEGORICAL).any() or not np.isin(missing, (_MISSING_NONE, _MISSING_NAN)).all():
        raise ArtifactError(f"{place}: decision types {sorted(set(decision.tolist()))} are not all numeric with NaN")
    threshold = numbers("threshold", np.float64)
    # Without NaN among the training values, LightGBM reads a NaN as 0.
    unknown_left = np.where(missing == _MISSING_NAN, (decision & _DEFAULT_LEFT) != 0, threshold >= 0.0)
    n_leaves = int(facts["num_leaves"])
    if n_leaves > LEAVES_MAX:
        raise ArtifactError(f"{place}: {n_leaves} leaves, the limit is {LEAVES_MAX}")
    counts = numbers("leaf_count", np.int64) if n_leaves > 1 else np.ones(1, dtype=np.int64)
    return (
        np.array([n_leaves - 1], dtype=np.uint8),
        numbers("split_feature", np.int64),
        key16(_around_zero(floor_to_float32(threshold))),
        numbers("left_child", np.int8),
        numbers("right_child", np.int8),
        unknown_left.astype(np.uint8),
        numbers("leaf_value", np.float64),
        quantise_cover(counts),
    )


def floor_to_float32(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 at most each threshold, so that `x <= t` is unchanged for every float32 x.

    >>> float(np.float32(0.1)) <= 0.1, float(floor_to_float32(np.array([0.1]))[0]) <= 0.1
    (False, True)
    """
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    too_high = rounded.astype(np.float64) > thresholds
    return np.where(too_high, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(np.float32)


def _around_zero(thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move thresholds among LightGBM's zeros to the edge of them, so that each of these values goes where 0 goes."""
    below = np.nextafter(-_ZERO, np.float32(-np.inf))
    thresholds = np.where((thresholds >= -_ZERO) & (thresholds < 0), below, thresholds)
    return np.where((thresholds >= 0) & (thresholds <= _ZERO), _ZERO, thresholds)
