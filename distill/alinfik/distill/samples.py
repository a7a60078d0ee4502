"""Reads samples from JSONL files, one row at a time.

In: a path. Out: `Row`s, or a `DataError` that names file and line. Knows nothing of tokens.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from alinfik.command import CommandError

_FIELDS = ("id", "provider", "prompt", "completion", "group")


class DataError(CommandError):
    """A data file that is absent, empty, or has a row that is no sample."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a pool or target.

    Attributes:
        id: unique within a pool.
        provider: who offers it; may be empty.
        prompt: may be empty.
        completion: holds more than white space.
        group: rows of one group are never divided between training and held-out data. The row's own
            `group` field, else a hash of the text without case and white space, so that copies stay
            together.
    """

    id: str
    provider: str
    prompt: str
    completion: str
    group: str


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file (gzip where the name ends in `.gz`).

    Raises:
        DataError: the file cannot be read, or a line is not a sample; the message names the line.
    """
    if not path.is_file():
        what = "is a directory, not a JSONL file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse(line, f"{path} line {number}")
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{path} line {number + 1}: broken gzip data ({error})") from error


def _parse(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not JSON ({error.msg} at column {error.colno}); expected an object such as "
            '{"id": "1", "provider": "p", "prompt": "", "completion": "text"}'
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a JSON {type(row).__name__}, expected an object")
    fields = cast("dict[str, object]", row)
    values: dict[str, str] = {}
    for name in _FIELDS:
        value = fields.get(name, "")
        if name in ("id", "group") and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise DataError(f"{place}: field {name!r} is {type(value).__name__}, expected a string")
        values[name] = value
    if not values["id"]:
        raise DataError(f"{place}: no field 'id'; every sample needs one of its own")
    if not values["completion"].strip():
        raise DataError(f"{place}: field 'completion' is missing or empty; it is what is valued")
    values["group"] = values["group"] or _text_group(values["prompt"], values["completion"])
    return Row(**values)


def _text_group(prompt: str, completion: str) -> str:
    text = "".join(f"{prompt}\0{completion}".lower().split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_pool(paths: Iterable[Path]) -> Iterator[Row]:
    """Yield the rows of several files, refusing an id that came before.

    Raises:
        DataError: as `read_rows`; or an id stands twice.
    """
    seen: set[str] = set()
    for path in paths:
        for row in read_rows(path):
            if row.id in seen:
                raise DataError(f"{path}: the id {row.id!r} stands twice in the pool")
            seen.add(row.id)
            yield row


def rows_sha256(rows: Iterable[Row]) -> str:
    """Hash of a set of rows: what a target is, whatever its file is called."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt, row.completion]).encode())
    return digest.hexdigest()
