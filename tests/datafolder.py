"""A small data folder in the form that training reads: drawn accounts, phishing that differs from normal."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = int(datetime(2018, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2019, 4, 1, tzinfo=UTC).timestamp())

Row = tuple[int, str, str | None, int]
"""Time, sender, recipient, wei."""


def address(number: int) -> str:
    """Return the address of a number."""
    return f"0x{number * 0x9E3779B97F4A7C15F39CC0605CEDC834_1082276B % 2**160:040x}"


def write_folder(folder: Path, *, seed: int = 1, n_accounts: int = 150) -> Path:
    """Write the four files and return the folder: a third of the accounts each is phishing, A's and B's normal ones."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ("phishing", "A", "B")
    rows: list[Row] = []
    tokens: list[Row] = []
    for number in range(n_accounts):
        rows += _history(rng, number, kinds[number % 3])
        tokens.append((int(rng.integers(START, END)), address(number), address(int(rng.integers(n_accounts))), 5))
    background = [
        (
            int(time),
            address(10**6 + 100 * block + i),
            address(2 * 10**6 + 100 * block + i),
            int(rng.integers(2) * 10**17),
        )
        for block, time in enumerate(rng.integers(START, END + 10**7, size=12))
        for i in range(20)
    ]
    pq.write_table(_table(rows), folder / "transactions.parquet")
    pq.write_table(
        _table(tokens).append_column("token_address", [[address(9)] * len(tokens)]), folder / "token_transfers.parquet"
    )
    pq.write_table(_table(background), folder / "background_blocks.parquet")
    with (folder / "accounts.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["address", "label", "source"])
        for number in range(n_accounts):
            kind = kinds[number % 3]
            lines.writerow(
                [address(number), "phishing" if kind == "phishing" else "normal", "B" if kind == "B" else "A"]
            )
        lines.writerow(["0x1234", "phishing", "A"])
    return folder


def _history(rng: np.random.Generator, number: int, kind: str) -> list[Row]:
    """Return an account's transactions: phishing gets small sums from strangers at once, normal ones trade for long."""
    n = int(rng.integers(8, 70))
    begin = int(rng.integers(START, END - 10**6))
    span = 3 * 10**5 if kind == "phishing" else END - begin
    wei = {"phishing": 10**17, "A": 3 * 10**17, "B": 10**19}[kind]
    rows: list[Row] = []
    for i in range(n):
        other = address(10**4 + (1_000 * number + i if kind == "phishing" else number * 10 + i % 3))
        is_receipt = rng.random() < (0.9 if kind == "phishing" else 0.5)
        sides = (other, address(number)) if is_receipt else (address(number), other)
        amount = 0 if rng.random() < 0.1 else int(wei * rng.lognormal())
        rows.append((begin + int(rng.integers(span)), *sides, amount))
    return rows


def _table(rows: list[Row]) -> pa.Table:
    time, sender, recipient, wei = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    return pa.table({
        "block_timestamp": pa.array(time, pa.int64()),
        "from_address": pa.array(sender, pa.string()),
        "to_address": pa.array(recipient, pa.string()),
        "value": pa.array([str(amount) for amount in wei], pa.string()),
        "receipt_status": pa.array([1] * len(rows), pa.int8()),
    })  # fmt: skip
