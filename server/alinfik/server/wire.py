"""What a message's bytes say of it before it is parsed.

An entry of a repeated field may be two bytes on the wire, and is some ninety once it is parsed.
Comes in: bytes. Goes out: whether they are worth parsing. Knows nothing of what the fields mean.
"""

from collections import Counter

# What a tag says of the value behind it: https://protobuf.dev/programming-guides/encoding/
_VARINT, _FIXED64, _LENGTH, _GROUP_BEGINS, _GROUP_ENDS, _FIXED32 = range(6)
_SIZES = {_FIXED64: 8, _FIXED32: 4, _GROUP_BEGINS: 0, _GROUP_ENDS: 0}
_LONGEST_VARINT = 10


def repeats_more(message: bytes, most: int) -> bool:
    """Whether some field comes more than ``most`` times.

    Those within a message's own messages do not count. Bytes that are no message are read up to
    where that shows, as the parser reads them.
    """
    counts: Counter[int] = Counter()
    at = 0
    try:
        while at < len(message):
            tag, at = _varint(message, at)
            field, kind = divmod(tag, 8)
            counts[field] += 1
            if counts[field] > most:
                return True
            if kind in _SIZES:
                at += _SIZES[kind]
            elif kind in (_VARINT, _LENGTH):
                value, at = _varint(message, at)
                at += value if kind == _LENGTH else 0
            else:
                return False
    except IndexError:
        pass
    return False


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends.

    Raises:
        IndexError: there is none.
    """
    if (byte := message[at]) < 128:
        return byte, at + 1
    number = 0
    for place in range(_LONGEST_VARINT):
        byte = message[at + place]
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            return number, at + place + 1
    raise IndexError
