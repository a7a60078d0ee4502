from hypothesis import given
from hypothesis import strategies as st

from alinfik.server.rejection import rejections
from alinfik.v1 import Sample


@given(
    st.builds(
        Sample,
        id=st.text(max_size=300),
        provider=st.text(max_size=300),
        completion=st.text(alphabet=" \t\n\u00a0\u2003x", max_size=4),
    )
)
def test_a_sample_has_exactly_the_faults_that_the_contract_names(sample: Sample) -> None:
    expected = set()
    if not sample.completion.strip():
        expected.add(("empty_completion", "completion"))
    if len(sample.id.encode()) > 256:
        expected.add(("id_too_long", "id"))
    if len(sample.provider.encode()) > 256:
        expected.add(("provider_too_long", "provider"))
    assert {(fault.reason, fault.field) for fault in rejections(sample)} == expected
