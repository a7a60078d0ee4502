"""Reads JSON Lines and CSV, plain or gzipped, line by line.

In: a path. Out: as `alinfik.distill.readers` says. UTF-8 with or without a byte order mark, LF or
CRLF; blank lines are no rows.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import cast

from alinfik.distill.rows import Columns, DataError, Place, Record, RowError

# A thousand times what a language model reads of one sample. Without a limit, one missing newline
# or closing quote would have the rest of a file in memory.
LONGEST_LINE_BYTES = 16 * 2**20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_JSON_ROW = 'a line looks like {"id": "1", "prompt": "", "completion": "text"}'
_JSON_ARRAY = "; `jq -c .[]` makes lines of a JSON array"


def read_jsonl(path: Path, columns: Columns) -> Iterator[Record | RowError]:
    """Yield the objects of a JSON Lines file, each with its own keys."""
    del columns  # keys cost nothing once the line is parsed
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            place = Place(str(path), "line", number)
            try:
                record = Record(place, _json_object(line, place))
            except RowError as error:
                yield error
            else:
                yield record


def _json_object(line: bytes, place: Place) -> dict[str, object]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        detail = f"{error.reason} at byte {error.start + 1} of the line"
        raise RowError(place, "not UTF-8", detail) from error
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at column {error.colno}; {_JSON_ROW}"
        detail += _JSON_ARRAY * line.startswith(b"[")
        raise RowError(place, "not JSON", detail) from error
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        raise RowError(place, "not JSON", f"{error}; {_JSON_ROW}") from error
    if not isinstance(row, dict):
        detail = _JSON_ROW + _JSON_ARRAY * isinstance(row, list)
        raise RowError(place, f"a JSON {type(row).__name__}, expected an object", detail)
    return cast("dict[str, object]", row)


def read_csv(path: Path, columns: Columns) -> Iterator[Record | RowError]:
    """Yield the rows of a CSV file (RFC 4180) under the names in its first line.

    A misplaced quote ends the reading: where the next row begins is then anyone's guess.

    Raises:
        DataError: as `read_records`; a wrong quote, or a header that is not UTF-8 or names a column
            twice.
    """
    # For the whole process; there is none for one reader. The default, 128 KiB, is a long text.
    csv.field_size_limit(LONGEST_LINE_BYTES)
    # The reader wants text before it knows where a row ends; bytes that are none stay visible.
    lines = (line.decode(errors="surrogateescape") for line in _lines(path))
    rows = csv.reader(lines, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in rows:
            place, begins = Place(str(path), "line", begins), rows.line_num + 1
            if not cells:
                continue
            fault = _not_utf8(cells, place)
            if header is None:
                if fault:
                    raise fault
                header = _header(cells, place)
                columns.check(str(path), header)
            elif fault:
                yield fault
            elif len(cells) != len(header):
                found = f"{len(cells)} where the header has {len(header)}"
                yield RowError(place, "wrong number of cells", found)
            else:
                yield Record(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        place = Place(str(path), "line", begins)
        raise DataError(
            f"{place}: broken CSV ({error}); cells with commas, quotes or line ends stand in "
            '"quotes", a quote in them is doubled, and lines end in LF or CRLF'
        ) from error


def _not_utf8(cells: list[str], place: Place) -> RowError | None:
    for number, cell in enumerate(cells, start=1):
        try:
            cell.encode()
        except UnicodeEncodeError:
            return RowError(place, "not UTF-8", f"cell {number} of the row")
    return None


def _header(cells: list[str], place: Place) -> list[str]:
    if twice := {name for name in cells if cells.count(name) > 1}:
        raise DataError(f"{place}: the header names {min(twice)!r} twice")
    return cells


def _lines(path: Path) -> Generator[bytes]:
    """Yield the lines of a file with their ends, without the byte order mark."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            chunks = iter(partial(file.readline, LONGEST_LINE_BYTES + 1), b"")
            for number, line in enumerate(chunks, start=1):
                if len(line) > LONGEST_LINE_BYTES:
                    raise DataError(
                        f"{path} line {number}: over {LONGEST_LINE_BYTES >> 20} MiB long, which is "
                        "no line of text samples"
                    )
                yield line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} line {number + 1}: broken gzip data ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
