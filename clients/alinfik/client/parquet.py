"""Rows out of Parquet files and into them, some at a time.

In and out: paths and rows. It alone knows pyarrow, which is imported with this module: the rest of
the client does without it.
"""

# pyarrow types its functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path

from alinfik.client.rows import Row
from alinfik.command import CommandError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise CommandError(
        "Parquet needs the package pyarrow: pip install 'alinfik[parquet]'"
    ) from error

# Some megabytes of text; larger batches are not read faster.
_READ_ROWS = 1024
_BUFFER_BYTES = 1024 * 1024
# A row group: some megabytes as Python objects, and enough to compress well.
_WRITTEN_ROWS = 8 * 1024

# What pyarrow raises of a damaged file; of one that cannot be opened, an OSError with its number.
_DAMAGE = (pa.ArrowException, UnicodeDecodeError, OSError)

_TYPES = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}


def parquet_rows(file: str, columns: Collection[str]) -> Iterator[Row]:
    """Yield the rows of a Parquet file, with those of ``columns`` that it has.

    Raises:
        CommandError: it is no Parquet file, or a damaged one.
        OSError: it cannot be opened.
    """
    number = 0
    try:
        # A buffer makes the reader stream a row group, which may be the whole file.
        with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
            wanted = [name for name in table.schema_arrow.names if name in columns]
            for batch in table.iter_batches(_READ_ROWS, columns=wanted):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"{file} row {number}", number, cells)
    except _DAMAGE as error:
        raise _damaged(error, f"{file} cannot be read as Parquet after row {number}") from error


def column_names(file: str) -> list[str]:
    """What the columns of a Parquet file are called.

    Raises:
        CommandError: it is no Parquet file.
        OSError: it cannot be opened.
    """
    try:
        return pq.read_schema(file).names
    except _DAMAGE as error:
        raise _damaged(error, f"{file} cannot be read as Parquet") from error


def count_rows(file: str) -> int:
    """How many rows a Parquet file has, by its own word.

    Raises:
        CommandError: it is no Parquet file.
        OSError: it cannot be opened.
    """
    try:
        return pq.read_metadata(file).num_rows
    except _DAMAGE as error:
        raise _damaged(error, f"{file} cannot be read as Parquet") from error


def _damaged(error: Exception, fault: str) -> Exception:
    """What to raise."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return CommandError(f"{fault} ({error})")


def write_parquet(rows: Iterable[dict[str, object]], columns: dict[str, type], out: Path) -> None:
    """Write a table.

    Args:
        rows: by column; an absent one is null.
        columns: the type of each, in order.
        out: the file.
    """
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    rest = iter(rows)
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        while some := list(islice(rest, _WRITTEN_ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
