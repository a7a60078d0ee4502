from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from alinfik.client.visible import pictured, printable

HOSTILE = "a\x1b]0;owned\x07 b\r\n\x7f\x9bc\t"


def test_controls_are_seen_and_not_obeyed():
    assert printable(HOSTILE) == r"a\x1b]0;owned\x07 b\r\n\x7f\x9bc\t"
    assert pictured(HOSTILE) == "a␛]0;owned␇ b␍\n␡\N{REPLACEMENT CHARACTER}c\t"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_pictured_stays_in_its_place(text):
    shown = pictured(text)
    assert len(shown) == len(text)
    # rich drops some controls, and what is styled by place would be off.
    assert Text(shown).plain == shown
