"""What was said of texts that were valued before: many a provider sends the same text twice.

Comes in: a text's key and its estimate. Goes out: the estimate, while it is among the last ones
used. One for each bundle. For one event loop; no locks. Knows nothing of samples' ids and queues.
"""

import struct
from array import array
from collections import OrderedDict
from hashlib import blake2b

from alinfik.server.bundle import Bundle
from alinfik.server.valuation import Estimate
from alinfik.v1 import Sample


def content_key(sample: Sample) -> bytes:
    """What two samples share if, and only if, they have the same prompt and completion."""
    prompt = sample.prompt.encode()
    # The length tells where the prompt ends, whatever it holds.
    head = len(prompt).to_bytes(8, "big") + prompt
    return blake2b(head + sample.completion.encode(), digest_size=16).digest()


# What an estimate has beside its numbers: tokens, strangeness, and two truths.
_REST = struct.Struct("=Qd??")


class Cache:
    """The last ``limit`` texts' estimates by ``bundle``; none where it is 0.

    They are kept as bytes: as objects they would take twice the memory.
    """

    def __init__(self, bundle: Bundle, limit: int) -> None:
        self._bundle = bundle
        self._limit = limit
        self._packed: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> Estimate | None:
        """The estimate, if it is here; it is then the last one used."""
        if (packed := self._packed.get(key)) is None:
            return None
        self._packed.move_to_end(key)
        end = len(packed) - _REST.size
        count, strangeness, truncated, strange = _REST.unpack_from(packed, end)
        numbers = array("d", packed[:end])
        return Estimate(self._bundle, numbers, count, truncated, strangeness, strange)

    def put(self, key: bytes, estimate: Estimate) -> None:
        """Keep an estimate, and let the one go that was not used for longest."""
        if not self._limit:
            return
        _, numbers, count, truncated, strangeness, strange = estimate
        rest = _REST.pack(count, strangeness, truncated, strange)
        self._packed[key] = numbers.tobytes() + rest
        if len(self._packed) > self._limit:
            self._packed.popitem(last=False)
