"""The real servers that tests, benchmarks and developers share, each on a free port.

    uv run python -m tests.servers kafka        # starts Apache Kafka, prints its address, stops with Ctrl-C
    uv run python -m tests.servers anvil        # a local Ethereum node that reorganises on command
    uv run python -m tests.servers anvil-folder # fetches that node and prints where it is

Kafka's jars come from Maven Central through `deploy/kafka/pom.xml` on first use and stay in `deploy/kafka/target/libs`;
`KAFKA_LIBS` names another folder that already holds them. Anvil comes from npm through `deploy/anvil/package-lock.json`
and stays in `deploy/anvil/node_modules`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from service.anvil import Anvil

KAFKA = Path(__file__).resolve().parent.parent / "deploy" / "kafka"
LIBS_VARIABLE = "KAFKA_LIBS"
ANVIL = KAFKA.parent / "anvil"

START_S_MAX = 60.0
STOP_S_MAX = 10.0

# Kafka's log cleaner takes 128 MiB at start by default, and with them in the old generation every young collection was
# a pause of 20 to 40 ms, one a second at 2,000 transactions a second. Without them and with 700 MiB of young generation
# it is one in 14 s. Pages that nothing was written to stay with the system.
_JVM_OPTIONS = ("-Xms1g", "-Xmx1g", "-Xmn700m", "-XX:+UseSerialGC", "-Djava.awt.headless=true")


class MissingServerError(Exception):
    """Something that a server needs is not on this machine; the message names it."""


class Listener(NamedTuple):
    """One more door of the broker, beside the one that speaks in the clear."""

    name: str
    protocol: str
    """As Kafka names it: SSL, SASL_SSL, SASL_PLAINTEXT."""

    settings: dict[str, object]
    """Without the `listener.name.<name>.` before them."""

    told_port: int | None = None
    """Where clients are told to find it, for what stands before it; None is its own port."""


@contextlib.contextmanager
def kafka(folder: Path | None = None) -> Iterator[str]:
    """Run one Apache Kafka broker and yield its bootstrap address.

    Args:
        folder: Where data and logs go and stay; None takes a temporary folder that is removed at the end.

    Raises:
        MissingServerError: No Java, or no jars and no Maven to fetch them.
        RuntimeError: The broker did not come up; the end of its log is in the message.
    """
    libs = kafka_libs()
    with contextlib.ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="falconet-kafka-")))
        home.mkdir(parents=True, exist_ok=True)
        broker = KafkaBroker(home, libs)
        broker.start()
        stack.callback(broker.stop)
        yield broker.address


class KafkaBroker:
    """One broker that is also its own controller, with its data, log and configuration in one folder."""

    def __init__(
        self, home: Path, libs: Path, *, listeners: Sequence[Listener] = (), scram: Sequence[str] = ()
    ) -> None:
        """Make a broker that is not started yet.

        Args:
            home: Its folder.
            libs: Kafka's jars.
            listeners: Doors besides the one in the clear.
            scram: Logins, as the storage tool's `--add-scram` takes them.
        """
        self.home = home
        self._classpath = f"{libs}/*"
        self._scram = scram
        self._port, self._controller_port, *ports = free_ports(2 + len(listeners))
        self._doors = {each.name: (each, port) for each, port in zip(listeners, ports, strict=True)}
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = home / "server.log"

    @property
    def address(self) -> str:
        """The bootstrap address; the same after a restart."""
        return f"127.0.0.1:{self._port}"

    def address_of(self, listener: str) -> str:
        """The bootstrap address of one more door."""
        return f"127.0.0.1:{self._doors[listener][1]}"

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the broker on its data, formatting it first when there is none, and return when it answers."""
        config = self.home / "server.properties"
        config.write_text(_properties(self.home, self._port, self._controller_port, list(self._doors.values())))
        if not (self.home / "data" / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            # As one argument: one id in 64 begins with a hyphen and would pass for an option.
            logins = [f"--add-scram={each}" for each in self._scram]
            self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", str(config), *logins)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # its own session: Ctrl-C reaches the tests first, which then stop it
                [_java(), *_JVM_OPTIONS, "-cp", self._classpath, "kafka.Kafka", str(config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_ready()

    def stop(self, *, kill: bool = False) -> None:
        """End the broker, at once when `kill`, and wait for it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _java(self, *arguments: str) -> None:
        command = [_java(), "-XX:TieredStopAtLevel=1", "-cp", self._classpath, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S_MAX
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop(kill=True)
                tail = self.log_path.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"Kafka did not start on port {self._port}; end of {self.log_path}:\n{tail}")
            time.sleep(0.02)


def anvil(*options: str, chain_id: int = 1, port: int | None = None) -> Anvil:
    """Return one local node of an EVM chain, not started; see `service.anvil`."""
    return Anvil(anvil_program(), *options, chain_id=chain_id, port=port)


def anvil_program() -> Path:
    """Return anvil's program, fetching it with npm on first use.

    Raises:
        MissingServerError: npm is missing, could not fetch it, or has none for this machine.
    """
    modules, lock = ANVIL / "node_modules", ANVIL / "package-lock.json"
    stamp = modules / "fetched.json"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        npm = shutil.which("npm")
        if npm is None:
            raise MissingServerError("anvil is not here and `npm` (Node.js) is not installed to fetch it")
        # The packages' scripts only look whether the program is there.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix", str(ANVIL)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise MissingServerError(f"npm could not fetch anvil: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        shutil.copyfile(lock, stamp)
    found = sorted(modules.glob("@foundry-rs/anvil-*/bin/anvil*"))
    if not found:
        raise MissingServerError(f"npm has no anvil for this machine in {modules}")
    return found[0]


def kafka_libs() -> Path:
    """Return the folder of Kafka's jars, fetching them with Maven on first use.

    Raises:
        MissingServerError: Java or Maven is missing, or Maven could not fetch the jars.
    """
    _java()
    given = os.environ.get(LIBS_VARIABLE)
    if given is not None:
        if not list(Path(given).glob("kafka_*.jar")):
            raise MissingServerError(f"{LIBS_VARIABLE}={given} holds no kafka_*.jar")
        return Path(given)
    libs, stamp = KAFKA / "target" / "libs", KAFKA / "target" / "pom.xml"
    pom = KAFKA / "pom.xml"
    if stamp.exists() and stamp.read_bytes() == pom.read_bytes():
        return libs
    _fetch(pom, libs)
    shutil.copyfile(pom, stamp)
    return libs


def _fetch(pom: Path, libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingServerError("Apache Kafka's jars are not here and `mvn` (Maven) is not installed to fetch them")
    shutil.rmtree(libs, ignore_errors=True)
    command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={libs}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise MissingServerError(f"Maven could not fetch Apache Kafka's jars: {done.stdout[-2000:]}")


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise MissingServerError("`java` (17 or later) is not installed; Apache Kafka needs it")
    return java


def free_ports(n: int) -> list[int]:
    """Return ports that nothing listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(port: int) -> bool:
    """Say whether the broker takes connections; Kafka opens the port only when it can serve."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[str]:
    """Run one Prometheus on a configuration and yield its address.

    Args:
        folder: Where data, configuration and log go and stay.
        config: The configuration as YAML; the rule files it names are found from `folder`.

    Raises:
        MissingServerError: No Prometheus.
        RuntimeError: It did not come up; the end of its log is in the message.
    """
    program = binary("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    path, log_path = folder / "prometheus.yml", folder / "prometheus.log"
    path.write_text(config)
    [port] = free_ports(1)
    command = [
        program,
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S_MAX
        while not _is_ready(f"http://127.0.0.1:{port}/-/ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"Prometheus did not start on port {port}; end of {log_path}:\n{tail}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def binary(name: str) -> str:
    """Return the path of an installed program.

    Raises:
        MissingServerError: It is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise MissingServerError(f"`{name}` is not installed; Debian's package `prometheus` has it")
    return found


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _properties(home: Path, port: int, controller_port: int, doors: Sequence[tuple[Listener, int]] = ()) -> str:
    """Render a single node's configuration: every internal topic has one copy, and consumer groups form at once."""
    own, told = ([f"PLAINTEXT://127.0.0.1:{port}"] for _ in range(2))
    own += [f"{each.name}://127.0.0.1:{at}" for each, at in doors]
    told += [f"{each.name}://127.0.0.1:{each.told_port or at}" for each, at in doors]
    listeners = ",".join([*own, f"CONTROLLER://127.0.0.1:{controller_port}"])
    protocols = ["PLAINTEXT:PLAINTEXT", *(f"{each.name}:{each.protocol}" for each, _ in doors), "CONTROLLER:PLAINTEXT"]
    values = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": listeners,
        "advertised.listeners": ",".join(told),
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": ",".join(protocols),
        "log.dirs": home / "data",
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
        # A killed broker that comes back is taken in when its old session has ended: 9 s by default.
        "broker.session.timeout.ms": 1000,
        "broker.heartbeat.interval.ms": 200,
        "controlled.shutdown.enable": "false",
        "log.segment.bytes": 64 * 1024 * 1024,
        "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
    }
    for each, _ in doors:
        values |= {f"listener.name.{each.name.lower()}.{name}": value for name, value in each.settings.items()}
    return "".join(f"{name}={value}\n" for name, value in values.items())


def main() -> int:
    """Start what the command line names and keep it until Ctrl-C or SIGTERM."""
    if sys.argv[1:] not in (["kafka"], ["anvil"], ["anvil-folder"]):
        print("usage: python -m tests.servers kafka|anvil|anvil-folder", file=sys.stderr)
        return 2
    if sys.argv[1] == "anvil-folder":
        print(anvil_program().parent)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        if sys.argv[1] == "kafka":
            print(f"Apache Kafka listens on {stack.enter_context(kafka())}; Ctrl-C stops it.", flush=True)
        else:
            print(f"anvil listens on {stack.enter_context(anvil()).url}; Ctrl-C stops it.", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
