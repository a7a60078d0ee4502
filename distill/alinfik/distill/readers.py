"""Opens a data source, whatever its format, as a stream of raw rows.

In: `FILE.jsonl`, `.json`, `.csv` (each also `.gz`), `.parquet`, or `hf:dataset[:split]`. Out: a
`Record` a row, or, for a row that cannot be had alone, the `RowError` that says why; it is yielded
rather than raised, since a generator that has raised is over, and the rows after it may be good.
What cannot be read at all raises `DataError`. Knows nothing of what makes a row a sample.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from alinfik.distill.column_formats import read_hf, read_parquet
from alinfik.distill.rows import Columns, DataError, Record, RowError
from alinfik.distill.text_formats import read_csv, read_jsonl

HF = "hf:"

_READERS: dict[str, Callable[[Path, Columns], Iterator[Record | RowError]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_jsonl,
    ".json.gz": read_jsonl,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
}


def read_records(source: str, columns: Columns) -> Iterator[Record | RowError]:
    """Yield the rows of a source in its order, holding a few thousand of them at most.

    Raises:
        DataError: it does not exist, is of no format that is known here, breaks off, or lacks a
            column that it would have for every row.
    """
    if source.startswith(HF):
        return read_hf(source, columns)
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{path} is a directory; give a file in it, or {HF}{path} for all of it")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_file():
        raise DataError(f"{path} is no regular file, and data is read more than once")
    for suffix, reader in _READERS.items():
        if path.name.lower().endswith(suffix):
            return reader(path, columns)
    raise DataError(
        f"{path}: its name should end in {', '.join(_READERS)} to say what format it is"
    )
