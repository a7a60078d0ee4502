"""Reads rows from JSON Lines and CSV, one at a time, and says where one is broken.

In: the bytes of a file. Out: rows as they stand there, with their places. It knows nothing of what
a sample is.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO, NamedTuple, cast

from alinfik.command import CommandError

# Eight times what a request takes. Without a limit, one missing newline or closing quote would have
# the rest of a file in memory.
LONGEST_LINE_BYTES = 16 * 1024 * 1024

_SHAPE = 'a line looks like {"id": "1", "provider": "p", "prompt": "…", "completion": "…"}'
JSON_NAMES: dict[type, str] = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "an array",
    str: "a string",
    type(None): "null",
}


class Row(NamedTuple):
    """A row by its columns; null is as good as absent."""

    place: str
    """The file and where in it: ``pool.jsonl line 7``."""
    number: int
    """That line, or row of a table, from 1."""
    cells: Mapping[str, object]


def json_rows(stream: BinaryIO, name: str) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; blank lines are none.

    Raises:
        CommandError: names the line that is no object.
    """
    for number, line in enumerate(text_lines(stream, name), 1):
        if line.strip():
            place = f"{name} line {number}"
            yield Row(place, number, _object(line, place))


def csv_rows(stream: BinaryIO, name: str) -> Iterator[Row]:
    """Yield the rows of a CSV file (RFC 4180) under the names in its first line.

    An empty cell is null, but for a completion: that one is for the server to refuse.

    Raises:
        CommandError: names the line where the file is no CSV, or the row with too few cells.
    """
    # For the whole process; there is none for one reader. The default, 128 KiB, is a long text.
    csv.field_size_limit(LONGEST_LINE_BYTES)
    numbered = enumerate(text_lines(stream, name), 1)
    reader = csv.reader((_text(line, f"{name} line {n}") for n, line in numbered), strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                raise CommandError(
                    f"{name} line {number}: {len(cells)} cells where the header has {len(header)}"
                )
            row = zip(header, cells, strict=True)
            filled = {key: cell for key, cell in row if cell or key == "completion"}
            yield Row(f"{name} line {number}", number, filled)
    except csv.Error as error:
        raise CommandError(
            f"{name} line {begins}: broken CSV ({error}); cells with commas, quotes or line ends "
            'stand in "quotes", and a quote in them is doubled'
        ) from error


def text_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield a file's lines, the mark before the first left out.

    Raises:
        CommandError: names the line that is longer than ``LONGEST_LINE_BYTES``.
    """
    chunks = iter(partial(stream.readline, LONGEST_LINE_BYTES + 1), b"")
    for number, line in enumerate(chunks, 1):
        if len(line) > LONGEST_LINE_BYTES:
            most = f"{LONGEST_LINE_BYTES >> 20} MiB"
            raise CommandError(f"{name} line {number}: over {most} long, which no sample's line is")
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{place}: not UTF-8 at byte {error.start + 1} of the line; "
            "convert the file, for instance with iconv -t UTF-8"
        ) from error


def _object(line: bytes, place: str) -> dict[str, object]:
    text = _text(line, place)
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{error.msg} at column {error.colno}"
        raise CommandError(f"{place}: not JSON ({at}); {_SHAPE}") from error
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        raise CommandError(f"{place}: not JSON ({error}); {_SHAPE}") from error
    if not isinstance(row, dict):
        raise CommandError(f"{place}: {JSON_NAMES[type(row)]}, not an object; {_SHAPE}")
    return cast("dict[str, object]", row)
