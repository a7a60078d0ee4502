"""A fault of the model or of its tokenizer: what callers may know of it, and what the log has.

Comes in: what a library raised. Goes out: an error that names the log's line. Knows nothing of
queues and statuses.
"""

import uuid

import structlog

_log = structlog.get_logger()


class ModelError(Exception):
    """The model failed; the log has the traceback under ``error_id``."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"the model failed; the server's log says why under error id {error_id}")
        self.error_id = error_id


def model_error(part: str, error: BaseException, samples: int) -> ModelError:
    """Log that ``part`` (``model``, ``tokenizer``) failed on so many samples."""
    error_id = uuid.uuid4().hex[:12]
    _log.error(f"the {part} failed", error_id=error_id, samples=samples, exc_info=error)
    return ModelError(error_id)
