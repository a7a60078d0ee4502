from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from alinfik.distill.rows import Row
from alinfik.distill.splits import (
    CALIBRATION_SHARE,
    HELD_OUT_SHARE,
    VALIDATION_SHARE,
    families,
    family_names,
    folds,
    part_of,
    split,
)

WORDS = ["Ada", "buys", "eggs", "and", "gives", "three", "away", "def", "return", "x"]
rows = st.lists(
    st.builds(
        Row,
        id=st.just(""),
        provider=st.sampled_from(["north", "south", "west", ""]),
        prompt=st.just(""),
        completion=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join),
        group=st.sampled_from("abcdefghijklmnopqrst"),
    ),
    max_size=40,
)


def row(completion: str, group: str, provider: str = "") -> Row:
    return Row(id="", provider=provider, prompt="", completion=completion, group=group)


@given(rows)
def test_every_row_is_in_one_part_and_what_is_alike_stays_together(rows: list[Row]) -> None:
    parts = split(rows)
    assert sorted(index for part in parts.values() for index in part) == list(range(len(rows)))
    where = {index: name for name, part in parts.items() for index in part}
    together: dict[str, set[str]] = {}
    for index, one in enumerate(rows):
        together.setdefault(f"group {one.group}", set()).add(where[index])
        together.setdefault(f"text {one.completion}", set()).add(where[index])
    assert all(len(names) == 1 for names in together.values())


@given(rows, st.randoms())
def test_parts_do_not_depend_on_the_order(rows: list[Row], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = split(rows)
    shuffled = split([rows[index] for index in order])
    for part, indices in straight.items():
        assert sorted(order[index] for index in shuffled[part]) == indices


@given(rows)
def test_a_provider_is_never_divided_if_told_so(rows: list[Row]) -> None:
    parts = split(rows, "provider")
    where = {index: name for name, part in parts.items() for index in part}
    homes: dict[str, set[str]] = {}
    for index, one in enumerate(rows):
        homes.setdefault(one.provider, set()).add(where[index])
    assert all(len(names) == 1 for provider, names in homes.items() if provider)


def test_near_duplicates_are_one_family() -> None:
    text = (
        "Ada buys twelve boxes of fresh eggs at the old market on her way home from school and "
        "gives three of them to Ben, who has none, before she bakes a cake for her mother"
    )
    near = text.replace("three", "four")
    other = "Return the sum of the even numbers in the list, or zero where there are none"
    texts = [row(text, "a"), row(near, "b"), row(other, "c")]
    first, second, third = families(texts, ["a", "b", "c"])
    assert first == second != third


def test_near_duplicates_without_spaces_are_one_family() -> None:
    text = (
        "她在市场上买了十二盒新鲜鸡蛋,回家路上给了本三盒,然后为母亲烤了一个蛋糕,剩下的都放进了冰箱里"
        * 2
    )
    near = text.replace("三", "四", 1)
    other = "返回列表中所有偶数的和,如果没有偶数则返回零,并解释这个函数是如何工作的"
    first, second, third = families([row(one, "") for one in (text, near, other)], ["a", "b", "c"])
    assert first == second != third


def test_a_long_prompt_in_common_makes_no_near_duplicates() -> None:
    prompt = " ".join(f"rule{number}" for number in range(150))
    own = (" ".join(f"{number}.{word}" for word in range(40)) for number in range(60))
    # They share 148 of their 188 runs of three words each: 0.65 of both.
    texts = [row(f"{prompt} {words}", "") for words in own]
    assert len(set(families(texts, list(map(str, range(60)))))) == 60


def test_parts_have_their_shares() -> None:
    counts = Counter(part_of(str(number)) for number in range(20_000))
    for part, share in (
        ("held_out", HELD_OUT_SHARE),
        ("calibration", CALIBRATION_SHARE),
        ("validation", VALIDATION_SHARE),
    ):
        assert abs(counts[part] / 20_000 - share) < 0.01


def test_a_family_is_in_one_fold_and_folds_are_of_a_size() -> None:
    rows = [
        Row(id=str(n), provider="p", prompt="", completion=f"{n:x} " * 4, group=f"g{n // 3}")
        for n in range(600)
    ]
    found = folds(family_names(rows, "group"), 5)
    assert all(len({found[n], found[n + 1], found[n + 2]}) == 1 for n in range(0, 600, 3))
    assert set(found) == set(range(5))
    assert min(found.count(fold) for fold in range(5)) > 60
    assert folds(family_names(rows[::-1], "group"), 5) == found[::-1]


@given(st.sets(st.text(min_size=1), min_size=1, max_size=8))
def test_a_few_families_are_in_as_many_folds(names: set[str]) -> None:
    rows = [row(f"{number:x} " * 4, "g", provider=name) for number, name in enumerate(names)]
    assert len(set(folds(family_names(rows, "provider"), 5))) == min(5, len(names))
