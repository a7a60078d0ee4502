import gzip
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client.samples import count_samples, read_samples
from alinfik.command import CommandError
from alinfik.v1 import Sample

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
GOOD = '{"id": "1", "provider": "p", "prompt": "q", "completion": "a"}'


@pytest.fixture
def file(tmp_path):
    def file(content):
        path = tmp_path / "pool.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return file


def message(path):
    with pytest.raises(CommandError) as error:
        list(read_samples(path))
    return str(error.value)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT)), st.booleans())
def test_what_json_writes_is_read_back(tmp_path_factory, rows, ascii_):
    samples = [Sample(id=i, provider=p, prompt=q, completion=c) for i, p, q, c in rows]
    path = tmp_path_factory.mktemp("samples") / "pool.jsonl"
    lines = [
        json.dumps(dict(zip(("id", "provider", "prompt", "completion"), row, strict=True)),
                   ensure_ascii=ascii_)
        for row in rows
    ]  # fmt: skip
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
    assert list(read_samples(str(path))) == samples
    assert count_samples(str(path)) == len(samples)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_samples_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("samples") / "pool.jsonl"
    path.write_bytes(content)
    said = f"{path} line "
    try:
        samples = list(read_samples(str(path)))
    except CommandError as error:
        said, samples = str(error), []
    assert f"{path} line " in said
    assert len(samples) <= content.count(b"\n") + 1


def test_gzip_and_standard_input_are_read_alike(tmp_path, monkeypatch):
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    expected = [Sample(id="1", provider="p", prompt="q", completion="a")]
    assert count_samples(str(path)) == 1
    assert list(read_samples(str(path))) == expected
    assert count_samples("-") is None
    assert list(read_samples("-")) == expected


def test_lines_are_read_as_they_are_asked_for(file):
    samples = read_samples(file(f"{GOOD}\nbroken"))
    assert next(samples).id == "1"
    with pytest.raises(CommandError, match="line 2"):
        next(samples)


def test_an_absent_id_is_the_line_number(file):
    path = file(
        '{"completion": "a"}\n\n  \n{"completion": "b", "id": null, "prompt": null, "x": 1}'
    )
    assert [(sample.id, sample.completion) for sample in read_samples(path)] == [
        ("1", "a"),
        ("4", "b"),
    ]


def test_a_byte_order_mark_is_no_part_of_the_text(file):
    assert next(iter(read_samples(file(b"\xef\xbb\xbf" + GOOD.encode())))).id == "1"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "{",
            "line 2: not JSON (Expecting property name enclosed in double quotes at column 2)",
        ),
        ("[" * 100_000, "line 2: not JSON ("),
        ("9" * 5000, "line 2: not JSON ("),
        ("[1]", "line 2: an array, not an object; a line looks like {"),
        ("null", "line 2: null, not an object"),
        ('{"text": "a", "n": 1}', 'line 2: no "completion" (it has n, text); a line looks like'),
        ("{}", 'line 2: no "completion" (it has no keys)'),
        ('{"completion": null}', 'line 2: no "completion" (it has completion)'),
        ('{"completion": 3}', 'line 2: "completion" is a number, not a string'),
        ('{"completion": "a", "id": 7}', 'line 2: "id" is a number, not a string'),
        ('{"completion": "\\ud800"}', 'line 2: "completion" holds half of a surrogate pair'),
        (b'{"completion": "\xff"}', "line 2: not UTF-8 at byte 17 of the line; convert the file"),
    ],
)
def test_a_bad_line_is_named_with_its_fault(file, line, says):
    path = file(GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    assert message(path).startswith(f"{path} {says}")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    missing = str(tmp_path / "pool.jsonl")
    assert message(missing) == f"{missing}: no such file"
    assert message(str(tmp_path)) == f"{tmp_path} is a directory; give a JSONL file in it"


@pytest.mark.parametrize("content", [b"plain", gzip.compress(GOOD.encode() * 99)[:-12]])
def test_a_gz_file_that_is_not_whole_is_named(tmp_path, content):
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(content)
    assert message(str(path)).startswith(f"{path} is not whole gzip data (")
