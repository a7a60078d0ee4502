"""The Kafka process's metrics and log lines, which are the server's to show: one page, one log.

Comes in: what the process counts and logs. Goes out: messages, and on the server's side the same in
its own metrics and log. Knows nothing of what they are about.
"""

from collections.abc import Callable
from typing import Any, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from alinfik.server.kafka_messages import Logged, Measured
from alinfik.server.metrics import KafkaMetrics

_log = structlog.get_logger()


def reported_metrics(tell: Callable[[Measured], None]) -> KafkaMetrics:
    """Metrics of which each call is told to the server."""
    return cast("KafkaMetrics", _Metrics(tell))


def report_logs(tell: Callable[[Logged], None]) -> None:
    """Have structlog tell this process's events to the server."""

    def report(_logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
        tell(Logged(level, event.pop("event"), event))
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            # Tracebacks as text, without local variables: those hold providers' texts.
            structlog.processors.format_exc_info,
            report,
        ],
        cache_logger_on_first_use=True,
    )


def show(message: Measured | Logged, metrics: KafkaMetrics) -> None:
    """Do in the server what the process has told."""
    if isinstance(message, Logged):
        getattr(_log, message.level)(message.event, **message.fields)
        return
    metric = getattr(metrics, message.metric)
    if message.labels is not None:
        metric = metric.labels(*message.labels)
    getattr(metric, message.method)(*message.arguments)


class _Metrics:
    def __init__(self, tell: Callable[[Measured], None]) -> None:
        self._tell = tell

    def __getattr__(self, name: str) -> "_Metric":
        return _Metric(self._tell, name, None)


class _Metric:
    def __init__(
        self, tell: Callable[[Measured], None], name: str, labels: tuple[str, ...] | None
    ) -> None:
        self._tell = tell
        self._name = name
        self._labels = labels

    def labels(self, *values: str) -> "_Metric":
        return _Metric(self._tell, self._name, values)

    def __getattr__(self, method: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self._tell(Measured(self._name, self._labels, method, arguments))

        return call
