import gzip
from pathlib import Path

import pytest

from alinfik.distill.samples import DataError, read_pool, read_rows, rows_sha256

GOOD = b'{"id": "1", "provider": "p", "prompt": "a", "completion": "b"}\n'


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    return str(caught.value)


def test_rows_are_read_plain_and_zipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD))
    plain, zipped = (list(read_rows(tmp_path / name)) for name in ("a.jsonl", "a.jsonl.gz"))
    assert plain == zipped
    assert (plain[0].id, plain[0].provider, plain[0].prompt, plain[0].completion) == tuple("1pab")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 2: not JSON"),
        (b'"text"', "line 2: a JSON str, expected an object"),
        (b'{"id": "2", "completion": "\xff"}', "line 2: not UTF-8"),
        (b'{"completion": "x"}', "line 2: no field 'id'"),
        (b'{"id": "2"}', "line 2: field 'completion' is missing or empty"),
        (b'{"id": "2", "completion": " "}', "line 2: field 'completion' is missing or empty"),
        (b'{"id": "2", "completion": 3}', "line 2: field 'completion' is int, expected a string"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    assert refusal(path, GOOD + line).startswith(f"{path} {complaint}")


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path, complaint in ((tmp_path / "gone", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(DataError, match=complaint):
            list(read_rows(path))


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    zipped = gzip.compress(GOOD * 100)
    assert "broken gzip data" in refusal(tmp_path / "a.jsonl.gz", zipped[: len(zipped) // 2])


def test_an_id_stands_once_in_a_pool(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(DataError, match="'1' stands twice"):
        list(read_pool([tmp_path / "a", tmp_path / "b"]))


def test_copies_of_a_text_share_a_group(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(
        b'{"id": 1, "completion": "One  two"}\n{"id": 2, "completion": "one two\\n"}\n'
        b'{"id": 3, "completion": "other"}\n{"id": 4, "completion": "x", "group": "article 5"}\n'
    )
    first, second, third, fourth = read_rows(tmp_path / "a")
    assert first.group == second.group != third.group
    assert fourth.group == "article 5"
    assert first.id == "1"


def test_a_target_is_what_its_texts_are(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "b").write_bytes(GOOD.replace(b'"1"', b'"2"'))
    (tmp_path / "c").write_bytes(GOOD.replace(b'"b"', b'"c"'))
    same, renamed, other = (rows_sha256(read_rows(tmp_path / name)) for name in "abc")
    assert same == renamed != other
