"""The model's file: magic, sizes, a JSON header, plain little-endian arrays, and a SHA-256 over all of it.

Nothing in it is executed or unpickled. The reader trusts no byte: every size, index and number is checked before use,
so that a truncated, foreign or hostile file ends in an `ArtifactError` and never in a wrong score.
"""

import hashlib
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
FORMAT_VERSION = 1
DEPTH_MAX = 6
"""Splits from root to leaf. The scorer walks perfect trees of this depth: 63 splits and 64 leaves, 1 KiB a tree."""
LEAVES_MAX = 1 << DEPTH_MAX
TREES_MAX = 2_000
FEATURES_MAX = 1_000
HEADER_BYTES_MAX = 1 << 18
FILE_BYTES_MAX = 1 << 24
"""16 MiB, above 2,000 full trees of 63 x 11 + 64 x 12 bytes (2.8 MiB): a larger file is no model of ours."""

_PREFIX = struct.Struct("<8sIIQ")
_ALIGNMENT = 64
_DIGEST_BYTES = 32

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

    commit: str
    seed: int
    n_rows: int
    n_positive: int
    settings: dict[str, bool | int | float | str | None]
    libraries: dict[str, str]


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
    n_trees: int
    n_splits: int


class Trees(NamedTuple):
    """Every tree's splits, then every tree's leaves, one tree after the other in LightGBM's order.

    A tree of k splits has k + 1 leaves. A child c >= 0 is the tree's split c, c < 0 its leaf ~c; split 0 is the root.
    """

    n_splits: NDArray[np.uint16]
    """Splits of each tree, shape (n_trees,)."""
    feature: NDArray[np.uint16]
    threshold: NDArray[np.float32]
    """A value goes left when it is at most this."""
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    unknown_left: NDArray[np.uint8]
    """1: NaN goes left."""
    leaf: NDArray[np.float64]
    n_leaf_rows: NDArray[np.uint32]
    """Training rows that fell into the leaf: the weights of the Shapley values."""


class Artifact(NamedTuple):
    """A model as read from its file."""

    header: Header
    trees: Trees
    digest: str
    """SHA-256 of the file without its last 32 bytes, which hold it: 64 hex digits."""
    n_bytes: int


_DTYPES = {"n_splits": "<u2", "feature": "<u2", "threshold": "<f4", "left": "<i2", "right": "<i2"}
_DTYPES |= {"unknown_left": "u1", "leaf": "<f8", "n_leaf_rows": "<u4"}


def _lengths(n_trees: int, n_splits: int) -> dict[str, int]:
    lengths = dict.fromkeys(Trees._fields, n_splits)
    return lengths | {"n_splits": n_trees, "leaf": n_splits + n_trees, "n_leaf_rows": n_splits + n_trees}


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def write(path: Path, header: Header, trees: Trees) -> str:
    """Write the file and return its digest. The same model gives the same bytes."""
    text = msgspec.json.encode(header)
    body = bytearray(_PREFIX.size)
    body += text
    body += bytes(_aligned(len(body)) - len(body))
    for name, dtype in _DTYPES.items():
        body += np.ascontiguousarray(getattr(trees, name), dtype=dtype).tobytes()
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
        n_bytes = path.stat().st_size
        if n_bytes > FILE_BYTES_MAX:
            raise ArtifactError(f"{path}: {n_bytes} bytes, over the limit of {FILE_BYTES_MAX}")
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> Artifact:
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
    if np.isnan(trees.threshold).any() or not np.isfinite(trees.leaf).all() or (trees.unknown_left > 1).any():
        raise ArtifactError(f"{path}: a threshold is NaN, a leaf is not finite or a NaN direction is neither 0 nor 1")
    if len(trees.n_leaf_rows) and not trees.n_leaf_rows.min():
        raise ArtifactError(f"{path}: a leaf was reached by 0 training rows, its Shapley values are undefined")
    start = 0
    for tree_index, n_splits in enumerate(trees.n_splits.tolist()):
        _check_tree(trees, slice(start, start + n_splits), f"{path}: tree {tree_index}")
        start += n_splits


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


def from_booster(booster: "Booster", feature_names: Sequence[str]) -> tuple[Trees, list[str]]:
    """Convert a LightGBM model; its margins on float32 rows stay the same to the last bit.

    Args:
        booster: Numeric features only, one output, at most DEPTH_MAX deep.
        feature_names: Of the booster's columns, in their order.

    Returns:
        The trees, and the names of the features they read, to which `Trees.feature` points.

    Raises:
        ArtifactError: The model uses what the format does not hold.
    """
    head, *sections = booster.model_to_string(num_iteration=-1).split("\nTree=")
    facts = _fields(head)
    if facts.get("num_class") != "1" or "average_output" in head.splitlines():
        raise ArtifactError("LightGBM model: only one output, summed over trees, can be converted")
    columns = [_tree(_fields(section), f"LightGBM tree {i}") for i, section in enumerate(sections)]
    trees = Trees(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))
    used = sorted(set(trees.feature.tolist()))
    position = np.zeros(max(used, default=0) + 1, dtype=np.uint16)
    position[used] = np.arange(len(used))
    return trees._replace(feature=position[trees.feature]), [feature_names[i] for i in used]


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
    n_splits = int(facts["num_leaves"]) - 1
    counts = numbers("leaf_count", np.uint32) if n_splits else np.ones(1, dtype=np.uint32)
    return (
        np.array([n_splits], dtype=np.uint16),
        numbers("split_feature", np.uint16),
        _around_zero(floor_to_float32(threshold)),
        numbers("left_child", np.int16),
        numbers("right_child", np.int16),
        unknown_left.astype(np.uint8),
        numbers("leaf_value", np.float64),
        counts,
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
