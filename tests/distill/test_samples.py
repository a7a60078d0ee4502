import csv
import gzip
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alinfik.distill.rows import check_fields
from alinfik.distill.samples import (
    BadRows,
    DataError,
    Row,
    read_pool,
    read_rows,
    rows_sha256,
)
from alinfik.distill.survey import survey

GOOD = b'{"id": "1", "provider": "p", "prompt": "a", "completion": "b"}\n'
TABLE = {"id": ["1", "2"], "provider": ["p", "q"], "prompt": ["", "a"], "completion": ["b", "c"]}

Table = dict[str, list[str]]


def _write_csv(path: Path, table: Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def _write_jsonl(path: Path, table: Table) -> None:
    rows = (dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_parquet(path: Path, table: Table) -> None:
    pq.write_table(pa.table(table), path)


def _zipped(write: Callable[[Path, Table], None]) -> Callable[[Path, Table], None]:
    def write_zipped(path: Path, table: Table) -> None:
        write(path, table)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_zipped


WRITERS = {
    "a.jsonl": _write_jsonl,
    "a.json": _write_jsonl,
    "a.JSONL.gz": _zipped(_write_jsonl),
    "a.csv": _write_csv,
    "a.csv.gz": _zipped(_write_csv),
    "a.parquet": _write_parquet,
}
each_format = pytest.mark.parametrize("name", WRITERS)


def write(directory: Path, name: str, table: Table) -> Path:
    path = directory / name
    WRITERS[name](path, table)
    return path


def refusal(
    path: Path | str, content: bytes | None = None, fields: dict[str, str] | None = None
) -> str:
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path, fields))
    return str(caught.value)


# Text as it may stand in any format: no NUL, no half surrogates, not white space alone.
_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_rows = st.builds(
    Row,
    id=_texts.filter(str.strip),
    provider=_texts,
    prompt=_texts,
    completion=_texts.filter(str.strip),
    group=_texts.filter(bool),
)


