"""Other people's text on a terminal: what it would obey is shown and not done."""

import unicodedata

# Unicode's pictures of the control characters: ␀ and those that follow it, and ␡.
_PICTURES = 0x2400
_DELETE, _PICTURE_OF_DELETE = 0x7F, "␡"
_LAID_OUT = "\n\t"


def printable(text: str) -> str:
    """``text`` on one line, what is no visible character written as Python escapes it."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def pictured(text: str) -> str:
    """``text`` with a picture for every control character but line feed and tab.

    Each character stays where it was, so that what is known by its place is found there.
    """
    return "".join(map(_pictured, text))


def _pictured(character: str) -> str:
    if character in _LAID_OUT or unicodedata.category(character) != "Cc":
        return character
    code = ord(character)
    if code < ord(" "):
        return chr(_PICTURES + code)
    return _PICTURE_OF_DELETE if code == _DELETE else "\N{REPLACEMENT CHARACTER}"
