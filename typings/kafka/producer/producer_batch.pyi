from collections.abc import Callable

from kafka.errors import KafkaError
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.structs import TopicPartition

# No such name is there at run time: for annotations alone.
class ProduceResult:
    is_done: bool
    value: tuple[int, int, Callable[[int], KafkaError] | None]

class ProducerBatch:
    topic_partition: TopicPartition
    produce_future: ProduceResult
    def __init__(self, tp: TopicPartition, records: MemoryRecordsBuilder) -> None: ...
