"""Cuts text into words, in scripts that put spaces between them and in those that do not.

In: text. Out: its words, and what is between them. Knows nothing of what they are for.
"""

import random
import re

# Thai, Lao, Burmese, Khmer, kana, and the characters of Chinese: each stands for a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text, in their order."""
    return _WORD.findall(text)


def shuffled(text: str, order: random.Random) -> str:
    """The same words in random order, with a space wherever there was any."""
    found = list(_WORD.finditer(text))
    ends = [word.end() for word in found]
    spaced = [begin.start() > end for begin, end in zip(found[1:], ends, strict=False)]
    mixed = order.sample([word[0] for word in found], len(found))
    between = [" " if space else "" for space in spaced] + [""]
    return "".join(word + space for word, space in zip(mixed, between, strict=False))
