"""Which samples cannot be valued, and why.

Comes in: a sample. Goes out: everything that is wrong with it. Knows nothing of gRPC statuses and
dead letters, which are made from what it says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from alinfik.v1 import Sample

# As the contract (sample.proto) says.
MAX_NAME_BYTES = 256
_TOO_LONG = f"is {{}} bytes long: at most {MAX_NAME_BYTES} are taken"

# Bounded: it becomes a metric's label and a dead letter's header.
Reason = Literal["empty_completion", "id_too_long", "provider_too_long", "not_finite"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One fault of one sample."""

    reason: Reason
    field: str
    """The field of the sample that is at fault: ``completion``."""
    message: str
    """What is wrong and how to mend it, without the sample's place in its request."""


def rejections(sample: Sample) -> Iterator[Rejection]:
    """Every fault of ``sample`` that shows before it is tokenised."""
    if not sample.completion or sample.completion.isspace():
        message = "is empty: its tokens are what is valued, so it must hold more than white space"
        yield Rejection("empty_completion", "completion", message)
    if (size := len(sample.id.encode())) > MAX_NAME_BYTES:
        yield Rejection("id_too_long", "id", _TOO_LONG.format(size))
    if (size := len(sample.provider.encode())) > MAX_NAME_BYTES:
        yield Rejection("provider_too_long", "provider", _TOO_LONG.format(size))
