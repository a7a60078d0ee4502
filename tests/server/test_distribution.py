"""A distribution shows what prometheus-client's own metrics show of the same observations."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, Summary, generate_latest

from alinfik.server.distribution import Distribution

_BOUNDS = (0.001, 0.25, 1.0, 10.0, 3600.0)
_batches = st.lists(
    st.lists(st.sampled_from(_BOUNDS) | st.floats(-1e6, 1e6), max_size=20), max_size=5
)


def _shown(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples if "_created" not in name}


@pytest.mark.parametrize("buckets", [_BOUNDS, ()])
@given(batches=_batches)
def test_as_the_library_shows_one_by_one(
    buckets: Sequence[float], batches: list[list[float]]
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("waits", "Help.", ["line"], buckets=buckets, registry=ours)
    reference = (
        Histogram("waits", "Help.", ["line"], buckets=buckets, registry=theirs)
        if buckets
        else Summary("waits", "Help.", ["line"], registry=theirs)
    )
    expected = reference.labels("stream")
    for batch in batches:
        distribution.labels("stream").observe(batch)
        for value in batch:
            expected.observe(value)
    if not batches:
        distribution.labels("stream")
    assert _shown(ours) == pytest.approx(_shown(theirs))


def test_there_from_the_start_where_it_has_no_labels() -> None:
    registry = CollectorRegistry()
    Distribution("delay_seconds", "Help.", buckets=(1.0,), registry=registry)
    assert _shown(registry) == {
        'delay_seconds_bucket{le="1.0"}': 0,
        'delay_seconds_bucket{le="+Inf"}': 0,
        "delay_seconds_count": 0,
        "delay_seconds_sum": 0,
    }


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    Distribution("waits", "Help.", registry=registry)
    with pytest.raises(ValueError, match="waits"):
        Histogram("waits", "Help.", registry=registry)
