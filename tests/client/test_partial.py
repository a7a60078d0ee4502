"""Files that grow over several runs: whatever the first leaves, the second makes whole."""

import csv
import json

import grpc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client import Sample, SampleError, Scored, TargetValue, Valuation
from alinfik.client.partial import Partial
from alinfik.command import CommandError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
FIGURE = st.floats(allow_nan=False, allow_infinity=False)
TARGETS = ["gsm8k", "mbpp"]
SUFFIXES = [".jsonl", ".csv", ".parquet"]


@st.composite
def answers(draw):
    sample = Sample(id=draw(TEXT), provider=draw(TEXT), completion="x")
    if draw(st.booleans()):
        code = grpc.StatusCode.INVALID_ARGUMENT
        return Scored(sample, SampleError(0, sample.id, code, draw(TEXT)))
    values = [
        TargetValue(
            target=target,
            value=draw(FIGURE),
            lower=draw(FIGURE),
            upper=draw(FIGURE),
            percentile=draw(FIGURE),
        )
        for target in TARGETS
    ]
    valuation = Valuation(
        sample_id=sample.id,
        provider=sample.provider,
        bundle_id="b",
        values=values,
        token_count=draw(st.integers(0, 2**32 - 1)),
        truncated=draw(st.booleans()),
        out_of_distribution_score=draw(st.floats(0, 1, width=32)),
        out_of_distribution=draw(st.booleans()),
    )
    return Scored(sample, valuation)


def run(out, scored, stop_after=None):
    """One run of the command, killed after so many answers; what it wrote, if it was not."""
    samples = (one.sample for one in scored)
    with Partial(out, "b", TARGETS) as partial:
        there = len(list(partial.answered(samples)))
        for one in scored[there:stop_after]:
            assert next(samples) == one.sample
            partial.add(one)
        if stop_after is not None:
            raise KeyboardInterrupt
    return out.read_bytes()


def died(out, scored, stop_after):
    with pytest.raises(KeyboardInterrupt):
        run(out, scored, stop_after)


@given(st.lists(answers(), max_size=8), st.data(), st.sampled_from(SUFFIXES))
def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_file(
    tmp_path_factory, scored, data, suffix
):
    folder = tmp_path_factory.mktemp("partial")
    whole = run(folder / f"whole{suffix}", scored)
    out = folder / f"cut{suffix}"
    died(out, scored, len(scored))
    partial = folder / f"cut{suffix}.partial"
    lines = partial.read_bytes() if partial.exists() else b""
    partial.write_bytes(lines[: data.draw(st.integers(0, len(lines)))])
    assert run(out, scored) == whole
    assert {path.name for path in folder.iterdir()} == {f"whole{suffix}", f"cut{suffix}"}


@given(st.lists(answers(), max_size=8))
def test_every_format_holds_the_same(tmp_path_factory, scored):
    folder = tmp_path_factory.mktemp("formats")
    jsonl, table, parquet = (folder / f"values{suffix}" for suffix in SUFFIXES)
    for out in (jsonl, table, parquet):
        run(out, scored)
    rows = pq.read_table(parquet).to_pylist()
    with table.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        cells = list(reader)
    lines = [json.loads(line) for line in jsonl.read_bytes().splitlines()]
    assert len(rows) == len(cells) == len(lines) == len(scored)
    for (sample, outcome), row, cell, line in zip(scored, rows, cells, lines, strict=True):
        assert list(row) == list(cell) == reader.fieldnames
        assert row["sample_id"] == cell["sample_id"] == line["sample_id"] == sample.id
        if isinstance(outcome, SampleError):
            error = f"INVALID_ARGUMENT: {outcome.reason}"
            assert row["error"] == cell["error"] == line["error"] == error
            assert row["gsm8k_value"] is None
            assert cell["gsm8k_value"] == ""
        else:
            value = outcome.values[1]
            assert row["mbpp_value"] == float(cell["mbpp_value"]) == value.value
            assert row["mbpp_upper"] == float(cell["mbpp_upper"]) == value.upper
            assert row["token_count"] == int(cell["token_count"]) == outcome.token_count
            assert row["truncated"] is outcome.truncated is (cell["truncated"] == "true")
            assert row["error"] is None


def scored(sample_id, bundle_id="b", targets=TARGETS, text=""):
    values = [TargetValue(target=target) for target in targets]
    return Scored(
        Sample(id=sample_id, completion=text),
        Valuation(sample_id=sample_id, bundle_id=bundle_id, values=values),
    )


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ([scored("1"), scored("x")], "line 2 is for the sample 'x' where it is '2' now. Remove"),
        ([scored("1"), scored("2"), scored("3")], "line 3 is for the sample '3' where there is"),
        ([scored("1", text="x")], "line 1 is for the sample '1' when it had another text. Remove"),
        ([scored("1", "a")], "line 1 is by bundle a, and the values would be by b now; --bundle a"),
        ([scored("1", targets=["mbpp"])], "line 1 is for other targets (mbpp)"),
    ],
)
def test_a_run_of_something_else_is_not_gone_on_with(tmp_path, before, says):
    out = tmp_path / "values.jsonl"
    died(out, before, len(before))
    with pytest.raises(CommandError) as error:
        run(out, [scored("1"), scored("2")])
    assert str(error.value).startswith(f"{out}.partial {says}")
    assert str(error.value).endswith(f"Remove {out}.partial to start anew")
    assert len((tmp_path / "values.jsonl.partial").read_bytes().splitlines()) == len(before)


@pytest.mark.parametrize("line", ["{", "1", "{}", '{"sample_id": "1"}'])
def test_a_file_that_no_run_wrote_is_left_alone(tmp_path, line):
    (tmp_path / "values.csv.partial").write_text(line + "\n")
    with pytest.raises(CommandError, match="line 1 is no answer of an earlier run"):
        run(tmp_path / "values.csv", [scored("1")])
    assert (tmp_path / "values.csv.partial").read_text() == line + "\n"


def test_a_run_that_is_interrupted_at_once_keeps_what_there_was(tmp_path):
    out = tmp_path / "values.jsonl"
    died(out, [scored("1"), scored("2")], 2)
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with Partial(out, "b", TARGETS):
            raise KeyboardInterrupt
    assert len((tmp_path / "values.jsonl.partial").read_bytes().splitlines()) == 2


def test_a_run_beside_another_is_refused_and_does_no_harm(tmp_path):
    out = tmp_path / "values.jsonl"
    with Partial(out, "b", TARGETS) as first:
        first.add(scored("1"))
        with pytest.raises(CommandError, match="partial: another run is writing it"):
            Partial(out, "b", TARGETS)
        first.add(scored("2"))
    assert len(out.read_bytes().splitlines()) == 2


def test_what_is_changed_under_a_run_is_not_taken_for_its_own(tmp_path):
    out = tmp_path / "values.csv"
    with pytest.raises(CommandError, match="another run wrote to it too"):  # noqa: SIM117, PT012
        with Partial(out, "b", TARGETS) as partial:
            partial.add(scored("1"))
            partial.path.write_bytes(b"")
    assert not out.exists()
