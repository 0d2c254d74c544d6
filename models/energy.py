"""Energy of a piece of work: by the processor's own counter (RAPL) where it can be read, else an estimate that says so.

In virtual machines and without root RAPL is unreadable. Then only the processor seconds are measured, which are the
portable figure, and joules are those times a stated power of one busy core.
"""

import resource
import time
from pathlib import Path
from typing import Literal

from msgspec import Struct

WATTS_PER_CORE = 5.0
"""A server core at work: 280 W of an EPYC 7763 over its 64 cores are 4.4 W, memory and losses come on top. An
estimate; the machine at hand may take half or twice of it."""

POWERCAP = Path("/sys/class/powercap")

Source = Literal["rapl", "estimate"]


class Energy(Struct, frozen=True):
    """What some work took."""

    wall_s: float
    cpu_s: float
    """Of this process and its finished children, all threads."""
    joules: float
    source: Source
    """`rapl`: all of the processor, whoever used it. `estimate`: processor seconds times WATTS_PER_CORE."""

    def times(self, factor: float) -> "Energy":
        """Return the same for so many times the work."""
        return Energy(self.wall_s * factor, self.cpu_s * factor, self.joules * factor, self.source)


class Meter:
    """Reads the clocks from its making on."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = sorted(path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1)
        self._wall_s, self._cpu_s, self._joules = time.perf_counter(), _cpu_s(), self._rapl()

    def read(self) -> Energy:
        """Return what was taken since the making.

        RAPL's counter wraps after minutes to hours; where it did, only the estimate is left.
        """
        wall_s, cpu_s = time.perf_counter() - self._wall_s, _cpu_s() - self._cpu_s
        joules = self._rapl()
        if joules is None or self._joules is None or joules < self._joules:
            return Energy(wall_s, cpu_s, cpu_s * WATTS_PER_CORE, "estimate")
        return Energy(wall_s, cpu_s, joules - self._joules, "rapl")

    def _rapl(self) -> float | None:
        try:
            return sum(int((path / "energy_uj").read_text()) for path in self._packages) / 1e6 or None
        except (OSError, ValueError):
            return None


def _cpu_s() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)
