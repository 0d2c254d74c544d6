"""The `replay` command: a file or a pipe of past transactions through the service's own pipeline.

The same input gives the same bytes: nothing in the output depends on the clock, the machine or the batch size.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import durable, screening
from features.accounts import Accounts
from features.errors import InputError, RejectedError, UsageError
from features.transaction import RECORD_WORDS, pack, records
from models.scorer import Scorer
from service import snapshot, trust
from service.breaker import Breaker
from service.codec import Decoder, read_lines
from service.pipeline import Pipeline, Verdicts
from service.policy import DECISIONS, policy
from service.settings import Settings

Format = Literal["parquet", "jsonl"]

WRITE_ROWS = 65_536
"""Rows of a parquet file written at once."""

SCORE_ROWS = 1024
"""Rows scored at once: their feature rows (0.5 MB) stay in the second-level cache."""

NAMES = ("hash", "hash_prefix", "transaction_hash")
"""What may identify a row, the first that the file has."""

PROGRESS_SECONDS = 5.0


class Summary(NamedTuple):
    """What became of the input."""

    n_scored: int
    rejections: Counter[str]
    """By reason; only JSON lines can be rejected one by one."""

    decisions: dict[str, int]

    def text(self, spent_s: float) -> str:
        """Return the summary as one line, the rate at its end."""
        parts = [f"{n:,} {decision}" for decision, n in self.decisions.items()]
        parts += [f"{n:,} rejected ({reason})" for reason, n in sorted(self.rejections.items())]
        rate = self.n_scored / spent_s if spent_s > 0 else 0.0
        return f"scored {self.n_scored:,} transactions: {', '.join(parts)}; {rate:,.0f} tx/s"


STATE_STREAM = snapshot.Stream(cluster="", topic="replay", n_partitions=1)
"""Stands in a saved state where the service's states name their topic: neither takes the other's for its own."""


def command(
    settings: Settings, *, source: str, target: str, form: Format | None, state: Path | None, save_state: Path | None
) -> None:
    """Replay with the settings' model, lists and limits; progress and a summary go to standard error.

    Args:
        settings: The effective settings.
        source: Path, or `-` for standard input.
        target: Path, or `-` for standard output.
        form: Of the source; None goes by its ending.
        state: Folder of an earlier replay's past to go on from, None for an empty past.
        save_state: Folder to keep the past in afterwards, None to forget it.
    """
    scorer = Scorer.load(trust.model_path(settings))
    pipeline, decoder = prepare(settings, scorer, state)
    started_s = time.perf_counter()
    with shown_progress() as progress:
        summary = replay(
            pipeline=pipeline,
            decoder=decoder,
            source=source,
            target=target,
            form=form,
            message_bytes_max=settings.message_bytes_max,
            progress=progress,
        )
    spent_s = time.perf_counter() - started_s
    if save_state is not None:
        header = snapshot.header_of(STATE_STREAM, offsets={}, unsettled=[])
        snapshot.save(snapshot.next_path(save_state), header, pipeline.parts())
    sys.stderr.write(summary.text(spent_s) + "\n")


def prepare(settings: Settings, scorer: Scorer, state: Path | None) -> tuple[Pipeline, Decoder]:
    """Return the service's pipeline around a model, and the decoder of JSON lines.

    Args:
        settings: Lists and limits.
        scorer: The model.
        state: Folder of an earlier replay's past to go on from, None for an empty past.

    Raises:
        InputError: There is no saved state, or it does not fit.
    """
    lists = screening.read(settings.screening_lists) if settings.screening_lists else None
    accounts = Accounts(accounts_max=settings.accounts_max, pairs_max=settings.pairs_max, screening=lists)
    breaker = Breaker(share=settings.breaker_share, window=settings.breaker_window)
    if state is not None and snapshot.load(state, STATE_STREAM, [accounts, breaker]) is None:
        raise InputError(f"{state}: no saved state")
    decoder = Decoder(chain_id=settings.chain_id, message_bytes_max=settings.message_bytes_max)
    pipeline = Pipeline(
        accounts=accounts,
        scorer=scorer,
        policy=policy(scorer.thresholds, lists),
        decoder=decoder,
        breaker=breaker,
    )
    return pipeline, decoder


@contextmanager
def shown_progress() -> Iterator[Callable[[int], None]]:
    """Yield what counts rows: a moving line on a terminal, a plain line now and then elsewhere."""
    n_done, next_s, started_s = 0, time.monotonic() + PROGRESS_SECONDS, time.monotonic()
    is_terminal = sys.stderr.isatty()

    def advance(n: int) -> None:
        nonlocal n_done, next_s
        n_done += n
        now_s = time.monotonic()
        if now_s >= next_s or (is_terminal and now_s >= next_s - PROGRESS_SECONDS + 0.2):
            line = f"{n_done:,} transactions, {n_done / (now_s - started_s):,.0f} a second"
            sys.stderr.write(f"\r{line}" if is_terminal else f"{line}\n")
            next_s = now_s + PROGRESS_SECONDS

    yield advance
    if is_terminal:
        sys.stderr.write("\r")


class _Sink(Protocol):
    """Where rows go: names are a list of text or an arrow column."""

    def write(self, names: Any, verdicts: Verdicts) -> None:
        """Write a chunk's rows; `names` holds bytes or text for each."""

    def close(self) -> None:
        """Finish the output."""


