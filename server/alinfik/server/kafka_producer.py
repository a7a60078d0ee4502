"""A producer of whole batches whose calls all end.

Comes in: records, and the partitions they go to. Goes out: the batches that they went in, each with
the broker's answer. Knows nothing of what is in records, and of when to commit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

from alinfik.server.records import OutgoingRecord

if TYPE_CHECKING:
    from kafka.producer.producer_batch import ProduceResult

# How long a killed server's open transaction holds up its partitions and their readers. A
# transaction here opens when its batch is valued already, and lasts for a few round trips.
TRANSACTION_MS = 10_000
# Of kafka-python's record batches: those with headers and transactions.
_MESSAGE_VERSION = 2
_UNCOMPRESSED = 0


class Outgoing(NamedTuple):
    """A record and where it goes."""

    topic: str
    partition: int
    record: OutgoingRecord


class Sent(NamedTuple):
    """Records that went to their partition in one batch."""

    places: Sequence[int]
    """Among all that were to be sent."""
    result: "ProduceResult"

    def errors(self) -> dict[int, KafkaError]:
        """Why records are not there, by their places; none where the broker has them all."""
        if not self.result.is_done:
            return dict.fromkeys(self.places, KafkaTimeoutError("no answer to a batch of records"))
        _, _, error_of = self.result.value
        if error_of is None:
            return {}
        return {place: error_of(number) for number, place in enumerate(self.places)}


class BoundedProducer(KafkaProducer):
    """A producer whose transactional calls end: kafka-python's own wait for ever for a lost broker.

    They last as long as a transaction does: past that the broker ends it by itself.
    There is no abort. A producer whose transaction failed is abandoned, and the next one's start
    makes the broker end it, one way or the other. For kafka-python is not to be trusted with a
    producer that has lost a batch: the batches after it are refused as out of sequence, and the
    transaction is then "committed" without them.

    Raises:
        KafkaError: from every method; the outcome of the transaction is unknown.
    """

    def send_all(self, outgoing: Sequence[Outgoing]) -> list[Sent]:
        """Send records, per partition in their order; ``flush`` waits for the answers.

        Their sizes must fit the topics. For each record, ``send`` takes locks, makes a future and
        looks up what is the same for all of a partition: more work than writing it is.
        """
        transactional = self.config["transactional_id"] is not None
        places: dict[tuple[str, int], list[int]] = {}
        for place, (topic, partition, _) in enumerate(outgoing):
            places.setdefault((topic, partition), []).append(place)
        sent: list[Sent] = []
        for (topic, partition), here in places.items():
            # Has the topic among those whose leaders are known.
            self.partitions_for(topic)
            to = TopicPartition(topic, partition)
            if transactional:
                self._transaction_manager.maybe_add_partition_to_transaction(to)
            for records, of_batch in self._packed(outgoing, here):
                batch = ProducerBatch(to, records)
                self._push(batch)
                sent.append(Sent(of_batch, batch.produce_future))
        return sent

    def _packed(
        self, outgoing: Sequence[Outgoing], places: Sequence[int]
    ) -> Iterator[tuple[MemoryRecordsBuilder, Sequence[int]]]:
        """The records at these places in as few batches as hold them, and whose each is."""
        begin = 0
        while begin < len(places):
            batch = MemoryRecordsBuilder(_MESSAGE_VERSION, _UNCOMPRESSED, self.config["batch_size"])
            end = begin
            while end < len(places):
                key, value, headers, timestamp = outgoing[places[end]].record
                time_or_now = timestamp if timestamp >= 0 else None
                if batch.append(time_or_now, key, value, headers) is None:
                    break
                end += 1
            yield batch, places[begin:end]
            begin = end

    def _push(self, batch: ProducerBatch) -> None:
        """Hand a batch to the thread that sends them."""
        # As the accumulator does with those that it makes; it has no method that takes one.
        waiting, to = cast("Any", self._accumulator), batch.topic_partition
        with waiting._tp_lock(to):  # noqa: SLF001
            waiting._batches[to].append(batch)  # noqa: SLF001
            waiting._incomplete.add(batch)  # noqa: SLF001
        self._sender.wakeup()

    def send_offsets_to_transaction(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        group_metadata: ConsumerGroupMetadata,
    ) -> None:
        """Add the offsets to the transaction, if the group still knows the member as its own."""
        pending = self._transaction_manager.send_offsets_to_transaction(offsets, group_metadata)
        self._sender.wakeup()
        if not pending.wait(TRANSACTION_MS):
            raise KafkaTimeoutError("no answer to the offsets of a transaction")

    def commit_transaction(self) -> None:
        """End the transaction. Every record must have been acknowledged before."""
        pending = self._transaction_manager.begin_commit()
        self._sender.wakeup()
        if not pending.wait(TRANSACTION_MS):
            raise KafkaTimeoutError("no answer to a commit")

    def abandon(self) -> None:
        """Close without waiting for anything."""
        self._sender.force_close()
        self._sender.join()
        self.close(timeout=0)
