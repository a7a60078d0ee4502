"""Reads the samples of pools and targets.

In: sources as `alinfik.distill.readers` names them. Out: `Row`s in their order, one at a time; rows
that are none end the reading or are counted. Memory does not grow with the number of rows. Knows
nothing of tokens.
"""

import hashlib
import json
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

from alinfik.distill.readers import read_records
from alinfik.distill.rows import Columns, DataError, Place, Row, RowError

__all__ = [
    "BadRows",
    "DataError",
    "Row",
    "RowError",
    "read_pool",
    "read_rows",
    "rows_sha256",
]

_PLACES_SHOWN = 3
# Holds the pages of some 200,000 ids; with more, those in the file are read through the system's
# cache, at 140,000 rows a second for a million on one core.
_SEEN_CACHE_KIB = 16 * 1024


class BadRows:
    """Counts the rows that are no samples, by what is wrong with them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: defaultdict[str, list[Place]] = defaultdict(list)

    def add(self, error: RowError) -> None:
        """Count a row."""
        self._counts[error.reason] += 1
        if len(self._first[error.reason]) < _PLACES_SHOWN:
            self._first[error.reason].append(error.place)

    def report(self) -> list[str]:
        """Say how many there were and where the first of them stand: a line a reason."""
        lines: list[str] = []
        for reason, count in self._counts.most_common():
            places = ", ".join(map(str, self._first[reason]))
            more = ", …" if count > _PLACES_SHOWN else ""
            lines.append(f"skipped {count} row{'s'[: count > 1]}: {reason}: {places}{more}")
        return lines


def read_rows(
    source: str | os.PathLike[str],
    fields: Mapping[str, str] | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[Row]:
    """Yield the samples of one source.

    Args:
        source: a file or `hf:` dataset.
        fields: a sample's field → the source's column, where their names differ.
        bad_rows: counts the rows that are no samples; without it the first of them is an error.

    Raises:
        DataError: the source cannot be read, or lacks a column.
        RowError: a row is no sample; the message names its file and line.
    """
    for _, row in _read(os.fspath(source), Columns(fields or {}), bad_rows):
        yield row


def read_pool(
    sources: Iterable[str | os.PathLike[str]],
    fields: Mapping[str, str] | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[Row]:
    """Yield the samples of several sources, where an id that came before makes a row bad.

    Args:
        sources: files and `hf:` datasets.
        fields: as `read_rows`.
        bad_rows: as `read_rows`.

    Raises:
        DataError: as `read_rows`.
        RowError: as `read_rows`; or an id stands twice, and the message names both places.
    """
    columns = Columns(fields or {})
    with closing(_Ids()) as ids:
        for source in sources:
            for place, row in _read(os.fspath(source), columns, bad_rows):
                if earlier := ids.add(row.id, place):
                    error = RowError(place, "an id that came before", f"{row.id!r} at {earlier}")
                    _refuse(error, bad_rows)
                else:
                    yield row


def _read(source: str, columns: Columns, bad_rows: BadRows | None) -> Iterator[tuple[Place, Row]]:
    for record in read_records(source, columns):
        if isinstance(record, RowError):
            _refuse(record, bad_rows)
            continue
        try:
            row = columns.row(record)
        except RowError as error:
            _refuse(error, bad_rows)
        else:
            yield record.place, row


def _refuse(error: RowError, bad_rows: BadRows | None) -> None:
    if bad_rows is None:
        raise error
    bad_rows.add(error)


class _Ids:
    """The ids seen so far, and where each stands.

    An SQLite database without a name: it lives in a bounded cache and spills to a temporary file
    that is gone with it, so that a pool of any size takes 16 MiB of memory and one or two hundred
    bytes of disk a row. A dict of 16-byte digests would take 140 bytes of memory a row.
    """

    def __init__(self) -> None:
        # A reader may be handed from thread to thread; only one at a time can run it.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{_SEEN_CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE seen (id TEXT PRIMARY KEY, source TEXT, unit TEXT, number INTEGER) "
            "WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def add(self, identity: str, place: Place) -> Place | None:
        """Remember an id, or return where it stood before.

        Raises:
            DataError: the temporary file cannot grow.
        """
        try:
            inserted = self._database.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)",
                (identity, place.source, place.unit, place.number),
            )
        except sqlite3.OperationalError as error:
            raise DataError(
                f"{place}: cannot note this row's id ({error}); point SQLITE_TMPDIR at a directory "
                "with more room"
            ) from error
        if inserted.rowcount:
            return None
        found = self._database.execute(
            "SELECT source, unit, number FROM seen WHERE id = ?", (identity,)
        )
        return Place(*found.fetchone())

    def close(self) -> None:
        """Delete the database."""
        self._database.close()


def rows_sha256(rows: Iterable[Row]) -> str:
    """Hash of a set of rows: what a target is, whatever its file is called."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt, row.completion]).encode())
    return digest.hexdigest()
