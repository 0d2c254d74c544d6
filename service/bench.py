"""The `bench` command: what this machine does, with machine, commit, versions and spread beside every figure.

Machines are shared and noisy, so figures that are compared come from alternating rounds of one run.
"""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from features.accounts import Accounts
from features.errors import UsageError
from features.transaction import pack, records
from models import registry
from models.scorer import Scorer
from service import trust
from service.codec import Decoder
from service.pipeline import Message, Pipeline
from service.policy import policy
from service.settings import Settings

PACKAGES = ("falconet", "kafka-python", "confluent-kafka", "lightgbm", "msgspec", "numba", "numpy", "prometheus-client")
SEED = 1
ROUNDS = 7
BATCH = 500
ACCOUNTS = 1_000_000

Say = Callable[[str], None]


class Figure(Struct, frozen=True):
    """One measured number."""

    name: str
    value: float
    """Median over the rounds, unless the name says otherwise."""

    unit: str
    low: float
    high: float
    """Smallest and largest round."""

    target: str = ""
    """What it must reach, as a comparison."""

    commit: str = ""
    """Where it was measured, if not at the report's own commit."""

    def line(self) -> str:
        """Return the figure as one line of text."""
        spread = "" if self.low == self.high == self.value else f"  ({plain(self.low)} to {plain(self.high)})"
        return f"{self.name}: {plain(self.value)} {self.unit}{spread}" + (
            f"  must: {self.target}" if self.target else ""
        )


class Report(Struct, frozen=True):
    """A whole run; docs/bench.json holds the last one."""

    machine: str
    commit: str
    date: str
    versions: dict[str, str]
    figures: list[Figure]


