"""Train's dataset from an archive that does not fit memory: `python -m tests.bench.bench_archive --rows 50000000`.

The data folder's transactions are repeated with other addresses and shifted times until there are enough of them, and
written by day like an export. Then a process of its own gathers the rows that training takes: read (decode, sort, keep
on disk), sample (which rows count), matrix (every record through the kernel, the rows that count kept) and a second
matrix whose past is forgotten again and again, as training makes it. Printed are machine, commit, the seconds and
records a second of each, and the peak of resident memory. `--train` also runs `falconet train --quick` on the archive,
from its files to a sealed version: the same steps again, then teacher, choice of features, student and report.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import archive
from features.table import DAY_S
from models import compact, dataset, registry
from service.bench import Report, commit, figure, machine, of_now, write

ROOT = Path(__file__).resolve().parents[2]
BYTES_PER_RECORD = 250
"""Of disk: about 130 as parquet, 80 packed, and the kept rows."""

NUMBER_AT = slice(12, 16)
"""The four hex digits of an address that a copy's number replaces."""

SHIFT_S = 2_879
"""Between a transaction and its copy, within the day: 48 minutes, a prime number of seconds."""

RESTART_DAYS = 110
"""What training draws on average between two cold starts."""

KEPT = ("value", "receipt_status", "method_id", "input_bytes")


