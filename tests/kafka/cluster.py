"""Apache Kafka on loopback as several brokers, for as long as a ``with`` block lasts.

Goes out: what ``demo.broker.Broker`` has for one: ``bootstrap``, ``create_topic``, ``admin``; and
the brokers, which may be restarted one by one. Each is a KRaft controller too. Every partition is
on each of them, and a write is acknowledged by all but one at least: with three brokers, any one
may be lost. Knows nothing of what is in the topics.
"""

import itertools
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from demo.broker import ApacheKafka, Broker, admin_client, free_port, new_cluster_id

# Of the two types of election that the protocol knows.
_PREFERRED = 0
_IN_SYNC_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.2


class _Node(ApacheKafka):
    """One broker of several; ``number`` counts from 1."""

    def __init__(self, number: int, controller_ports: Sequence[int], cluster_id: str) -> None:
        super().__init__(cluster_id=cluster_id)
        self.replicas = len(controller_ports)
        host = "127.0.0.1"
        voters = (f"{n}@{host}:{port}" for n, port in enumerate(controller_ports, start=1))
        controller = f"CONTROLLER://{host}:{controller_ports[number - 1]}"
        replicas, in_sync = str(self.replicas), str(max(1, self.replicas - 1))
        self._settings = {
            "node.id": str(number),
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"PLAINTEXT://{host}:{self.port},{controller}",
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
        }


class Cluster:
    """So many brokers.

    Raises:
        JarsMissingError: there is no Java 17 or no Maven to fetch Kafka with.
    """

    def __init__(self, brokers: int) -> None:
        ports, cluster_id = [free_port() for _ in range(brokers)], new_cluster_id()
        self.brokers = [_Node(n, ports, cluster_id) for n in range(1, brokers + 1)]
        self.bootstrap = ",".join(broker.bootstrap for broker in self.brokers)
        # A broker dies with the thread that started it, so these last as long as the cluster.
        self._threads = ThreadPoolExecutor(brokers)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        try:
            # Together, since none answers before most are there.
            list(self._threads.map(self._running.enter_context, self.brokers))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self._threads.shutdown()

    def restart(self, broker: Broker, signal_number: signal.Signals) -> None:
        """Stop a broker and return once it answers again and has caught up with the others."""
        broker.stop(signal_number)
        self._threads.submit(broker.start).result()
        self._wait_in_sync()

    def create_topic(self, name: str, partitions: int = 1, **configs: str) -> None:
        """As ``Broker.create_topic``, with a replica on every broker."""
        self.brokers[0].create_topic(name, partitions, **configs)

    def admin(self) -> KafkaAdminClient:
        """A new admin client of whichever broker answers; the caller closes it."""
        return admin_client(self.bootstrap)

    def move_leaders(self) -> None:
        """Make the next replica of every partition its leader, those of internal topics too.

        With these go the coordinators of groups and transactions.
        """
        with self.admin() as admin:
            topics = {topic["name"]: topic["partitions"] for topic in admin.describe_topics()}
            turned = {
                TopicPartition(topic, partition["partition_index"]): [
                    *partition["replica_nodes"][1:],
                    partition["replica_nodes"][0],
                ]
                for topic, partitions in topics.items()
                for partition in partitions
            }
            refused = {p: e for p, e in admin.alter_partition_reassignments(turned).items() if e}
            assert not refused, refused
            by_topic = itertools.groupby(sorted(turned), key=lambda partition: partition.topic)
            elected = {topic: [p.partition for p in group] for topic, group in by_topic}
            admin.elect_leaders(_PREFERRED, elected)

    def _wait_in_sync(self) -> None:
        deadline = time.monotonic() + _IN_SYNC_SECONDS
        with self.admin() as admin:
            while behind := [
                (topic["name"], partition["partition_index"])
                for topic in admin.describe_topics()
                for partition in topic["partitions"]
                if len(partition["isr_nodes"]) < len(partition["replica_nodes"])
            ]:
                assert time.monotonic() < deadline, f"not in sync: {behind}"
                time.sleep(_LOOK_AGAIN_SECONDS)
