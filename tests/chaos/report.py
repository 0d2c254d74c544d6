"""What a run found, as docs/chaos.json keeps it and docs/reliability.md shows it."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct


class Row(Struct, frozen=True):
    """One kind of fault with one client library."""

    fault: str
    does: str
    client: str
    n_faults: int
    n_messages: int
    n_scores: int
    n_lost: int
    n_doubled: int
    n_wrong: int
    n_different: int | None
    """None for several partitions: there is no one order between them."""

    n_exits: int
    """How often the process ended with exit code 1 and an error, and was started again."""

    since: str
    recoveries_s: list[float]
    commit: str
    date: str

    @property
    def is_good(self) -> bool:
        """Whether exactly once held."""
        return self.n_lost == self.n_doubled == self.n_wrong == 0 and not self.n_different

    def cells(self) -> tuple[str, ...]:
        """Return the row as the table shows it, under HEADER."""
        median_s, worst_s = statistics.median(self.recoveries_s), max(self.recoveries_s)
        return (
            f"{self.fault}: {self.does}",
            self.client,
            f"{self.n_faults}",
            f"{self.n_messages:,}",
            f"{self.n_lost}",
            f"{self.n_doubled}",
            f"{self.n_wrong}",
            "—" if self.n_different is None else f"{self.n_different}",
            f"{self.n_exits}",
            f"{median_s:.1f} s, {worst_s:.1f} s after {self.since}",
        )


HEADER = (
    "Fault",
    "Client",
    "Times",
    "Messages",
    "Lost",
    "Doubled",
    "Wrong",
    "Different",
    "Exits",
    "Recovered, median and worst",
)


class Report(Struct, frozen=True):
    """All rows, each of its last run."""

    machine: str
    rows: list[Row]


def write(report: Report, path: Path, order: Sequence[str]) -> None:
    """Write the rows, keeping those of an earlier run on the same machine that this one did not repeat."""
    rows = {(row.fault, row.client): row for row in report.rows}
    if path.exists():
        before = msgspec.json.decode(path.read_bytes(), type=Report)
        if before.machine == report.machine:
            rows = {(row.fault, row.client): row for row in before.rows} | rows
    listed = sorted(rows.values(), key=lambda row: (order.index(row.fault), row.client))
    encoded = msgspec.json.encode(Report(report.machine, [row for row in listed if row.fault in order]))
    path.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
