"""The long form: `make fuzz`, or `python -m tests.fuzz --cases N [--seed S]`.

Half of the cases are drawn (`drawn.py`), in batches of 1 to 500 through one pipeline that goes on; half are guided by
coverage, by atheris, which looks for inputs that take a new way through the codec. A case that ends as none or as two
of score, rejection and skip (or, where a chain is reorganised, of what `harness.py` names), an exception, or a batch
that takes over 10 s ends the run with exit code 1; what broke lies in the folder named, and belongs into
`corpus/` with the repair.
"""

import argparse
import faulthandler
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from random import Random

from tests.fuzz import drawn
from tests.fuzz.harness import Harness

HANG_SECONDS = 10
CORPUS = Path(__file__).parent / "corpus"
GOLDEN = Path(__file__).parents[1] / "golden" / "messages"


def run_drawn(n_cases: int, seed: int, broken: Path) -> tuple[int, int]:
    """Run drawn cases and return how many there were and how many were scored."""
    harness, random, source = Harness(), Random(seed), drawn.values(seed)
    shown_s = time.monotonic()
    while harness.n_cases < n_cases:
        batch = list(islice(source, random.choice((1, 2, 7, 100, 500))))
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            harness.batch(batch)
        except BaseException:
            (broken / f"batch-{seed}-{harness.n_cases}").write_text(repr(batch))
            raise
        faulthandler.cancel_dump_traceback_later()
        if time.monotonic() - shown_s > 5:
            shown_s = time.monotonic()
            print(f"drawn: {harness.n_cases:,} cases, {harness.n_scored:,} scored", flush=True)
    harness.check_past()
    return harness.n_cases, harness.n_scored


def run_guided(n_cases: int, seed: int, broken: Path) -> int:
    """Run cases guided by coverage in a process of their own, which libFuzzer ends, and return its exit code."""
    with tempfile.TemporaryDirectory() as found:
        seeds = [str(folder) for folder in (CORPUS, GOLDEN / "accepted", GOLDEN / "rejected") if folder.is_dir()]
        options = [
            f"-runs={n_cases}",
            f"-seed={seed}",
            f"-timeout={HANG_SECONDS}",
            "-max_len=4200",
            "-rss_limit_mb=2048",
        ]
        options += [
            f"-artifact_prefix={broken}/",
            f"-dict={Path(__file__).parent / 'json.dict'}",
            "-print_final_stats=1",
        ]
        return subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", *options, found, *seeds], check=False
        ).returncode


def main() -> int:
    """Run both and say how many cases there were."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broken", type=Path, default=Path(tempfile.gettempdir()) / "falconet-fuzz")
    parser.add_argument("--only", choices=("drawn", "guided"))
    options = parser.parse_args()
    options.broken.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    n_each = options.cases if options.only else options.cases // 2
    n_drawn = n_scored = n_guided = 0
    if options.only != "guided":
        n_drawn, n_scored = run_drawn(n_each, options.seed, options.broken)
    if options.only != "drawn":
        if run_guided(n_each, options.seed, options.broken):
            print(f"a guided case broke; it lies in {options.broken}")
            return 1
        n_guided = n_each
    print(
        f"{n_drawn:,} drawn cases, {n_scored:,} of them scored, and {n_guided:,} guided ones in "
        f"{time.monotonic() - started_s:,.0f} s with seed {options.seed}: each ended as exactly one of score, "
        "rejection, skip"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