def addresses(column: pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return the different addresses as text, shape (n, 42), and each row's place among them, -1 for null."""
    encoded = column.combine_chunks()
    encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    text = "".join(encoded.dictionary.to_pylist()).encode()
    places = encoded.indices.fill_null(-1).to_numpy()
    return np.frombuffer(text, dtype=np.uint8).reshape(-1, 42), places.astype(np.int32)


def renamed(text: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Return the addresses of a copy; copy 0 has the original ones."""
    copy = text.copy()
    if number:
        copy[:, NUMBER_AT] = np.frombuffer(f"{number:04x}".encode(), dtype=np.uint8)
    return copy


def text_array(text: NDArray[np.uint8], is_null: NDArray[np.bool_]) -> pa.Array:
    """Return addresses as an arrow array of strings."""
    offsets = np.arange(0, 42 * (len(text) + 1), 42, dtype=np.int32)
    valid = np.packbits(~is_null, bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))]
    return pa.Array.from_buffers(pa.string(), len(text), buffers)


def build(source: Path, folder: Path, *, n_records: int) -> int:
    """Write an archive of at least so many records; return how many copies of the source it holds."""
    kept = [name for name in KEPT if name in pq.read_schema(source).names]
    table = pq.read_table(source, columns=["block_timestamp", "from_address", "to_address", *kept])
    time_s = table["block_timestamp"].to_numpy()
    sides = [addresses(table[name]) for name in ("from_address", "to_address")]
    n_copies = -(-n_records // len(time_s))
    cuts = np.flatnonzero(np.diff(time_s // DAY_S)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(time_s)], strict=True):
        midnight = int(time_s[start]) // DAY_S * DAY_S
        seconds = time_s[start:end] - midnight
        shifted = [midnight + (seconds + number * SHIFT_S) % DAY_S for number in range(n_copies)]
        columns: dict[str, Any] = {
            "type": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros((end - start) * n_copies, dtype=np.int8)), ["transaction"]
            ),
            "block_timestamp": np.concatenate(shifted),
        }
        for name, (text, places) in zip(("from_address", "to_address"), sides, strict=True):
            rows = text[places[start:end]]
            names = np.concatenate([renamed(rows, number) for number in range(n_copies)])
            columns[name] = text_array(names, np.tile(places[start:end] < 0, n_copies))
        for name in kept:
            part = table[name].slice(start, end - start).combine_chunks()
            columns[name] = pa.concat_arrays([part] * n_copies)
        home = folder / archive.folder_name(midnight)
        home.mkdir()
        file = home / f"part-0-{start * n_copies}.parquet"
        pq.write_table(pa.table(columns), file, use_dictionary=["type"], write_statistics=False)
    return n_copies


def write_labels(source: Path, path: Path, *, n_copies: int) -> int:
    """Write the labels of so many copies, known from the first day on; return their number."""
    with source.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if len(line["address"]) == 42]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["address", "label", "known_from", "source"])
        for number in range(n_copies):
            for line in lines:
                address = line["address"]
                if number:
                    address = address[: NUMBER_AT.start] + f"{number:04x}" + address[NUMBER_AT.stop :]
                writer.writerow([address, line["label"], "2015-01-01", line["source"]])
    return len(lines) * n_copies


def peak_bytes() -> float:
    """Return the most this process ever held in memory; unlike `getrusage`, without its parent's at the fork."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024.0


def measure(source: dataset.Source) -> dict[str, float]:
    """Gather the rows and return the seconds of each step and what was gathered."""
    figures: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        figures[f"{name}_s"] = time.perf_counter() - started
        figures[f"{name}_peak_bytes"] = peak_bytes()
        return result

    told: dict[str, int] = {}

    def tell(stage: str, n_done: int, n: int) -> None:
        if stage not in ("reading", "features"):
            told[stage] = n_done

    records = timed("read", lambda: dataset.read(source))
    sample = timed("sample", lambda: dataset.sample(records))
    rows = timed("matrix", lambda: dataset.matrix(records, sample.position, report=tell))
    restarts = np.arange(int(sample.time[0]), int(sample.time[-1]), RESTART_DAYS * DAY_S)[1:]
    timed("cold_matrix", lambda: dataset.matrix(records, sample.position, restarts=restarts))
    figures |= {"n_records": len(records.packed), "n_rows": len(rows), "n_phishing": int(sample.is_phishing.sum())}
    figures |= {"n_forgotten": sum(told.values()), "accounts_max": source.accounts_max}
    return figures


def show(figures: dict[str, float]) -> None:
    """Print what `measure` returned."""
    n = figures["n_records"]
    print(f"{n:,.0f} records, {figures['n_rows']:,.0f} rows kept, {figures['n_phishing']:,.0f} of them phishing")
    print(f"accounts forgotten because of accounts_max: {figures['n_forgotten']:,.0f}")
    for name in ("read", "sample", "matrix", "cold_matrix"):
        spent, peak = figures[f"{name}_s"], figures[f"{name}_peak_bytes"]
        print(f"{name:12} {spent:8.1f} s {n / spent:12,.0f} records/s, peak so far {peak / 2**30:.2f} GiB", flush=True)


def report(figures: dict[str, float]) -> Report:
    """Return what `measure` returned as docs/archive.json keeps it."""
    n = figures["n_records"]
    steps = {
        "read": "read: decode, sort, pack to disk",
        "sample": "sample: which rows count",
        "matrix": "matrix: every record through the kernel",
        "cold_matrix": "matrix again, the past forgotten every 110 days",
    }
    lines = [
        figure("records", [n], ""),
        figure("rows kept", [figures["n_rows"]], ""),
        figure(f"accounts forgotten, {figures['accounts_max']:,.0f} in memory", [figures["n_forgotten"]], ""),
        *(figure(text, [n / figures[f"{name}_s"]], "records/s") for name, text in steps.items()),
        figure("time in all", [sum(figures[f"{name}_s"] for name in steps)], "s"),
        figure("peak of resident memory", [figures["cold_matrix_peak_bytes"] / 2**30], "GiB", "≤ 23"),
    ]
    if "train_s" in figures:
        lines += [
            figure("`falconet train --quick`, end to end", [figures["train_s"]], "s"),
            figure("peak of resident memory in it", [figures["train_peak_bytes"] / 2**30], "GiB", "≤ 23"),
            figure("the student that it sealed", [figures["student_bytes"]], "bytes", "≤ 32,768"),
        ]
    return of_now(lines)


def run(arguments: list[str]) -> tuple[str, float]:
    """Run a command; return its output and the peak of its resident memory in bytes, no less than our own."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}: {output}")
    return output, usage.ru_maxrss * 1024.0


def train(folder: Path, accounts_max: int) -> dict[str, float]:
    """Train on the archive in a process of its own; return what it took and the size of what it sealed."""
    arguments = ["train", "--data", str(folder), "--labels", str(folder / "labels.csv"), "--quick"]
    arguments += ["--accounts-max", str(accounts_max)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="falconet-trained-") as output:
        version = Path(output) / "1"
        _, peak = run([sys.executable, "-m", "service.cli", *arguments, "--output", str(version)])
        spent = time.perf_counter() - started
        registry.verify(version)
        n_bytes = compact.read(version / registry.MODEL_FILE).n_bytes
    print(f"falconet train --quick: {spent:.0f} s, peak resident memory {peak / 2**30:.2f} GiB, {n_bytes:,} bytes")
    return {"train_s": spent, "train_peak_bytes": peak, "student_bytes": n_bytes}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000, help="records of the archive (default: %(default)s)")
    parser.add_argument("--labelled-copies", type=int, default=4, help="copies with labels (default: %(default)s)")
    parser.add_argument("--accounts-max", type=int, default=dataset.ACCOUNTS_MAX, help="accounts kept in memory")
    parser.add_argument("--archive", type=Path, metavar="DIR", help="keep the archive here; one that is there is used")
    parser.add_argument("--train", action="store_true", help="also train with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    # Each step in a process of its own, so that one's peak is not taken for another's.
    parser.add_argument("--step", choices=("build", "measure"), help=argparse.SUPPRESS)
    return parser.parse_args()


def step(options: argparse.Namespace) -> None:
    """Build or measure, and print what came of it as JSON."""
    folder = options.archive
    labels = folder / "labels.csv"
    if options.step == "measure":
        print(json.dumps(measure(dataset.Source(folder, labels, accounts_max=options.accounts_max))))
        return
    data = Path(os.environ.get("FALCONET_DATA") or ROOT.parent / "shared" / "data" / "ethereum")
    started = time.perf_counter()
    n_copies = build(data / "transactions.parquet", folder, n_records=options.rows)
    n_labels = write_labels(data / "accounts.csv", labels, n_copies=min(n_copies, options.labelled_copies))
    n_bytes = sum(file.stat().st_size for file in folder.glob("date=*/*.parquet"))
    spent = time.perf_counter() - started
    print(json.dumps(f"built {n_copies} copies in {spent:.0f} s, {n_bytes / 1e9:.2f} GB, {n_labels:,} labels"))


def main() -> None:
    """Build, measure and print."""
    options = parse()
    if options.step:
        step(options)
        return
    print(f"machine: {machine()}\ncommit: {commit()}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = options.archive or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="falconet-archive-")))
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = options.rows * BYTES_PER_RECORD, shutil.disk_usage(folder).free
        if needed > free:
            raise SystemExit(f"{folder} has {free:,} bytes free, {options.rows:,} records need {needed:,}")
        this = [sys.executable, "-m", "tests.bench.bench_archive", "--archive", str(folder)]
        this += ["--rows", str(options.rows), "--labelled-copies", str(options.labelled_copies)]
        this += ["--accounts-max", str(options.accounts_max), "--step"]
        if not archive.is_archive(folder):
            print(json.loads(run([*this, "build"])[0]), flush=True)
        figures = json.loads(run([*this, "measure"])[0])
        show(figures)
        if options.train:
            figures |= train(folder, options.accounts_max)
        if options.json is not None:
            write(report(figures), options.json)


if __name__ == "__main__":
    main()
