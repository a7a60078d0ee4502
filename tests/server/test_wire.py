from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from alinfik.server.wire import repeats_more
from alinfik.v1 import BundleManifest, Sample, ScoreRequest

requests = st.builds(
    ScoreRequest,
    samples=st.lists(st.builds(Sample, id=st.text(), completion=st.text(max_size=300))),
    bundle_id=st.text(),
    targets=st.lists(st.text()),
    partial_success=st.booleans(),
)


@given(request=requests)
def test_the_field_that_comes_most_often_counts(request: ScoreRequest) -> None:
    message = request.SerializeToString()
    named, partial = bool(request.bundle_id), request.partial_success
    most = max(len(request.samples), len(request.targets), named, partial)
    assert not repeats_more(message, most)
    assert repeats_more(message, most - 1) == (most > 0)


@given(payload=st.binary(max_size=60) | st.binary(max_size=20).map(lambda some: some * 9))
# A group, which no field of ours is, before the samples; long forms of tag and length.
@example(b"\x0b\x0c" + b"\x0a\x00" * 50)
@example(b"\x8a\x80\x80\x80\x00\x00" * 50)
@example(b"\x80" * 50)
def test_whatever_parses_is_counted_in_full(payload: bytes) -> None:
    try:
        found = len(ScoreRequest.FromString(payload).samples)
    except DecodeError:
        repeats_more(payload, 3)
    else:
        assert repeats_more(payload, found - 1) or not found


def test_what_is_within_a_field_does_not_count() -> None:
    inner = BundleManifest(targets=[{"value_quantiles": [0.0] * 9}] * 2).SerializeToString()
    assert not repeats_more(inner, 2)
