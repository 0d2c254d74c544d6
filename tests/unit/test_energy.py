"""Energy: processor seconds always, joules by RAPL where it can be read, else an estimate that says so."""

from pathlib import Path

import pytest

from models import energy


def counter(folder: Path, name: str, microjoules: int) -> None:
    """Write a counter as the kernel shows it."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")


def busy() -> int:
    """Return something that took a few milliseconds."""
    return sum(i * i for i in range(200_000))


def test_without_rapl_joules_are_an_estimate(tmp_path: Path) -> None:
    """Joules are processor seconds times the stated power of a core."""
    meter = energy.Meter(tmp_path)
    busy()

    spent = meter.read()

    assert spent.source == "estimate"
    assert spent.cpu_s > 0
    assert spent.wall_s > 0
    assert spent.joules == pytest.approx(spent.cpu_s * energy.WATTS_PER_CORE)


def test_rapl_counts_packages_once(tmp_path: Path) -> None:
    """All packages count, and their parts (cores, memory) not a second time."""
    counter(tmp_path, "intel-rapl:0", 1_000_000)
    counter(tmp_path, "intel-rapl:1", 2_000_000)
    counter(tmp_path, "intel-rapl:0:0", 9_000_000)
    meter = energy.Meter(tmp_path)
    counter(tmp_path, "intel-rapl:0", 4_000_000)
    counter(tmp_path, "intel-rapl:1", 2_500_000)
    counter(tmp_path, "intel-rapl:0:0", 99_000_000)

    spent = meter.read()

    assert (spent.joules, spent.source) == (pytest.approx(3.5), "rapl")


def test_a_wrapped_counter_leaves_the_estimate(tmp_path: Path) -> None:
    """A counter that fell has begun anew: its difference says nothing."""
    counter(tmp_path, "intel-rapl:0", 9_000_000)
    meter = energy.Meter(tmp_path)
    counter(tmp_path, "intel-rapl:0", 1_000_000)

    assert meter.read().source == "estimate"


def test_energy_of_many_times_the_work() -> None:
    """A share of the work scales to a million."""
    assert energy.Energy(1.0, 2.0, 10.0, "estimate").times(3) == energy.Energy(3.0, 6.0, 30.0, "estimate")
