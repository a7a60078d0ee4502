"""What was said of texts that were valued before: many a provider sends the same text twice.

Comes in: a text's key and its estimate. Goes out: the estimate, while it is among the last ones
used. One for each bundle. For one event loop; no locks. Knows nothing of samples' ids and queues.
"""

from collections import OrderedDict
from hashlib import blake2b

from alinfik.server.valuation import Estimate
from alinfik.v1 import Sample


def content_key(sample: Sample) -> bytes:
    """What two samples share if, and only if, they have the same prompt and completion."""
    prompt = sample.prompt.encode()
    # The length tells where the prompt ends, whatever it holds.
    head = len(prompt).to_bytes(8, "big") + prompt
    return blake2b(head + sample.completion.encode(), digest_size=16).digest()


class Cache:
    """The last ``limit`` texts' estimates; none where it is 0."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._estimates: OrderedDict[bytes, Estimate] = OrderedDict()

    def get(self, key: bytes) -> Estimate | None:
        """The estimate, if it is here; it is then the last one used."""
        if (estimate := self._estimates.get(key)) is not None:
            self._estimates.move_to_end(key)
        return estimate

    def put(self, key: bytes, estimate: Estimate) -> None:
        """Keep an estimate, and let the one go that was not used for longest."""
        if not self._limit:
            return
        self._estimates[key] = estimate
        if len(self._estimates) > self._limit:
            self._estimates.popitem(last=False)
