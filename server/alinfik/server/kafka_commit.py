"""How a batch's outcomes become lasting, and the offsets after them: all at once, or in this order.

Comes in: records to produce, and the offsets to commit after them. Goes out: nothing, once the
broker has both; or which records it never takes. Knows nothing of samples, and of when a batch is
tried again.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from kafka import KafkaConsumer
from kafka.errors import InvalidRecordError, InvalidTimestampError, KafkaError
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

from alinfik.server.kafka_io import open_producer
from alinfik.server.kafka_producer import TRANSACTION_MS, BoundedProducer, Outgoing
from alinfik.server.settings import ServerSettings

Offsets = Mapping[TopicPartition, OffsetAndMetadata]


class RefusedError(KafkaError):
    """A topic does not take some of the records, however often they are sent.

    Args:
        refused: by their places in what was to be committed, why.
    """

    def __init__(self, refused: Mapping[int, str]) -> None:
        super().__init__(f"{len(refused)} records are refused: {next(iter(refused.values()))}")
        self.refused = refused

    def __str__(self) -> str:
        return str(self.args[0])


class Committer(ABC):
    """Sends a batch's records, waits until the broker has each, and commits its offsets.

    Args:
        connect: opens a producer; called again for each that fails.

    Raises:
        KafkaError: from every method. After a failed ``commit`` nobody knows what came of it, and
            ``recover`` must come before the next one.
    """

    def __init__(self, connect: Callable[[], BoundedProducer]) -> None:
        self._connect = connect
        self._producer = connect()
        self._committing = False

    def partition_count(self, topic: str) -> int:
        """Partitions that a topic has now."""
        return len(self._producer.partitions_for(topic))

    def commit(
        self, outgoing: Sequence[Outgoing], offsets: Offsets, member: ConsumerGroupMetadata
    ) -> None:
        """Make ``outgoing`` and ``offsets`` lasting.

        Args:
            outgoing: records, per partition in their order.
            offsets: those to go on from.
            member: who we were to the group when it gave us what the offsets come after.

        Raises:
            RefusedError: names some of the records that are not taken; there may be more.
        """
        self._committing = True
        self._begin()
        sent = self._producer.send_all(outgoing)
        self._producer.flush(TRANSACTION_MS / 1000)
        errors = {place: error for batch in sent for place, error in batch.errors().items()}
        if refused := _refused(errors):
            raise RefusedError(refused)
        if errors:
            raise next(iter(errors.values()))
        self._end(offsets, member)
        self._committing = False

    def recover(self) -> bool:
        """Take a new producer after a commit that failed; says whether one had."""
        if not self._committing:
            return False
        self._producer.abandon()
        self._producer = self._connect()
        self._committing = False
        return True

    def close(self) -> None:
        """Leave what is not committed undone."""
        self._producer.abandon()

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _end(self, offsets: Offsets, member: ConsumerGroupMetadata) -> None: ...


def _refused(errors: Mapping[int, KafkaError]) -> dict[int, str]:
    """Which records are at fault, and not only in one batch with such a one.

    A broker before Kafka 2.4 does not say, and then all of a batch have one exception.
    """
    shared = Counter(map(id, errors.values()))
    return {
        place: str(error)
        for place, error in errors.items()
        if isinstance(error, InvalidRecordError | InvalidTimestampError) and shared[id(error)] == 1
    }


class ExactlyOnce(Committer):
    """Records and offsets are one transaction.

    The broker takes offsets from the member that *fetched* the batch and from no other. So after a
    rebalance it refuses the transaction, whoever owns the partitions then.
    """

    def _begin(self) -> None:
        self._producer.begin_transaction()

    def _end(self, offsets: Offsets, member: ConsumerGroupMetadata) -> None:
        self._producer.send_offsets_to_transaction(offsets, member)
        self._producer.commit_transaction()


class AtLeastOnce(Committer):
    """Records first, offsets once all of them are acknowledged.

    What fails between the two is read again, and its outcomes are there twice.

    Args:
        connect: as for ``Committer``.
        consumer: commits the offsets, on the caller's thread.
    """

    def __init__(self, connect: Callable[[], BoundedProducer], consumer: KafkaConsumer) -> None:
        super().__init__(connect)
        self._consumer = consumer

    def _begin(self) -> None:
        """A producer that only tells its own repetitions apart has nothing to begin."""

    def _end(self, offsets: Offsets, member: ConsumerGroupMetadata) -> None:
        # Unlike a transaction's, these would be taken for a partition that a rebalance has given
        # away, whose owner may have committed later ones.
        if self._consumer.group_metadata().generation_id != member.generation_id:
            offsets = {p: o for p, o in offsets.items() if p in self._consumer.assignment()}
        self._consumer.commit(dict(offsets), timeout_ms=TRANSACTION_MS)


def open_committer(
    settings: ServerSettings, instance: str, consumer: KafkaConsumer, most_bytes: int
) -> Committer:
    """The committer that the settings ask for, connected.

    Args:
        settings: brokers, group and delivery.
        instance: names the transactions.
        consumer: a member of the group.
        most_bytes: what each topic takes in one batch.

    Raises:
        KafkaError: no broker answers, or it refuses transactions.
    """

    def connect() -> BoundedProducer:
        return open_producer(settings, instance, most_bytes)

    if settings.kafka_delivery == "exactly_once":
        return ExactlyOnce(connect)
    return AtLeastOnce(connect, consumer)
