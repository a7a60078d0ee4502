"""Reads samples from a file, one at a time, and says where one is wrong.

In: a path, JSON Lines, CSV (either ``.gz`` too) or Parquet, or ``-`` for JSON Lines on standard
input. Out: ``Sample`` messages. It knows nothing of servers or topics, nor which well-formed
samples have a value: the server judges that.
"""

import gzip
import sys
import zlib
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from alinfik.client.rows import JSON_NAMES, Row, csv_rows, json_rows, text_lines
from alinfik.command import CommandError
from alinfik.v1 import Sample

STDIN = "-"
_FIELDS = ("id", "provider", "prompt", "completion")
# Tables number their rows; the text that is valued is text.
_MAY_BE_INTEGER = frozenset({"id", "provider"})


def read_samples(file: str) -> Generator[Sample]:
    """Read ``file`` row by row, in constant memory; it is open until the generator is closed.

    A row has a string ``completion`` and, where wanted, strings ``id``, ``provider`` and
    ``prompt``; null is as good as absent, and an integer id or provider as good as its digits. A
    sample without an ``id`` gets its line or row number as one, so that its valuation can be told
    from the others. Other columns are ignored.

    Args:
        file: path of a ``.csv`` or ``.parquet`` file, or of a JSON Lines file by any other name;
            text is gzipped where it ends in ``.gz``; ``-`` is standard input.

    Raises:
        CommandError: the file cannot be read, or names the row that is no sample.
    """
    with closing(_rows(file)) as rows:
        yield from map(_sample, rows)


def count_samples(file: str) -> int | None:
    """How many samples ``file`` holds; None where finding out would consume it, as with a pipe.

    Raises:
        CommandError: the file cannot be read.
    """
    if file == STDIN:
        return None
    with _reading(file):
        if Path(file).is_fifo():
            return None
    if _format(file) == ".parquet":
        from alinfik.client.parquet import count_rows

        with _reading(file):
            return count_rows(file)
    if _format(file) == ".csv":
        return sum(1 for _ in _rows(file))  # a row may be several lines
    with _reading(file), _open(file) as stream:
        return sum(1 for line in text_lines(stream, file) if line.strip())


def _rows(file: str) -> Generator[Row]:
    if _format(file) == ".parquet":
        from alinfik.client.parquet import column_names, parquet_rows

        with _reading(file):
            if "completion" not in (names := column_names(file)):
                raise _no_completion(file, names)
            yield from parquet_rows(file, _FIELDS)
        return
    name = "standard input" if file == STDIN else file
    rows = csv_rows if _format(file) == ".csv" else json_rows
    with _reading(name), _open(file) as stream:
        yield from rows(stream, name)


def _format(file: str) -> str:
    return Path(file.lower().removesuffix(".gz")).suffix


@contextmanager
def _open(file: str) -> Generator[BinaryIO]:
    if file == STDIN:
        # Closed by whoever started us, it is None.
        if not (stdin := cast("TextIO | None", sys.stdin)):
            raise CommandError("standard input is closed; give a file")
        yield stdin.buffer
    elif file.lower().endswith(".gz"):
        with gzip.open(file) as stream:
            yield cast("BinaryIO", stream)
    else:
        with Path(file).open("rb") as stream:
            yield stream


@contextmanager
def _reading(name: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CommandError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise CommandError(f"{name} is a directory; give a file in it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CommandError(f"{name} is not whole gzip data ({error})") from error
    except PermissionError as error:
        raise CommandError(f"{name}: no permission to read it") from error
    except OSError as error:
        raise CommandError(f"{name} cannot be read ({error.strerror or error})") from error


def _sample(row: Row) -> Sample:
    cells = row.cells
    if cells.get("completion") is None:
        if "completion" in cells:
            raise CommandError(f'{row.place}: "completion" is null; a sample has one')
        raise _no_completion(row.place, cells)
    texts: dict[str, str] = {"id": str(row.number)}
    for field in _FIELDS:
        text = cells.get(field)
        if text is None:
            continue
        if type(text) is int and field in _MAY_BE_INTEGER:
            text = str(text)
        if not isinstance(text, str):
            kind = JSON_NAMES.get(type(text), type(text).__name__)
            raise CommandError(f'{row.place}: "{field}" is {kind}, not a string')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CommandError(
                f'{row.place}: "{field}" holds half of a surrogate pair, which no UTF-8 text can'
            ) from error
        texts[field] = text
    return Sample(**texts)


def _no_completion(place: str, columns: Iterable[str]) -> CommandError:
    has = ", ".join(sorted(columns)[:8]) or "nothing"
    takes = "a sample has a completion, and may have id, provider and prompt"
    return CommandError(f'{place}: no "completion" (it has {has}); {takes}')
