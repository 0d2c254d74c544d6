"""`falconet bench` beside an Apache Kafka of its own: `python -m tests.bench [OPTION]…`, with its options."""

import contextlib
import subprocess
import sys

from tests import servers


def main() -> int:
    """Run the benchmark and return its exit code."""
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(servers.kafka())
        except servers.MissingServerError as error:
            print(f"no Apache Kafka: {error}; `--no-kafka` measures without", file=sys.stderr)
            return 1
        command = [sys.executable, "-m", "service.cli", "bench", "--bootstrap-servers", address, *sys.argv[1:]]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
