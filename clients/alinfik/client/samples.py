"""Reads samples from JSON Lines, one at a time, and says where a line is wrong.

In: a path, plain or ``.gz``, or ``-`` for standard input. Out: ``Sample`` messages. It knows
nothing of servers or topics, nor which well-formed samples have a value: the server judges that.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from alinfik.command import CommandError
from alinfik.v1 import Sample

STDIN = "-"
_FIELDS = ("id", "provider", "prompt", "completion")
_SHAPE = 'a line looks like {"id": "1", "provider": "p", "prompt": "…", "completion": "…"}'
_JSON_NAMES: dict[type, str] = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "an array",
    str: "a string",
    type(None): "null",
}


def read_samples(file: str) -> Iterator[Sample]:
    """Read ``file`` line by line.

    Each line is a JSON object with a string ``completion`` and, where wanted, strings ``id``,
    ``provider`` and ``prompt``; null is as good as absent. A sample without an ``id`` gets its line
    number as one, so that its valuation can be told from the others. Other keys are ignored, and
    blank lines are skipped.

    Args:
        file: path of a JSONL file, gzipped where it ends in ``.gz``, or ``-`` for standard input.

    Raises:
        CommandError: the file cannot be read, or names the line that is no sample.
    """
    name = "standard input" if file == STDIN else file
    with _reading(name), _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _sample(line, number, f"{name} line {number}")


def count_samples(file: str) -> int | None:
    """How many samples ``file`` holds; None where finding out would consume it, as with a pipe.

    Raises:
        CommandError: the file cannot be read.
    """
    if file == STDIN or Path(file).is_fifo():
        return None
    with _reading(file), _open(file) as lines:
        return sum(1 for line in lines if line.strip())


@contextmanager
def _open(file: str) -> Generator[BinaryIO]:
    if file == STDIN:
        yield sys.stdin.buffer
    elif file.endswith(".gz"):
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
        raise CommandError(f"{name} is a directory; give a JSONL file in it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CommandError(f"{name} is not whole gzip data ({error})") from error
    except PermissionError as error:
        raise CommandError(f"{name}: no permission to read it") from error


def _sample(line: bytes, number: int, place: str) -> Sample:
    try:
        row = json.loads(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{place}: not UTF-8 at byte {error.start + 1} of the line; "
            "convert the file, for instance with iconv -t UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        at = f"{error.msg} at column {error.colno}"
        raise CommandError(f"{place}: not JSON ({at}); {_SHAPE}") from error
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        raise CommandError(f"{place}: not JSON ({error}); {_SHAPE}") from error
    if not isinstance(row, dict):
        raise CommandError(f"{place}: {_JSON_NAMES[type(row)]}, not an object; {_SHAPE}")
    return _from_row(cast("dict[str, object]", row), number, place)


def _from_row(row: dict[str, object], number: int, place: str) -> Sample:
    if row.get("completion") is None:
        has = ", ".join(sorted(row)[:8]) or "no keys"
        raise CommandError(f'{place}: no "completion" (it has {has}); {_SHAPE}')
    texts: dict[str, str] = {"id": str(number)}
    for field in _FIELDS:
        text = row.get(field)
        if text is None:
            continue
        if not isinstance(text, str):
            raise CommandError(f'{place}: "{field}" is {_JSON_NAMES[type(text)]}, not a string')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CommandError(
                f'{place}: "{field}" holds half of a surrogate pair, which no UTF-8 text can'
            ) from error
        texts[field] = text
    return Sample(**texts)
