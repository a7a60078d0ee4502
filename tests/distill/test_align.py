import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alinfik.distill.align import realign


def cuts(length: int) -> st.SearchStrategy[np.ndarray]:
    """Tokens over so many characters, with gaps between some of them, after a start token."""
    return st.lists(st.integers(0, length), max_size=8).map(
        lambda places: np.array(
            [(0, 0), *zip(sorted(places)[::2], sorted(places)[1::2], strict=False), (length,) * 2]
        )
    )


@given(theirs=cuts(20), ours=cuts(20), seed=st.integers(0, 99))
def test_the_sum_stays(theirs: np.ndarray, ours: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((len(theirs), 2))
    found = realign(values, theirs, ours)
    assert found.shape == (len(ours), 2)
    np.testing.assert_allclose(found.sum(axis=0), values.sum(axis=0), atol=1e-9)


def test_a_token_gives_its_value_to_those_that_share_its_characters() -> None:
    theirs = np.array([(0, 0), (0, 4), (4, 6)])
    ours = np.array([(0, 0), (0, 1), (1, 6)])
    values = np.array([[5.0], [4.0], [1.0]])
    np.testing.assert_allclose(realign(values, theirs, ours), [[5.0], [1.0], [4.0]])


def test_characters_that_no_token_of_ours_covers_go_to_the_next_one() -> None:
    theirs = np.array([(0, 3), (3, 7)])
    ours = np.array([(0, 3), (4, 7)])
    np.testing.assert_allclose(realign(np.array([[1.0], [4.0]]), theirs, ours), [[1.0], [4.0]])
