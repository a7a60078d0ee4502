import json

import grpc
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client import Sample, SampleError, Scored, TargetValue, Valuation
from alinfik.client.output import scored_json, to_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FIGURE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Valuation,
        sample_id=TEXT,
        provider=TEXT,
        bundle_id=TEXT,
        values=st.lists(
            st.builds(
                TargetValue,
                target=TEXT,
                value=FIGURE,
                lower=FIGURE,
                upper=FIGURE,
                percentile=FIGURE,
            )
        ),
        token_count=st.integers(0, 2**32 - 1),
        truncated=st.booleans(),
        # Not the very largest: rounded to nine digits it is past what protobuf reads.
        out_of_distribution_score=st.floats(-(2.0**120), 2.0**120, width=32),
        out_of_distribution=st.booleans(),
    )
)
def test_a_line_is_the_json_form_of_the_valuation(valuation):
    line = to_json(valuation)
    assert "\n" not in line
    assert json_format.Parse(line, Valuation()) == valuation
    # Every field of the contract, set or not.
    read = json.loads(line)
    assert list(read) == [field.name for field in Valuation.DESCRIPTOR.fields]
    for value in read["values"]:
        assert list(value) == [field.name for field in TargetValue.DESCRIPTOR.fields]


@given(TEXT, TEXT, TEXT)
def test_a_sample_without_a_value_has_its_error(sample_id, provider, reason):
    error = SampleError(7, sample_id, grpc.StatusCode.INVALID_ARGUMENT, reason)
    line = scored_json(Scored(Sample(id=sample_id, provider=provider), error))
    assert "\n" not in line
    assert json.loads(line) == {
        "sample_id": sample_id,
        "provider": provider,
        "error": f"INVALID_ARGUMENT: {reason}",
    }
