"""Headers as Kafka has them, where kafka-python 3.0.12 has them otherwise.

Kafka takes any bytes for a header's name, and null for its value. kafka-python reads the one as a
corrupt record, at which its partition stays for ever, and writes neither. Comes in, goes out:
records. Knows nothing of what is in them.
"""

from typing import Any, cast

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder


class Null(bytes):
    """A header's value where null is meant: empty to all that checks and counts it on its way."""


NULL = Null()


class RawName(str):
    """A header's name that is not UTF-8: shown with replacement characters, written as it came."""

    __slots__ = ("_raw",)
    _raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> "RawName":
        """The name of these bytes."""
        name = cls(raw.decode(errors="replace"))
        name._raw = raw
        return name

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:  # noqa: ARG002
        """The bytes it was read from, whatever is asked for."""
        return self._raw


class _AnyBytes(bytearray):
    """Bytes of a batch, of which any part can be decoded."""

    def __getitem__(self, index: Any) -> Any:
        part = cast("Any", super()).__getitem__(index)
        return _AnyBytes(part) if isinstance(index, slice) else part

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        try:
            return super().decode(encoding, errors)
        except UnicodeDecodeError:
            return RawName.of(bytes(self))


class _Batch(DefaultRecordBatch):
    """A batch as it is read."""

    def _read_msg(self) -> Any:
        start = self._pos
        try:
            return super()._read_msg()
        except UnicodeDecodeError:
            # For this batch alone: of these bytes every one is read by Python code.
            self._buffer = _AnyBytes(self._buffer)
            self._pos = start
            return super()._read_msg()


class _Builder(DefaultRecordBatchBuilder):
    """A batch as it is written."""

    def append(
        self,
        offset: int,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes | None]],
    ) -> Any:
        # For every record: most have none.
        for _, own in headers:
            if own is NULL:
                headers = [(name, None if own is NULL else own) for name, own in headers]
                break
        return super().append(offset, timestamp, key, value, headers)


def mend_headers() -> None:
    """Have every client of this process read and write headers as Kafka has them."""
    # The one place from which batches are read and written; it has no setting for it.
    records = cast("Any", memory_records)
    records.DefaultRecordBatch = _Batch
    records.DefaultRecordBatchBuilder = _Builder
