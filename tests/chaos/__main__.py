"""The long form of the faults: `make chaos`, or `python -m tests.chaos [--only FAULT …] [--times N] [--json FILE]`.

The two client libraries run side by side, each on an Apache Kafka of its own. For every kind of fault a stream flows
through the service while it is struck again and again; then the verdict is spoken (`verdict.py`). Anything lost,
doubled, wrong or different, anything that hangs, and any end without a clear error makes the exit code 1.

    --client NAME    one library only
    --only FAULT …   some kinds of fault
    --times N        each so often, instead of its own number
    --seed S         of traffic and instants, printed; the broker's own threads are not drawn
    --json FILE      where the rows go; those of kinds that this run leaves out stay
    --keep FOLDER    where state and logs go and stay
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models import report as models_report
from service.settings import KAFKA_CLIENTS
from tests import servers
from tests.chaos import report
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.ground import ground, strike
from tests.chaos.report import Report, Row
from tests.chaos.stage import ChaosError

ORDER = [fault.name for fault in FAULTS]


class Run:
    """All faults for all clients, the rows written as they come."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._machine = models_report.machine()
        self._turn = threading.Lock()
        self._started_s = time.monotonic()
        self.rows: list[Row] = []
        self.failures: list[str] = []

    def clients(self, names: Sequence[str], faults: Sequence[Fault]) -> None:
        """Try the faults with every client, side by side."""
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: self._client(name, faults), names))

    def _client(self, client: str, faults: Sequence[Fault]) -> None:
        with ground(self._folder / f"broker-{client}", max(fault.n_lanes for fault in faults)) as there:
            for fault in faults:
                n = self._options.times or fault.n
                try:
                    row = strike(there, fault, client, self._folder, n=n, seed=self._options.seed)
                except (ChaosError, PermissionError, TimeoutError) as error:
                    self._tell(f"{fault.name} {client}: FAILED: {error}")
                    self.failures.append(fault.name)
                    for proxy in there.proxies:
                        proxy.heal()
                    continue
                self._note(row)

    def _note(self, row: Row) -> None:
        with self._turn:
            self.rows.append(row)
            if self._options.json is not None:
                report.write(Report(self._machine, self.rows), self._options.json, ORDER)
        if not row.is_good:
            self.failures.append(row.fault)
        cells = "  ".join(f"{name} {cell}" for name, cell in zip(report.HEADER[2:], row.cells()[2:], strict=True))
        self._tell(f"{row.fault} {row.client}: {'good' if row.is_good else 'FAILED'}: {cells}")

    def _tell(self, line: str) -> None:
        print(f"{time.monotonic() - self._started_s:6.0f} s  {line}", flush=True)


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", choices=KAFKA_CLIENTS)
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER)
    parser.add_argument("--times", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if fault.name in options.only]
    with tempfile.TemporaryDirectory(prefix="falconet-chaos-") as temporary:
        run = Run(options, options.keep or Path(temporary))
        print(f"{models_report.machine()}, commit {models_report.commit()[:12]}, seed {options.seed}", flush=True)
        try:
            servers.kafka_libs()  # fetched once, before two brokers want them at the same time
            run.clients([options.client] if options.client else KAFKA_CLIENTS, chosen)
        except servers.MissingServerError as error:
            print(f"no Apache Kafka: {error}", file=sys.stderr)
            return 1
    n_faults = sum(row.n_faults for row in run.rows)
    failed = f"{len(run.failures)} failed: {', '.join(run.failures)}" if run.failures else "none failed"
    print(f"{n_faults} faults, {len(run.rows)} verdicts, {failed}")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