@each_format
@given(rows=st.lists(_rows, max_size=5, unique_by=lambda row: row.id))
@settings(
    max_examples=40,
    # a first reading loads libraries
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_is_written_is_read(name: str, tmp_path: Path, rows: list[Row]) -> None:
    names = ("id", "provider", "prompt", "completion", "group")
    table = {name: [getattr(row, name) for row in rows] for name in names}
    path = write(tmp_path, name, table)
    assert list(read_pool([path])) == rows


@each_format
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path, name, TABLE)))
    assert [(row.id, row.provider, row.prompt, row.completion) for row in rows] == [
        ("1", "p", "", "b"),
        ("2", "q", "a", "c"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_crlf_and_blank_lines_are_no_matter(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, TABLE)
    plain = list(read_rows(path))
    lines = path.read_text().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert list(read_rows(path)) == plain


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 2: not JSON (Expecting"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b'{"id": ' + b"1" * 5000 + b"}", "line 2: not JSON"),
        (b'"text"', "line 2: a JSON str, expected an object"),
        (b'[{"id": "2"}]', "line 2: a JSON list, expected an object"),
        (b'{"id": "2", "completion": "\xff"}', "line 2: not UTF-8 (invalid start byte at byte 28"),
        (b'{"id": "2", "completion": "\0"}', "line 2: not JSON (Invalid control character"),
        (b'{"id": "2", "completion": "a\\u0000"}', "line 2: column 'completion' holds a NUL"),
        (b'{"id": "2", "completion": "\\ud800"}', "line 2: column 'completion' holds half of a"),
        (b'{"completion": "x"}', "line 2: no column 'id' (there are 'completion'; --fields id="),
        (b'{"id": null, "completion": "x"}', "line 2: column 'id' is empty"),
        (b'{"id": true, "completion": "x"}', "line 2: column 'id' is bool, expected a string"),
        (b'{"id": "2"}', "line 2: no column 'completion' (there are 'id'; --fields completion="),
        (b'{"id": "2", "completion": " "}', "line 2: column 'completion' is empty"),
        (b'{"id": "2", "completion": 3}', "line 2: column 'completion' is int, expected a string"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    assert refusal(path, GOOD + line).startswith(f"{path} {complaint}")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (b"3", "line 5: wrong number of cells (1 where the header has 2)"),
        (b"3,\xff", "line 5: not UTF-8 (cell 2 of the row)"),
        (b"3,", "line 5: column 'completion' is empty"),
        (b"3,a\0b", "line 5: column 'completion' holds a NUL"),
        (b'3,"never closed\n4,x\n', "line 5: broken CSV (unexpected end of data)"),
        (b'3,"a"b\n', "line 5: broken CSV"),
        (b"3,a\r4,b\r", "line 5: broken CSV (new-line character seen"),
    ],
)
def test_a_bad_csv_row_is_named_by_the_line_where_it_begins(
    tmp_path: Path, lines: bytes, complaint: str
) -> None:
    path = tmp_path / "rows.csv"
    rows = b'id,completion\n1,one\n2,"two\nlines"\n'
    assert refusal(path, rows + lines).startswith(f"{path} {complaint}")


def test_a_csv_header_must_tell_columns_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert "line 1: the header names 'id' twice" in refusal(path, b"id,completion,id\n1,a,2\n")
    assert "line 1: not UTF-8" in refusal(path, b"id,\xff\n1,a\n")
    assert "no column 'id' (there are 'id;completion'; --fields" in refusal(
        path, b"id;completion\n1;a\n"
    )


def test_a_bad_parquet_cell_is_named_by_its_row(tmp_path: Path) -> None:
    texts = pc.cast(pa.array([b"fine", b"\xff", b"fine"]), pa.string(), safe=False)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "completion": texts}), path)
    assert f"{path} row 2: not UTF-8 (invalid start byte at byte 1" in refusal(path)
    bad_rows = BadRows()
    assert [row.id for row in read_rows(path, bad_rows=bad_rows)] == ["1", "3"]
    assert bad_rows.report() == [f"skipped 1 row: not UTF-8: {path} row 2"]
    pq.write_table(pa.table({"id": [1.5], "completion": ["a"]}), path)
    assert f"{path} row 1: column 'id' is float" in refusal(path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.jsonl")
    assert f"is a directory; give a file in it, or hf:{tmp_path}" in refusal(tmp_path)
    assert ".csv.gz, .parquet to say what format it is" in refusal(tmp_path / "a.txt", GOOD)
    assert "cannot be read as Parquet" in refusal(tmp_path / "a.parquet", b"")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is no regular file" in refusal(tmp_path / "pipe.jsonl")


def test_a_parquet_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", {"id": ["1"] * 5000, "completion": ["b"] * 5000})
    whole = path.read_bytes()
    assert "cannot be read as Parquet after row 0" in refusal(path, whole[:-20])
    damaged = b"PAR1" + b"\xff" * 200 + whole[204:]
    assert "cannot be read as Parquet after row 0" in refusal(path, damaged)


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    zipped = gzip.compress(GOOD * 100)
    path = tmp_path / "a.jsonl.gz"
    assert "broken gzip data" in refusal(path, zipped[: len(zipped) // 2])
    assert "line 1: broken gzip data (Not a gzipped file" in refusal(path, GOOD)
    assert "broken gzip data" in refusal(path, zipped[:20] + b"\xff\xff" + zipped[22:])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.csv"])
def test_an_empty_file_has_no_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    assert list(read_rows(tmp_path / name)) == []


def test_a_file_without_lines_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(2**30)  # sparse
    tracemalloc.start()
    assert "line 1: over 16 MiB long" in refusal(tmp_path / "a.jsonl")
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


@each_format
def test_columns_go_by_the_names_that_the_source_gives_them(name: str, tmp_path: Path) -> None:
    table = {"uid": ["7"], "question": ["2 + 2"], "answer": ["4"], "article": ["x"], "prompt": [""]}
    path = write(tmp_path, name, table)
    fields = {"id": "uid", "prompt": "question", "completion": "answer", "group": "article"}
    assert list(read_rows(path, fields)) == [Row("7", "", "2 + 2", "4", "x")]
    existing = "(there are 'uid', 'question', 'answer', 'article', 'prompt'; --fields"
    assert f"no column 'id' {existing} id=COLUMN says which holds the id" in refusal(path)
    wrong = fields | {"prompt": "qestion"}
    assert f"no column 'qestion' {existing} prompt=COLUMN" in refusal(path, fields=wrong)


def test_many_columns_are_not_all_listed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", {f"c{number}": ["x"] for number in range(40)})
    assert "'c11' and 28 more;" in refusal(path)


def test_only_fields_of_a_sample_can_be_mapped() -> None:
    assert check_fields({"id": "uid"}) == {"id": "uid"}
    with pytest.raises(ValueError, match="a sample has no 'text'; it has id, provider"):
        check_fields({"text": "body"})


def test_numbers_are_ids(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": [10**12], "provider": [5], "completion": ["a"]}), tmp_path / "a.parquet"
    )
    (row,) = read_rows(tmp_path / "a.parquet")
    assert (row.id, row.provider) == ("1000000000000", "5")


def test_an_id_stands_once_in_a_pool(tmp_path: Path) -> None:
    first = write(tmp_path, "a.csv", TABLE)
    second = write(tmp_path, "a.parquet", TABLE | {"id": ["3", "2"]})
    assert [row.id for row in read_pool([first])] == ["1", "2"]
    with pytest.raises(DataError) as caught:
        list(read_pool([first, second]))
    assert str(caught.value) == f"{second} row 2: an id that came before ('2' at {first} line 3)"
    with pytest.raises(DataError, match="'1' at"):
        list(read_pool([first, first]))


def test_skipped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"{\n" * 5 + GOOD + b'{"id": 2}\n' + b'{"id": 3, "completion": "x"}\n')
    bad_rows = BadRows()
    assert [row.id for row in read_pool([path], bad_rows=bad_rows)] == ["1", "3"]
    assert bad_rows.report() == [
        f"skipped 5 rows: not JSON: {path} line 2, {path} line 3, {path} line 4, …",
        f"skipped 1 row: an id that came before: {path} line 7",
        f"skipped 1 row: no column 'completion': {path} line 8",
    ]


def test_what_breaks_a_whole_file_is_never_skipped(tmp_path: Path) -> None:
    unclosed = tmp_path / "a.csv"
    unclosed.write_text('id,completion\n1,"a\n2,b\n')
    unmapped = write(tmp_path, "a.parquet", {"uid": ["1"], "completion": ["a"]})
    for path in (unclosed, unmapped, tmp_path / "gone.jsonl"):
        with pytest.raises(DataError):
            list(read_rows(path, bad_rows=BadRows()))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_pool(name: str, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        ids = [str(number) for number in range(rows)]
        texts = [random.randbytes(500).hex() for _ in ids]  # which do not compress to nothing
        path = write(tmp_path, name, {"id": ids, "completion": texts})
        arrow_before = arrow = pa.total_allocated_bytes()
        tracemalloc.start()
        for _ in read_pool([path]):
            arrow = max(arrow, pa.total_allocated_bytes())
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return traced + arrow - arrow_before

    peak(10)  # what the first reading imports and keeps
    small, large = peak(5_000), peak(30_000)
    assert small < 10 * 2**20
    assert large < small + 2 * 2**20  # of 25 MB more text, all in one Parquet row group


def hf_dataset(directory: Path, rows: int = 3) -> Path:
    (directory / "data").mkdir(parents=True)
    table = pa.table(
        {"uid": range(rows), "completion": ["text"] * rows, "embedding": [[0.5] * 8] * rows}
    )
    pq.write_table(table, directory / "data" / "train-00000.parquet")
    pq.write_table(table.slice(0, 1), directory / "data" / "test-00000.parquet")
    return directory


def test_a_hugging_face_dataset_is_read_by_split(tmp_path: Path) -> None:
    dataset = hf_dataset(tmp_path / "set")
    fields = {"id": "uid"}
    assert [row.id for row in read_pool([f"hf:{dataset}"], fields)] == ["0", "1", "2"]
    assert [row.id for row in read_rows(f"hf:{dataset}:test", fields)] == ["0"]
    assert [row.id for row in read_rows(f"hf:{dataset}:default:test", fields)] == ["0"]
    sources = [f"hf:{dataset}:test", f"hf:{dataset}"]
    with pytest.raises(DataError, match=r"set row 1: an id that came before .*:test row 1\)"):
        list(read_pool(sources, fields))


@pytest.mark.parametrize(
    ("suffix", "complaint"),
    [
        ("", "no column 'id' (there are 'uid', 'completion', 'embedding'; --fields id="),
        (":dev", "Bad split: dev. Available splits: ['train', 'test']"),
        (":other:train", "'other' not found. Available: ['default']"),
        (":a:b:c", "expected hf:DATASET[:SPLIT] or hf:DATASET:CONFIG:SPLIT"),
    ],
)
def test_a_wrong_hugging_face_source_is_named(tmp_path: Path, suffix: str, complaint: str) -> None:
    source = f"hf:{hf_dataset(tmp_path / 'set')}{suffix}"
    message = refusal(source)
    assert message.startswith(source)
    assert complaint in message


def test_a_missing_or_broken_hugging_face_dataset_is_named(tmp_path: Path) -> None:
    assert f"hf:{tmp_path}/gone cannot be read after row 0 (Couldn't find" in refusal(
        f"hf:{tmp_path}/gone"
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_bytes(b'{"id": "1", "completion": "\xff"}\n')
    assert "cannot be read after row 0 ('utf-8' codec" in refusal(f"hf:{tmp_path}/broken")


def test_copies_of_a_text_share_a_group(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"id": 1, "completion": "One  two"}\n{"id": 2, "completion": "one two\\n"}\n'
        b'{"id": 3, "completion": "other"}\n{"id": 4, "completion": "x", "group": "article 5"}\n'
    )
    first, second, third, fourth = read_rows(tmp_path / "a.jsonl")
    assert first.group == second.group != third.group
    assert fourth.group == "article 5"
    assert first.id == "1"


def test_a_target_is_what_its_texts_are(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    paths[0].write_bytes(GOOD)
    paths[1].write_bytes(GOOD.replace(b'"1"', b'"2"'))
    paths[2].write_bytes(GOOD.replace(b'"b"', b'"c"'))
    same, renamed, other = (rows_sha256(read_rows(path)) for path in paths)
    assert same == renamed != other


def test_a_survey_counts_the_pool_and_what_it_shares_with_targets() -> None:
    pool = [Row(str(number), "", "", text, "") for number, text in enumerate("abcA")]
    targets = {"one": [Row("x", "", "", " a\n", "g")], "none": [Row("y", "", "a", "b", "g")]}
    found = survey(iter(pool), targets)
    assert (found.size, found.shared) == (4, {"one": 2, "none": 0})
    assert survey(pool, {}).sha256 == found.sha256 != survey(pool[::-1], {}).sha256
