"""Valuations of texts that were valued before: many a provider sends the same text twice.

Comes in: a text's key and its valuation. Goes out: the valuation, while it is among the last ones
used. One for each bundle. For one event loop; no locks. Knows nothing of samples' ids and queues.
"""

from collections import OrderedDict
from hashlib import blake2b

from alinfik.v1 import Sample, Valuation


def content_key(sample: Sample) -> bytes:
    """What two samples share if, and only if, they have the same prompt and completion."""
    prompt = sample.prompt.encode()
    # The length tells where the prompt ends, whatever it holds.
    head = len(prompt).to_bytes(8, "big") + prompt
    return blake2b(head + sample.completion.encode(), digest_size=16).digest()


class Cache:
    """The last ``limit`` texts' valuations, without the samples' names; none where it is 0.

    They are kept serialised: as messages they take five times the memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._valuations: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> Valuation | None:
        """The valuation, if it is here; it is then the last one used."""
        if (valuation := self._valuations.get(key)) is None:
            return None
        self._valuations.move_to_end(key)
        return Valuation.FromString(valuation)

    def put(self, key: bytes, valuation: Valuation) -> None:
        """Keep a valuation, and let the one go that was not used for longest."""
        if not self._limit:
            return
        self._valuations[key] = valuation.SerializeToString()
        if len(self._valuations) > self._limit:
            self._valuations.popitem(last=False)
