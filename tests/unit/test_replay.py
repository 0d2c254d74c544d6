"""Files and pipes through the service's own pipeline."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import InputError, UsageError
from service import replay, settings, simulator
from service.codec import Decoder
from tests.boosters import trained, write_model

N = 1_500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, simulated messages as JSON lines and the plain transactions among them as parquet."""
    folder = tmp_path_factory.mktemp("replay")
    write_model(folder / "model.falconet", trained())
    values = [value for value in simulator.messages(5, N) if json.loads(value)["type"] == "transaction"]
    (folder / "in.jsonl").write_bytes(b"\n".join(values) + b"\n")
    pq.write_table(as_table(values), folder / "in.parquet")
    return folder


def as_table(values: list[bytes]) -> pa.Table:
    """Write messages as the data folder's columns."""
    decoder = Decoder(chain_id=1, message_bytes_max=1 << 20)
    txs = [decoder.decode(value) for value in values]
    inputs = [tx.input or "0x" for tx in txs]
    return pa.table(
        {
            "hash_prefix": pa.array([bytes.fromhex(tx.hash[2:18]) for tx in txs], pa.binary(8)),
            "block_timestamp": [tx.block_timestamp for tx in txs],
            "from_address": [tx.from_address for tx in txs],
            "to_address": [tx.to_address for tx in txs],
            "value": [str(tx.value) for tx in txs],
            "receipt_status": pa.array([tx.receipt_status for tx in txs], pa.int8()),
            "method_id": [text[:10] if len(text) >= 10 else None for text in inputs],
            "input_bytes": pa.array([(len(text) - 2) // 2 for text in inputs], pa.int32()),
        }
    )


def run(folder: Path, source: str, target: str, **options: Path | str | None) -> bytes:
    effective = settings.load(
        overrides={"model": str(folder / "model.falconet"), "accounts_max": 4_096, "pairs_max": 8_192}, environment={}
    )
    output = folder / target
    chosen = {"form": None, "state": None, "save_state": None} | options
    replay.command(effective, source=str(folder / source), target=str(output), **chosen)  # type: ignore[arg-type]
    return output.read_bytes()


@pytest.mark.parametrize(("source", "target"), [("in.jsonl", "out.jsonl"), ("in.parquet", "out.parquet")])
def test_the_same_input_gives_the_same_bytes_twice(folder, source, target):
    """Nothing in the output depends on the clock or on what ran before."""
    assert run(folder, source, target) == run(folder, source, target)


def test_parquet_and_json_lines_give_bit_identical_scores(folder):
    """One pipeline: the form of a file changes nothing but its spelling."""
    lines = [json.loads(line) for line in run(folder, "in.jsonl", "a.jsonl").splitlines()]
    run(folder, "in.parquet", "a.parquet")
    table = pq.read_table(folder / "a.parquet")

    assert [line["score"] for line in lines] == table["score"].to_pylist()
    assert [line["decision"] for line in lines] == table["decision"].to_pylist()
    assert [bytes.fromhex(line["hash"][2:18]) for line in lines] == table["hash_prefix"].to_pylist()


def test_parquet_may_be_written_as_lines_and_lines_as_parquet(folder):
    """The two forms cross, the names with them."""
    lines = [json.loads(line) for line in run(folder, "in.parquet", "b.jsonl").splitlines()]
    run(folder, "in.jsonl", "b.parquet")
    table = pq.read_table(folder / "b.parquet")

    assert [line["score"] for line in lines] == table["score"].to_pylist()
    assert all(line["hash_prefix"].startswith("0x") and len(line["hash_prefix"]) == 18 for line in lines)
    assert all(len(name) == 66 for name in table["hash"].to_pylist())


def test_a_saved_past_is_gone_on_from(folder):
    """Two halves with the state between them equal the whole."""
    lines = (folder / "in.jsonl").read_bytes().splitlines(keepends=True)
    half = len(lines) // 2
    (folder / "first.jsonl").write_bytes(b"".join(lines[:half]))
    (folder / "second.jsonl").write_bytes(b"".join(lines[half:]))
    whole = run(folder, "in.jsonl", "whole.jsonl")
    first = run(folder, "first.jsonl", "1.jsonl", save_state=folder / "past")
    second = run(folder, "second.jsonl", "2.jsonl", state=folder / "past")

    assert first + second == whole
    assert run(folder, "second.jsonl", "alone.jsonl") != second


def test_bad_lines_are_counted_and_the_rest_is_scored(folder, capsys):
    """A rejected line has no row; the summary says how many there were, by reason."""
    lines = (folder / "in.jsonl").read_bytes().splitlines(keepends=True)[:10]
    (folder / "bad.jsonl").write_bytes(b"".join([*lines[:5], b"{}\n", b"\xff\n", *lines[5:]]))
    written = run(folder, "bad.jsonl", "bad.out.jsonl")
    told = capsys.readouterr().err

    assert len(written.splitlines()) == 10
    assert "1 rejected (missing_field)" in told
    assert "1 rejected (not_utf8)" in told


def test_an_empty_input_gives_an_empty_output(folder):
    """Nothing in, nothing out, and a parquet file that can be read."""
    (folder / "empty.jsonl").write_bytes(b"")

    assert run(folder, "empty.jsonl", "empty.out.jsonl") == b""
    run(folder, "empty.jsonl", "empty.parquet")
    assert pq.read_table(folder / "empty.parquet").num_rows == 0


def test_what_cannot_be_read_is_named_and_leaves_no_output(folder):
    """Missing files, damaged parquet, columns that are not there: one clear error and no half-written file."""
    (folder / "damaged.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"hash": ["0x00"]}), folder / "columns.parquet")
    for source, words in (
        ("absent.jsonl", "is no file"),
        ("damaged.parquet", "cannot be read as parquet"),
        ("columns.parquet", "no column block_timestamp"),
    ):
        with pytest.raises(InputError, match=words):
            run(folder, source, "never.jsonl")

        assert not (folder / "never.jsonl").exists()
        assert not list(folder.glob("never.jsonl*"))


def test_parquet_from_a_pipe_is_refused(folder):
    """Parquet's index stands at its end, which a pipe cannot seek to."""
    effective = settings.load(overrides={"model": str(folder / "model.falconet")}, environment={})
    with pytest.raises(UsageError, match="standard input"):
        replay.command(effective, source="-", target="-", form="parquet", state=None, save_state=None)


def test_pipes_carry_messages_in_and_rows_out(folder):
    """`-` on both sides: what a shell needs."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "replay", "--input", "-", "--output", "-"],
        input=(folder / "in.jsonl").read_bytes(),
        env={
            "FALCONET_MODEL": str(folder / "model.falconet"),
            "FALCONET_ACCOUNTS_MAX": "4096",
            "FALCONET_PAIRS_MAX": "8192",
            "PATH": "",
            "HOME": str(folder),
        },
        capture_output=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == run(folder, "in.jsonl", "pipe.jsonl")
    assert b"tx/s" in done.stderr


def test_scores_are_probabilities(folder):
    """Every row has a number between 0 and 1."""
    scores = np.array([json.loads(line)["score"] for line in run(folder, "in.jsonl", "p.jsonl").splitlines()])

    assert ((scores >= 0) & (scores <= 1)).all()
