"""How the server writes its log: readable on a terminal, one JSON object a line elsewhere.

Comes in: structlog events. Goes out: lines on standard error, standard output being for results.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor


def configure_logs(form: Literal["auto", "console", "json"]) -> None:
    """Send structlog's events to standard error.

    Tracebacks come without local variables, which would put providers' texts into the log.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    else:
        processors += [
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
