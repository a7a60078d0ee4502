from typing import Any

class DefaultRecordBatch:
    _buffer: bytearray
    _pos: int
    def _read_msg(self) -> Any: ...

class DefaultRecordBatchBuilder:
    def append(
        self,
        offset: int,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes | None]],
    ) -> Any: ...