def replay(
    *,
    pipeline: Pipeline,
    decoder: Decoder,
    source: str,
    target: str,
    form: Format | None = None,
    message_bytes_max: int,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Score a file or standard input and write one row for each accepted transaction: name, score, decision.

    Args:
        pipeline: Its past is where the replay starts, and afterwards where it ended.
        decoder: For JSON lines.
        source: Path, or `-` for standard input (JSON lines only).
        target: Path ending in .parquet or any other for JSON lines, or `-` for standard output.
        form: Of the source; None goes by its ending.
        message_bytes_max: Longest line that is decoded.
        progress: Called with the number of rows done since the last call.

    Raises:
        InputError: The source cannot be read or the target cannot be written.
        UsageError: Parquet from standard input.
    """
    rejections: Counter[str] = Counter()
    decisions = np.zeros(len(DECISIONS), dtype=np.int64)
    scored = scored_chunks(pipeline, decoder, source, form, message_bytes_max, rejections)
    with _opened(target) as sink:
        for names, verdicts in scored:
            decisions += np.bincount(verdicts.decisions, minlength=len(DECISIONS))
            sink.write(names, verdicts)
            if progress is not None:
                progress(len(verdicts.decisions))
    return Summary(int(decisions.sum()), rejections, dict(zip(DECISIONS, decisions.tolist(), strict=True)))


def scored_chunks(
    pipeline: Pipeline,
    decoder: Decoder,
    source: str,
    form: Format | None,
    message_bytes_max: int,
    rejections: Counter[str],
) -> Iterator[tuple[Any, Verdicts]]:
    """Return the names and verdicts of a source's transactions, SCORE_ROWS at a time at most.

    Raises:
        InputError: The source cannot be read.
        UsageError: Parquet from standard input; told at once, before an output is opened.
    """
    form = form or ("parquet" if source.endswith(".parquet") else "jsonl")
    if form == "parquet" and source == "-":
        raise UsageError("parquet cannot be read from standard input: give --input a file")
    chunks = (
        _parquet_chunks(Path(source))
        if form == "parquet"
        else _line_chunks(source, decoder, rejections, message_bytes_max)
    )
    return (
        (names[start : start + SCORE_ROWS], pipeline.score(packed[start : start + SCORE_ROWS]))
        for names, packed in chunks
        for start in range(0, len(packed), SCORE_ROWS)
    )


def _parquet_chunks(path: Path) -> Iterator[tuple[Any, NDArray[np.uint64]]]:
    from features import backfill

    for batch, packed in backfill.batches(path, names=NAMES):
        yield batch.column(0), packed


def _line_chunks(
    source: str, decoder: Decoder, rejections: Counter[str], message_bytes_max: int
) -> Iterator[tuple[Any, NDArray[np.uint64]]]:
    with _input(source) as stream:
        lines = read_lines(stream, message_bytes_max=message_bytes_max)
        while chunk := list(islice(lines, SCORE_ROWS)):
            names: list[str] = []
            packed: list[bytes] = []
            for line in chunk:
                try:
                    tx = decoder.decode(line)
                except RejectedError as error:
                    rejections[error.reason] += 1
                else:
                    names.append(tx.hash)
                    packed.append(pack(tx))
            yield names, records(packed) if packed else np.zeros((0, RECORD_WORDS), dtype=np.uint64)


@contextmanager
def _input(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{source}: is no file")
    with path.open("rb", buffering=1 << 20) as stream:
        yield stream


@contextmanager
def _opened(target: str) -> Iterator[_Sink]:
    """Open the output; a file appears under its name only when it is whole."""
    if target == "-":
        yield _Lines(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    try:
        with durable.replacing(path) as stream:
            sink: _Sink = _Parquet(stream) if path.suffix == ".parquet" else _Lines(stream)
            yield sink
            sink.close()
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error


class _Lines:
    """JSON lines; a hash prefix of bytes is written as 0x hex."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._encode = msgspec.json.Encoder().encode_lines

    def write(self, names: Any, verdicts: Verdicts) -> None:
        values = names if isinstance(names, list) else names.to_pylist()
        field = "hash"
        if values and isinstance(values[0], bytes):
            field, values = "hash_prefix", ["0x" + value.hex() for value in values]
        scores, decisions = verdicts.probabilities.tolist(), verdicts.decisions.tolist()
        self._stream.write(
            self._encode(
                [
                    {field: value, "score": score, "decision": DECISIONS[decision]}
                    for value, score, decision in zip(values, scores, decisions, strict=True)
                ]
            )
        )

    def close(self) -> None:
        """Nothing is held back."""


class _Parquet:
    """A parquet file, its schema taken from the first chunk's names."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pending: list[Any] = []
        self._n_pending = 0
        self._writer: Any = None

    def write(self, names: Any, verdicts: Verdicts) -> None:
        import pyarrow as pa

        column = pa.array(names) if isinstance(names, list) else names
        field = "hash_prefix" if pa.types.is_fixed_size_binary(column.type) else "hash"
        decisions = pa.DictionaryArray.from_arrays(pa.array(verdicts.decisions), pa.array(DECISIONS))
        table = pa.table({field: column, "score": verdicts.probabilities, "decision": decisions})
        self._pending.append(table)
        self._n_pending += len(table)
        if self._n_pending >= WRITE_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            # Hashes and scores repeat nothing: a dictionary of them would only cost time.
            self._writer = pq.ParquetWriter(self._stream, table.schema, use_dictionary=["decision"])
        self._writer.write_table(table)
        self._pending, self._n_pending = [], 0

    def close(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._flush()
        if self._writer is None:
            empty = pa.schema([("hash", pa.string()), ("score", pa.float64()), ("decision", pa.string())])
            self._writer = pq.ParquetWriter(self._stream, empty)
        self._writer.close()
