from kafka.record.default_records import DefaultRecordBatch as DefaultRecordBatch
from kafka.record.default_records import DefaultRecordBatchBuilder as DefaultRecordBatchBuilder

class MemoryRecordsBuilder:
    def __init__(self, magic: int, compression_type: int, batch_size: int) -> None: ...
    def append(
        self,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
    ) -> object | None: ...
