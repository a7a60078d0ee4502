"""What the cache gives is what was put in, to the last bit."""

from array import array
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from alinfik.server.bundle import Bundle
from alinfik.server.cache import Cache, content_key
from alinfik.server.valuation import Estimate
from alinfik.v1 import BundleManifest, Sample

BUNDLE = Bundle(Path("anywhere"), BundleManifest())
ESTIMATES = st.builds(
    Estimate,
    st.just(BUNDLE),
    st.lists(st.floats(allow_nan=False), min_size=4, max_size=12).map(lambda x: array("d", x)),
    st.integers(0, 2**40),
    st.booleans(),
    st.floats(allow_nan=False),
    st.booleans(),
)


@given(ESTIMATES, ESTIMATES)
def test_an_estimate_comes_back_as_it_was_put_in(one: Estimate, other: Estimate) -> None:
    cache = Cache(BUNDLE, 2)
    cache.put(b"one", one)
    cache.put(b"other", other)
    assert (cache.get(b"one"), cache.get(b"other")) == (one, other)
    assert cache.get(b"third") is None


@given(ESTIMATES)
def test_what_was_used_longest_ago_goes_first(estimate: Estimate) -> None:
    cache = Cache(BUNDLE, 2)
    cache.put(b"one", estimate)
    cache.put(b"other", estimate)
    cache.get(b"one")
    cache.put(b"third", estimate)
    assert [key for key in (b"one", b"other", b"third") if cache.get(key)] == [b"one", b"third"]


def test_a_cache_of_none_keeps_none() -> None:
    cache = Cache(BUNDLE, 0)
    cache.put(b"one", Estimate(BUNDLE, array("d", [0.0] * 4), 1, False, 0.0, False))
    assert cache.get(b"one") is None


def test_where_the_prompt_ends_tells_texts_apart() -> None:
    text = "abab"
    samples = [Sample(prompt=text[:cut], completion=text[cut:]) for cut in range(4)]
    keys = {content_key(sample) for sample in samples}
    assert len(keys) == 4
    same = Sample(id="another", prompt="a", completion="bab", provider="else")
    assert content_key(same) in keys
