import csv
import gzip
import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client.rows import LONGEST_LINE_BYTES
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


def test_a_suffix_in_capitals_is_one(tmp_path):
    path = tmp_path / "pool.CSV.GZ"
    path.write_bytes(gzip.compress(b"completion\na\n"))
    assert [one.completion for one in read_samples(str(path))] == ["a"]
    assert count_samples(str(path)) == 1


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(CommandError, match="cannot be read"):
            count_samples(str(path))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CommandError, match="standard input is closed"):
        list(read_samples("-"))


def test_a_line_without_end_is_not_read_to_count_it(tmp_path, monkeypatch):
    monkeypatch.setattr("alinfik.client.rows.LONGEST_LINE_BYTES", 100)
    (tmp_path / "pool.jsonl").write_bytes(b"[" + b" " * 200)
    with pytest.raises(CommandError, match="line 1: over 0 MiB long"):
        count_samples(str(tmp_path / "pool.jsonl"))


def test_a_damaged_page_of_parquet_is_one_line(tmp_path):
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"completion": ["words and words"] * 5000}), path, compression="snappy")
    whole = path.read_bytes()
    refused = 0
    for place in range(4, 200, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            list(read_samples(str(path)))
        except CommandError:
            refused += 1
    assert refused > 5


def test_lines_are_read_as_they_are_asked_for(file):
    samples = read_samples(file(f"{GOOD}\nbroken"))
    assert next(samples).id == "1"
    with pytest.raises(CommandError, match="line 2"):
        next(samples)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT)), st.sampled_from(["csv", "csv.gz"]))
def test_what_csv_writes_is_read_back(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("samples") / f"pool.{suffix}"
    with (gzip.open if suffix.endswith("gz") else open)(
        path, "wt", encoding="utf-8", newline=""
    ) as f:
        writer = csv.writer(f)
        writer.writerow(["completion", "other", "prompt", "provider", "id"])
        writer.writerows((c, "x", q, p, i) for i, p, q, c in rows)
    read = list(read_samples(str(path)))
    assert [(s.provider, s.prompt, s.completion) for s in read] == [row[1:] for row in rows]
    assert all(sample.id == row[0] for sample, row in zip(read, rows, strict=True) if row[0])
    assert count_samples(str(path)) == len(rows)


@given(st.lists(st.tuples(*[st.none() | TEXT] * 3, TEXT)))
def test_what_parquet_holds_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("samples") / "pool.parquet"
    names = ("id", "provider", "prompt", "completion")
    table = [dict(zip(names, row, strict=True)) | {"more": 1} for row in rows]
    schema = pa.schema([(name, pa.string()) for name in names] + [("more", pa.int64())])
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)
    assert [(s.id, s.provider, s.prompt, s.completion) for s in read_samples(str(path))] == [
        (str(number) if i is None else i, p or "", q or "", c)
        for number, (i, p, q, c) in enumerate(rows, 1)
    ]
    assert count_samples(str(path)) == len(rows)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_table_or_one_clear_error(tmp_path_factory, content):
    for suffix in (".csv", ".csv.gz", ".parquet"):
        path = tmp_path_factory.mktemp("samples") / f"pool{suffix}"
        path.write_bytes(content)
        try:
            list(read_samples(str(path)))
        except CommandError as error:
            assert str(path) in str(error)  # noqa: PT017 - nothing is right too


def test_numbers_are_ids_and_providers(tmp_path, file):
    expected = [Sample(id="7", provider="3", completion="a")]
    assert list(read_samples(file('{"id": 7, "provider": 3, "completion": "a"}'))) == expected
    pq.write_table(
        pa.table({"id": [7], "provider": [3], "completion": ["a"]}), tmp_path / "pool.parquet"
    )
    assert list(read_samples(str(tmp_path / "pool.parquet"))) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,completion\n1,a\n2\n", "line 3: 1 cells where the header has 2"),
        ('completion\n"a\nb"c\n', "line 2: broken CSV ("),
        ('completion\n"a\n', "line 2: broken CSV ("),
        ("id,text\n1,a\n", 'line 2: no "completion" (it has id, text)'),
        (b"completion\na\nb\xff\n", "line 3: not UTF-8 at byte 2 of the line"),
    ],
)
def test_a_broken_row_of_a_table_is_named(tmp_path, content, says):
    path = tmp_path / "pool.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message(str(path)).startswith(f"{path} {says}")


def test_a_line_without_end_is_not_read_whole(file):
    path = file(b'{"completion": "' + b"x" * LONGEST_LINE_BYTES)
    assert message(path) == f"{path} line 1: over 16 MiB long, which no sample's line is"


def test_a_parquet_file_without_completions_is_named(tmp_path):
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), path)
    assert message(str(path)).startswith(f'{path}: no "completion" (it has n, text)')
    assert message(str(tmp_path / "no.parquet")) == f"{tmp_path / 'no.parquet'}: no such file"


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
        ('{"text": "a", "n": 1}', 'line 2: no "completion" (it has n, text); a sample has a'),
        ("{}", 'line 2: no "completion" (it has nothing)'),
        ('{"completion": null}', 'line 2: "completion" is null; a sample has one'),
        ('{"completion": 3}', 'line 2: "completion" is a number, not a string'),
        ('{"completion": "a", "id": 1.5}', 'line 2: "id" is a number, not a string'),
        ('{"completion": "a", "id": true}', 'line 2: "id" is true or false, not a string'),
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
    assert message(str(tmp_path)) == f"{tmp_path} is a directory; give a file in it"


@pytest.mark.parametrize("content", [b"plain", gzip.compress(GOOD.encode() * 99)[:-12]])
def test_a_gz_file_that_is_not_whole_is_named(tmp_path, content):
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(content)
    assert message(str(path)).startswith(f"{path} is not whole gzip data (")
