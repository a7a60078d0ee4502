"""What the broker's answer to a batch says of its records, without a broker."""

from kafka.errors import InvalidRecordError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.structs import TopicPartition

from alinfik.server.kafka_producer import Sent


def batch() -> ProducerBatch:
    made = ProducerBatch(TopicPartition("valuations", 0), MemoryRecordsBuilder(2, 0, 1_000))
    made.records.append(None, b"key", b"value", [])
    made.records.append(None, b"key", b"value", [])
    return made


def test_records_that_the_broker_has_have_no_error():
    taken = batch()
    taken.complete(17, -1)
    assert Sent([3, 5], taken.produce_future).errors() == {}


def test_records_are_blamed_by_their_places():
    refused = batch()
    own = [InvalidRecordError("no key"), MessageSizeTooLargeError("its batch is refused")]
    refused.complete_exceptionally(own[0], own.__getitem__)
    assert Sent([3, 5], refused.produce_future).errors() == {3: own[0], 5: own[1]}


def test_a_batch_without_an_answer_is_not_taken_for_written():
    errors = Sent([3, 5], batch().produce_future).errors()
    assert list(errors) == [3, 5]
    assert all(isinstance(error, KafkaTimeoutError) for error in errors.values())
