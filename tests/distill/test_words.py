"""Words of scripts with and without spaces."""

import random

from hypothesis import given
from hypothesis import strategies as st

from alinfik.distill.words import shuffled, words


def test_characters_are_words_where_nothing_is_between_words() -> None:
    assert words("Add 2+2,\nplease") == ["Add", "2+2,", "please"]
    assert words("返回 sum 的和") == ["返", "回", "sum", "的", "和"]


@given(st.text())
def test_all_but_spaces_is_in_some_word(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split())


def test_shuffled_words_stand_as_those_before_them_did() -> None:
    order = random.Random(0)
    assert sorted(shuffled("one two  three\nfour", order).split(" ")) == [
        "four",
        "one",
        "three",
        "two",
    ]
    text = "返回列表中所有偶数的和"
    mixed = shuffled(text, order)
    assert mixed != text
    assert sorted(mixed) == sorted(text)
