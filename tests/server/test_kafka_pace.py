"""Batches grow to half a second's worth, and no further."""

from hypothesis import given
from hypothesis import strategies as st

from alinfik.server.kafka_pace import BATCH_SECONDS, FEWEST, Pace


def settle(rate: float, most: int) -> int:
    pace = Pace(most)
    for _ in range(30):
        pace.took(pace.records, pace.records / rate)
    return pace.records


@given(rate=st.floats(1, 1e6), most=st.integers(1, 10_000))
def test_a_batch_takes_half_a_second_within_the_bounds(rate: float, most: int) -> None:
    ideal = max(min(FEWEST, most), min(int(rate * BATCH_SECONDS), most))
    assert abs(settle(rate, most) - ideal) <= 1


def test_a_trickle_says_nothing_of_what_a_full_batch_would_take() -> None:
    pace = Pace(2000)
    pace.took(1, 0.02)
    assert pace.records == FEWEST


def test_a_model_that_slows_down_gets_less() -> None:
    pace = Pace(2000)
    for _ in range(10):
        pace.took(pace.records, 0.01)
    assert pace.records == 2000
    pace.took(1000, 5.0)
    assert pace.records == 100


def test_growth_is_twofold_at_most() -> None:
    pace = Pace(2000)
    pace.took(FEWEST, 1e-9)
    assert pace.records == 2 * FEWEST
