"""The Kafka clients as the pipeline wants them: nothing automatic, nothing unbounded.

Comes in: settings. Goes out: a consumer and a producer, both connected. Knows nothing of what is in
records, and of when to commit.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import structlog
from kafka import KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError
from kafka.net.compat import KafkaNetClient

from alinfik.kafka.headers import mend_headers
from alinfik.server.kafka_producer import TRANSACTION_MS, BoundedProducer
from alinfik.server.kafka_security import connection, overhear
from alinfik.server.settings import ServerSettings

_log = structlog.get_logger()

# A broker that is there answers in milliseconds; one that is not should be reported soon.
CONNECT_MS = 3_000
# How long a killed server keeps its partitions from the others. Heartbeats run on a thread of their
# own; they bring word of a rebalance too, of which a cooperative one has two rounds.
SESSION_MS = 10_000
HEARTBEAT_MS = 1_000
# How late new partitions are seen, of the input and of the topics that are written to; one small
# request each time.
METADATA_MS = 10_000
# What a topic takes by default, and what is assumed where a broker does not say.
DEFAULT_RECORD_BYTES = 1_048_588
# Of a dead-letter topic that we create: room for the headers beside the largest sample.
_DEAD_LETTER_BYTES = 2 * DEFAULT_RECORD_BYTES
# Some hundreds of records in one request, which costs as much as some tens of them.
_BATCH_BYTES = 256 * 1024
# Past every limit that topics are given: theirs is the one to count.
MAX_REQUEST_BYTES = 64 * 1024 * 1024


class NotThereError(KafkaError):
    """No broker, or not every topic, is where the settings say; the message says what to do."""

    def __str__(self) -> str:
        return str(self.args[0])


class GroupConsumer(KafkaConsumer):
    """A consumer that says when its next poll will rejoin the group."""

    _confirmed = False

    def must_join(self) -> bool:
        """Whether a heartbeat has brought word of a rebalance, or we are no member yet.

        The group waits for us then, so what is in flight can still be committed. And the poll must
        be a patient one: a join that ends between two polls is thrown away and begun again.
        """
        coordinator = self._coordinator
        if coordinator.rejoining and not coordinator.need_rejoin():
            # kafka-python joins where the topic has other partitions than when they were assigned.
            # If another broker's metadata then shows the old ones again, it forgets that it has
            # begun to join, with its heartbeats stopped, and polls for ever.
            coordinator.request_rejoin()
        elif not self._confirmed and (member := self.group_metadata()).generation_id >= 0:
            # A member with an instance name that comes back is given what it had, and nobody else
            # is asked. If it had died halfway through a rebalance, what it had given up to others
            # would be nobody's; and if it led the group, nobody would look for new partitions.
            self._confirmed = True
            if member.group_instance_id:
                coordinator.request_rejoin()
        return coordinator.need_rejoin()

    def leave(self) -> None:
        """Close, and have the group share our partitions among the others at once."""
        # A member with an instance name goes without a word, and the others wait until its session
        # is over. That is for one that crashes and comes back, not for one that is told to stop.
        self._coordinator.is_dynamic_member = lambda: True
        self.close(timeout_ms=CONNECT_MS)


@contextmanager
def connecting(settings: ServerSettings) -> Generator[dict[str, Any]]:
    """What a client that is made in this block is told; none that fails leaves a thread behind.

    Raises:
        NotThereError: no broker answers, or lets us in.
    """
    mend_headers()
    made: list[KafkaNetClient] = []

    def make(**configs: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**configs))
        return made[-1]

    with overhear() as heard:
        try:
            yield connection(settings) | {
                "bootstrap_timeout_ms": CONNECT_MS,
                "client_id": f"alinfik-{settings.kafka_group}",
                "kafka_client": make,
            }
        except KafkaTimeoutError as error:
            # Theirs does not know itself: it has started its thread, and its caller never sees it.
            for client in made:
                client.close()
            raise NotThereError(heard.why(settings)) from error


def open_consumer(settings: ServerSettings) -> GroupConsumer:
    """A member of the group, subscribed to the input topic.

    Raises:
        NotThereError: no broker answers or lets us in, or one of the three topics is missing.
    """
    with connecting(settings) as told:
        consumer = _member(settings, told)
    # Before the topics are asked for: a member that joins before it has heard of its partitions
    # since it subscribed joins a second time, and its first batch is done again.
    consumer.subscribe([settings.kafka_input])
    topics = settings.kafka_input, settings.kafka_output, settings.kafka_dead_letters
    missing = [topic for topic in topics if not consumer.partitions_for_topic(topic)]
    if missing:
        consumer.close(timeout_ms=CONNECT_MS)
        if settings.kafka_create_topics:
            _create(settings, missing)
            return open_consumer(settings)
        raise NotThereError(
            f"{settings.kafka_bootstrap} has no topic {', '.join(missing)}; create it with "
            f"kafka-topics --bootstrap-server {settings.kafka_bootstrap} --create --topic NAME, "
            "or give --kafka-create-topics"
        )
    return consumer


def _create(settings: ServerSettings, topics: Sequence[str]) -> None:
    """Create topics; another server may be doing the same."""
    with connecting(settings) as told:
        admin = KafkaAdminClient(**told)
    with admin:
        for topic in topics:
            configs: dict[str, str] = {}
            if topic == settings.kafka_dead_letters:
                configs["max.message.bytes"] = str(_DEAD_LETTER_BYTES)
            wanted = {
                "num_partitions": settings.kafka_partitions,
                "replication_factor": settings.kafka_replication_factor,
                "configs": configs,
            }
            with suppress(TopicAlreadyExistsError):
                admin.create_topics({topic: wanted}, wait_for_metadata=True)
            _log.info("kafka topic created", topic=topic, partitions=settings.kafka_partitions)


def _member(settings: ServerSettings, told: dict[str, Any]) -> GroupConsumer:
    return GroupConsumer(
        **told,
        group_id=settings.kafka_group,
        # Offsets are committed with their values, or after them.
        enable_auto_commit=False,
        # A producer's aborted samples are not to be valued; and a partition's committed offset is
        # waited for while the transaction of its former owner is open.
        isolation_level="read_committed",
        # Where there is no offset we say where to begin, and tell: see kafka_start.
        auto_offset_reset="none",
        # A static member, if it has a name: it is the same one after a crash.
        group_instance_id=settings.kafka_instance or None,
        partition_assignment_strategy=[CooperativeStickyAssignor()],
        metadata_max_age_ms=METADATA_MS,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
        allow_auto_create_topics=False,
        # The broker that was lost is asked again every second or so, not after half a minute.
        reconnect_backoff_max_ms=1_000,
    )


def open_producer(
    settings: ServerSettings, instance: str, most_bytes: int = DEFAULT_RECORD_BYTES
) -> BoundedProducer:
    """A producer; with transactions, it has fenced any earlier one of this group and instance.

    Args:
        settings: brokers, group and delivery.
        instance: names the transactions.
        most_bytes: what each topic takes in one batch. kafka-python loses track of the records of a
            batch that is refused for its size.

    Raises:
        KafkaError: no broker answers, or it refuses transactions.
    """
    transactional = settings.kafka_delivery == "exactly_once"
    with connecting(settings) as told:
        producer = BoundedProducer(
            **told,
            transactional_id=f"alinfik-{settings.kafka_group}-{instance}"
            if transactional
            else None,
            transaction_timeout_ms=TRANSACTION_MS,
            delivery_timeout_ms=TRANSACTION_MS,
            request_timeout_ms=TRANSACTION_MS // 2,
            max_block_ms=TRANSACTION_MS,
            max_request_size=MAX_REQUEST_BYTES,
            batch_size=min(_BATCH_BYTES, most_bytes),
            # The start of a transaction is refused while the end of the one before is being
            # written, a few milliseconds; the client sleeps this long between tries.
            retry_backoff_ms=10,
            metadata_max_age_ms=METADATA_MS,
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=1_000,
        )
    if transactional:
        try:
            producer.init_transactions()
        except KafkaError:
            producer.abandon()
            raise
    return producer


def largest_records(settings: ServerSettings) -> dict[str, int]:
    """Bytes that each topic which is written to takes in one batch; where unknown, the default.

    They must be known ahead: kafka-python never returns from a send that is refused for its size
    and has shared its batch.
    """
    topics = settings.kafka_output, settings.kafka_dead_letters
    wanted = [
        ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": None})
        for topic in topics
    ]
    with connecting(settings) as told:
        admin = KafkaAdminClient(**told)
    with admin:
        try:
            said = admin.describe_configs(wanted, config_filter="all").get("topic", {})
        except KafkaError:
            # Not every broker that speaks the protocol knows this request.
            said = {}
    limits = dict.fromkeys(topics, DEFAULT_RECORD_BYTES)
    for topic, configs in said.items():
        # Where we may not ask, kafka-python raises nothing and has no configuration.
        if limit := configs.get("max.message.bytes"):
            limits[topic] = int(limit["value"])
    return limits
