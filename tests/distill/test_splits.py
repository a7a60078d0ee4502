from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from alinfik.distill.splits import CALIBRATION_SHARE, HELD_OUT_SHARE, indices_of, part_of


@given(st.lists(st.text()))
def test_every_sample_is_in_one_part_and_groups_stay_together(groups: list[str]) -> None:
    parts = [indices_of(groups, part) for part in ("train", "calibration", "held_out")]
    assert sorted(index for part in parts for index in part) == list(range(len(groups)))
    for part in parts:
        inside = {groups[index] for index in part}
        outside = {groups[index] for other in parts if other is not part for index in other}
        assert not inside & outside


def test_parts_have_their_shares() -> None:
    counts = Counter(part_of(str(number)) for number in range(20_000))
    assert abs(counts["held_out"] / 20_000 - HELD_OUT_SHARE) < 0.01
    assert abs(counts["calibration"] / 20_000 - CALIBRATION_SHARE) < 0.01
