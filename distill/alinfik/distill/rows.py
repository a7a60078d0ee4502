"""What a sample is, and how a row of someone's file becomes one.

In: the raw fields of a row, and the place where it stands. Out: a `Row`, or a `RowError` that says
why it is none. Knows nothing of files, formats or tokens.

    CommandError
    └── DataError       a source that cannot be read or lacks a column
        └── RowError    one row of it that is no sample
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from alinfik.command import CommandError

FIELDS = ("id", "provider", "prompt", "completion", "group")
_REQUIRED = frozenset({"id", "completion"})
# What other systems number; texts are strings always.
_MAY_BE_INTEGER = frozenset({"id", "provider", "group"})
# Enough to recognise the right one in, and still a message.
_COLUMNS_NAMED = 12


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: `pool.jsonl line 7`.

    Attributes:
        source: the file or `hf:` dataset.
        unit: `line` where an editor can go there; in CSV the one on which the row begins.
        number: from 1.
    """

    source: str
    unit: Literal["line", "row"]
    number: int

    def __str__(self) -> str:
        return f"{self.source} {self.unit} {self.number}"


class DataError(CommandError):
    """A data source that cannot be read, is empty, or has no such columns."""


class RowError(DataError):
    """A row that is no sample.

    Attributes:
        place: where it stands.
        reason: what is wrong, in words that other rows with this fault share.
    """

    def __init__(self, place: Place, reason: str, detail: str = "") -> None:
        super().__init__(f"{place}: {reason}{f' ({detail})' if detail else ''}")
        self.place = place
        self.reason = reason


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


@dataclass(frozen=True, slots=True)
class Record:
    """A row as its file has it: column names and what stands under them."""

    place: Place
    fields: Mapping[str, object]


def check_fields(fields: dict[str, str]) -> dict[str, str]:
    """Return a `fields` setting as it is, where its keys are fields of a sample.

    Raises:
        ValueError: a key is none.
    """
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f"a sample has no {name!r}; it has {', '.join(FIELDS)}")
    return fields


class Columns:
    """Which column holds which field of a sample.

    Args:
        fields: a sample's field → its column. A field that is not named here stands in the column
            of its own name, or, but for `id` and `completion`, nowhere.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._columns = {name: fields.get(name, name) for name in FIELDS}
        self._required = _REQUIRED | fields.keys()

    @property
    def wanted(self) -> frozenset[str]:
        """The columns to read; others need not be."""
        return frozenset(self._columns.values())

    def check(self, source: str, columns: Collection[str]) -> None:
        """Refuse a source whose rows all have ``columns``, where one is missing.

        Raises:
            DataError: names the missing column, those that are there, and how to choose among them.
        """
        if missing := self._missing(columns):
            raise DataError(f"{source}: {missing[0]} ({missing[1]})")

    def row(self, record: Record) -> Row:
        """Make a sample of a row.

        Raises:
            RowError: a column is missing, or what stands in it is not what the field needs.
        """
        if missing := self._missing(record.fields):
            raise RowError(record.place, *missing)
        texts = {
            name: _text(record, name, column, required=name in _REQUIRED)
            for name, column in self._columns.items()
        }
        texts["group"] = texts["group"] or text_hash(texts["prompt"], texts["completion"])
        return Row(**texts)

    def _missing(self, columns: Collection[str]) -> tuple[str, str] | None:
        for name in FIELDS:
            column = self._columns[name]
            if name in self._required and column not in columns:
                detail = f"{_list(columns)}; --fields {name}=COLUMN says which holds the {name}"
                return f"no column {column!r}", detail
        return None


def _list(columns: Collection[str]) -> str:
    named = ", ".join(repr(column) for column in list(columns)[:_COLUMNS_NAMED])
    more = len(columns) - _COLUMNS_NAMED
    return f"there are {named or 'none'}{f' and {more} more' if more > 0 else ''}"


def _text(record: Record, name: str, column: str, *, required: bool) -> str:
    value = record.fields.get(column)
    if type(value) is int and name in _MAY_BE_INTEGER:
        value = str(value)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise RowError(
            record.place, f"column {column!r} is {type(value).__name__}, expected a string"
        )
    if required and not value.strip():
        raise RowError(record.place, f"column {column!r} is empty, and a sample needs its {name}")
    if "\0" in value:
        raise RowError(
            record.place, f"column {column!r} holds a NUL character, as damaged files do"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            record.place, f"column {column!r} holds half of a surrogate pair, which no text can"
        ) from error
    return value


def text_hash(prompt: str, completion: str) -> str:
    """Hash of a text without case and white space: what copies of it have in common."""
    text = "".join(f"{prompt}\0{completion}".lower().split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