def run(*, settings: Settings, kafka: bool, data: Path | None, quick: bool, say: Say) -> Report:
    """Measure everything and return the report.

    Args:
        settings: Its model is measured; its brokers are used when `kafka` is set.
        kafka: Also measure through the brokers, with every Kafka client that is installed.
        data: Folder of real transactions for the replay figure, None for simulated ones.
        quick: Fewer messages and rounds: shows that the benchmark works, not what the machine does.
        say: Called with each line as it is known.
    """
    from service import bench_kafka

    report = of_now([])
    say(f"machine: {report.machine}")
    say(f"commit: {report.commit}  date: {report.date}")
    say("versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    parts: list[Iterator[Figure]] = [in_process(settings, quick=quick), replays(settings, data, quick=quick)]
    if kafka:
        parts.append(bench_kafka.figures(settings, quick=quick, say=say))
    for part in parts:
        for figure in part:
            say(figure.line())
            report.figures.append(figure)
    return report


def of_now(figures: list[Figure]) -> Report:
    """Return a report of this machine, commit and day."""
    return Report(machine(), commit(), datetime.now(UTC).strftime("%Y-%m-%d"), versions(), figures)


def write(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def update(found: Sequence[Figure], path: Path) -> None:
    """Write figures to a report, beside those that it holds and that were not measured this time."""
    kept: list[Figure] = []
    if path.exists():
        measured = {figure.name for figure in found}
        before = msgspec.json.decode(path.read_bytes(), type=Report)
        kept = [
            msgspec.structs.replace(figure, commit=figure.commit or before.commit)
            for figure in before.figures
            if figure.name not in measured
        ]
    now = of_now([])
    kept = [msgspec.structs.replace(figure, commit="") if figure.commit == now.commit else figure for figure in kept]
    write(msgspec.structs.replace(now, figures=[*kept, *found]), path)


def in_process(settings: Settings, *, quick: bool) -> Iterator[Figure]:
    """Measure bytes to bytes without a broker, beside one call of the large model, in alternating rounds."""
    from service import simulator

    n, rounds = (20_000, 3) if quick else (100_000, ROUNDS)
    messages = [Message(raw, None, "transactions", 0, i, 0) for i, raw in enumerate(simulator.messages(SEED, n))]
    scorer = Scorer.load(trust.model_path(settings))
    teacher = registry.Teacher.load(trust.model_path(settings).parent)
    make(scorer).process(messages[:BATCH], now_ms=0)
    rates, singles, calls = [], [], []
    for _ in range(rounds):
        pipeline = make(scorer)
        started = time.perf_counter()
        for i in range(0, n, BATCH):
            outputs = pipeline.process(messages[i : i + BATCH], now_ms=0)
        rates.append(n / (time.perf_counter() - started))
        singles.append(_one_by_one(make(scorer), messages[: n // 5]))
        calls.append(_teacher_calls(teacher, outputs.verdicts.rows))
    yield figure("in-process throughput, bytes to bytes, one core, batches of 500", rates, "tx/s", "≥ 100,000")
    for q, target in ((50, "≤ 20"), (99, "≤ 100"), (99.9, "")):
        yield figure(f"one transaction alone, bytes to bytes, p{q:g}", _quantiles(singles, q), "µs", target)
    for q in (50, 99):
        yield figure(f"one call of the large model (Booster.predict, one thread), p{q}", _quantiles(calls, q), "µs")
    ratios = [np.median(call) / np.median(single) for call, single in zip(calls, singles, strict=True)]
    yield figure("one call of the large model / whole path of one transaction, p50", ratios, "times")
    yield figure("one call of the large model / transaction in a batch", _products(calls, rates), "times")
    yield from _parts(scorer, messages, rounds)


def _parts(scorer: Scorer, messages: list[Message], rounds: int) -> Iterator[Figure]:
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    packed = records([pack(decoder.decode(message.value)) for message in messages if message.value])
    features, inference = [], []
    for _ in range(rounds):
        accounts = Accounts(accounts_max=ACCOUNTS, pairs_max=2 * ACCOUNTS)
        accounts.score_rows(packed[:BATCH])
        spent = [0.0, 0.0]
        for i in range(0, len(packed), BATCH):
            started = time.perf_counter()
            rows, _ = accounts.score_rows(packed[i : i + BATCH])
            between = time.perf_counter()
            scorer.margins(rows)
            spent[0] += between - started
            spent[1] += time.perf_counter() - between
        features.append(spent[0] / len(packed) * 1e6)
        inference.append(spent[1] / len(packed) * 1e6)
    yield figure("features: emit and observe, batches of 500", features, "µs/tx", "≤ 2")
    yield figure("model, batches of 500", inference, "µs/tx", "≤ 0.15")


def replays(settings: Settings, data: Path | None, *, quick: bool) -> Iterator[Figure]:
    """Measure `replay` in processes bound to one core, start-up left out by the command's own clock."""
    from service import simulator

    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "messages.jsonl"
        lines.write_bytes(b"\n".join(simulator.messages(SEED, 20_000 if quick else 300_000)) + b"\n")
        parquet = None if data is None else data / "transactions.parquet"
        sources = [(lines, Path(folder) / "scores.jsonl", "JSON lines to JSON lines, simulated", "≥ 60,000")]
        if parquet is not None and parquet.exists():
            sources.append((parquet, Path(folder) / "scores.parquet", "parquet to parquet, real", "≥ 250,000"))
        for source, target, name, must in sources:
            rates = [_replay_rate(settings, source, target) for _ in range(1 if quick else 3)]
            yield figure(f"replay, {name}, one core", rates, "tx/s", must)


def _replay_rate(settings: Settings, source: Path, target: Path) -> float:
    """Run the command on one core and return the rate that it reports on standard error."""
    command = [sys.executable, "-m", "service.cli", "replay", "--input", str(source), "--output", str(target)]
    with one_core():
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=True, env=environment(settings)
        )
    return float(done.stderr.rsplit(" tx/s", 1)[0].rsplit(" ", 1)[1].replace(",", ""))


def make(scorer: Scorer) -> Pipeline:
    """Return a pipeline with an empty past and no lists."""
    return Pipeline(
        accounts=Accounts(accounts_max=ACCOUNTS, pairs_max=2 * ACCOUNTS),
        scorer=scorer,
        policy=policy(scorer.thresholds, None),
        decoder=Decoder(chain_id=1, message_bytes_max=1 << 20),
    )


def figure(name: str, rounds: Sequence[float], unit: str, target: str = "") -> Figure:
    """Return the median of the rounds with their spread."""
    values = [float(value) for value in rounds]
    return Figure(name, float(np.median(values)), unit, min(values), max(values), target)


def plain(value: float) -> str:
    """Return a number with as many digits as a reader needs."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def environment(settings: Settings, **changes: str) -> dict[str, str]:
    """Return the environment of a measured subprocess: the settings in force, then the changes."""
    chosen = {"FALCONET_MODEL": settings.model} if settings.model else {}
    return {**os.environ, **chosen, **changes}


@contextmanager
def one_core() -> Iterator[None]:
    """Bind this process, and what it starts, to one core for a while."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def machine() -> str:
    """Return processor, cores and memory in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


@functools.cache
def commit() -> str:
    """Return the checkout's commit, marked where files differ from it; `unknown` outside a checkout.

    It is that of the first call: a report that is written on the way makes no other program of this one.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def data_folder(given: Path | None) -> Path | None:
    """Return the folder of real transactions.

    Raises:
        UsageError: The option names no folder.
    """
    if given is not None and not given.is_dir():
        raise UsageError(f"--data {given} is no folder")
    return given


def _one_by_one(pipeline: Pipeline, messages: list[Message]) -> list[float]:
    clock = time.perf_counter
    spent = []
    for message in messages:
        started = clock()
        pipeline.process([message], now_ms=0)
        spent.append((clock() - started) * 1e6)
    return spent


def _teacher_calls(teacher: registry.Teacher, rows: NDArray[np.float32]) -> list[float]:
    spent = []
    for i in range(len(rows)):
        started = time.perf_counter()
        teacher.margins(rows[i : i + 1])
        spent.append((time.perf_counter() - started) * 1e6)
    return spent


def _quantiles(rounds: list[list[float]], q: float) -> list[float]:
    return [float(np.percentile(values, q)) for values in rounds]


def _products(calls: list[list[float]], rates: list[float]) -> list[float]:
    return [float(np.median(call)) * rate / 1e6 for call, rate in zip(calls, rates, strict=True)]
