"""The Kafka clients as the sub-commands want them: no trace left behind, every wait with an end.

In: brokers' addresses, a topic. Out: a consumer, acknowledged records, errors of one line. Knows
nothing of what stands in a record. kafka-python is imported when it is needed: the rest of the
client does without it.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from alinfik.command import CommandError, FailedError

if TYPE_CHECKING:
    from kafka import Acknowledgement, KafkaConsumer

# How late an interrupt is noticed at worst.
POLL_MS = 500
# A broker that is there answers in milliseconds.
_CONNECT_MS = 5_000
# Longer than a partition takes to move to another broker, shorter than anyone waits before looking.
_ACKNOWLEDGE_SECONDS = 60.0
# kafka-python buffers without bound.
_UNACKNOWLEDGED_BYTES = 32 * 1024 * 1024
# What a record takes in memory beside its value.
_RECORD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Brokers:
    """Where Kafka is, and how to get in.

    Args:
        bootstrap: ``HOST:PORT`` of brokers, comma-separated.
        security: what kafka-python is told of TLS and SASL; plain text where empty.
    """

    bootstrap: str
    security: Mapping[str, object] = field(default_factory=dict[str, object])

    def options(self) -> dict[str, object]:
        """What each of kafka-python's clients is told."""
        from alinfik.kafka.headers import mend_headers

        mend_headers()
        return {
            "bootstrap_servers": self.bootstrap.split(","),
            "bootstrap_timeout_ms": _CONNECT_MS,
            **self.security,
        }

    def check_topic(self, topic: str, setting: str = "--topic") -> None:
        """Make sure that ``topic``, which ``setting`` names, is there.

        Raises:
            CommandError: it is not, or kafka-python is missing.
            FailedError: no broker answers.
        """
        try:
            from kafka.admin import KafkaAdminClient
        except ImportError as error:
            raise CommandError(
                "Kafka needs the package kafka-python: pip install 'alinfik[kafka]'"
            ) from error

        # It logs every try of an absent broker; we say so once.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        with self.answering(), KafkaAdminClient(**self.options()) as admin:
            topics = admin.list_topics()
        if topic not in topics:
            there = ", ".join(sorted(t for t in topics if not t.startswith("__"))) or "no topics"
            raise CommandError(
                f"{self.bootstrap} has no topic {topic} ({setting}), but {there}. Create it with "
                f"kafka-topics --bootstrap-server {self.bootstrap} --create --topic {topic}"
            )

    def consumer(self, *topics: str, from_beginning: bool) -> "KafkaConsumer":
        """A reader of committed records, which ``check_topic`` has found to be there."""
        from kafka import KafkaConsumer

        return KafkaConsumer(
            *topics,
            **self.options(),
            # No group: each reader sees every partition, and leaves no trace on the broker.
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest" if from_beginning else "latest",
        )

    @contextmanager
    def answering(self) -> Generator[None]:
        """Says in one line what kafka-python raises within the block.

        Raises:
            FailedError: no broker answers, or it refuses what was asked.
        """
        from kafka.errors import KafkaError, KafkaTimeoutError

        try:
            yield
        except KafkaTimeoutError as error:
            protocol = self.security.get("security_protocol", "PLAINTEXT")
            # A refused password, too, is no more to kafka-python than time that has passed.
            user = self.security.get("sasl_plain_username")
            knows = f", and has it {user} with that password (--kafka-username)" if user else ""
            raise FailedError(
                f"no Kafka broker answers at {self.bootstrap} (--kafka-bootstrap). Is it running "
                f"there, is its listener {protocol} (--kafka-security-protocol){knows}?"
            ) from error
        except KafkaError as error:
            raise FailedError(f"{self.bootstrap} (--kafka-bootstrap): {error}") from error


class _Pending(NamedTuple):
    name: str
    topic: str
    size: int
    acknowledgement: "Acknowledgement"


class Sender:
    """Sends records, each written once however often the connection fails on the way.

    Args:
        brokers: where to.
        kind: what the records are: ``samples``.
        on_sent: told how many more records the broker has acknowledged.

    Attributes:
        sent: how many the broker has acknowledged.
    """

    def __init__(
        self, brokers: Brokers, kind: str, on_sent: Callable[[int], None] | None = None
    ) -> None:
        from kafka import KafkaProducer

        self.sent = 0
        self._bootstrap = brokers.bootstrap
        self._kind = kind
        self._on_sent = on_sent
        self._pending = deque[_Pending]()
        self._pending_bytes = 0
        # Idempotence, which is the default, makes a repeated send harmless.
        with brokers.answering():
            self._producer = KafkaProducer(
                **brokers.options(),
                allow_auto_create_topics=False,
                # Fills its batches when records come fast, not felt when they come one by one.
                linger_ms=5,
                # The topic's own limit is the one that counts.
                max_request_size=64 * 1024 * 1024,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        from kafka.errors import KafkaError

        # All is acknowledged by now; what an error has left behind is not worth waiting for.
        with suppress(KafkaError):
            self._producer.close(timeout=0 if self._pending else 1)

    def partitions(self, topic: str) -> set[int]:
        """Those that a topic has."""
        return self._producer.partitions_for(topic)

    def send(
        self,
        name: str,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand a record over; waits where much is not acknowledged yet.

        Args:
            name: what an error calls it: ``the sample with id '1'``.
            topic: where to; it must exist.
            value: of the record, as the others are.
            key: decides the partition where none is given.
            headers: of the record.
            partition: which must exist.
            timestamp_ms: since 1970; now where None.

        Raises:
            FailedError: the broker did not take a record, this or an earlier one.
        """
        from kafka.errors import KafkaError

        from alinfik.kafka.headers import NULL

        written = [(name, NULL if own is None else own) for name, own in headers]
        try:
            acknowledgement = self._producer.send(
                topic, value, key, written, partition=partition, timestamp_ms=timestamp_ms
            )
        except KafkaError as error:
            raise self._refused(name, topic, error) from error
        size = len(value or b"") + _RECORD_BYTES
        self._pending.append(_Pending(name, topic, size, acknowledgement))
        self._pending_bytes += size
        self._settle(_UNACKNOWLEDGED_BYTES)

    def settle(self) -> None:
        """Wait until the broker has every record.

        Raises:
            FailedError: it did not take one.
        """
        self._settle(0)

    def _settle(self, leave_bytes: int) -> None:
        from kafka.errors import KafkaError

        while self._pending_bytes > leave_bytes:
            name, topic, size, acknowledgement = self._pending[0]
            try:
                acknowledgement.get(_ACKNOWLEDGE_SECONDS)
            except KafkaError as error:
                raise self._refused(name, topic, error) from error
            self._pending.popleft()
            self._pending_bytes -= size
            self.sent += 1
            if self._on_sent is not None:
                self._on_sent(1)

    def _refused(self, name: str, topic: str, error: Exception) -> FailedError:
        return FailedError(
            f"{self._bootstrap} took {self.sent} {self._kind}, and then not {name} for topic "
            f"{topic}: {error}"
        )
