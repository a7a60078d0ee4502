"""Reads Parquet files and Hugging Face datasets, batch by batch.

In: a path, or `hf:dataset[:split]`. Out: as `alinfik.distill.readers` says, with the wanted columns
alone: a column of images or embeddings beside the text costs nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alinfik.distill.rows import Columns, DataError, Place, Record, RowError

# Some megabytes of text; larger batches are not read faster.
_BATCH_ROWS = 1024
_BUFFER_BYTES = 2**20


def read_parquet(path: Path, columns: Columns) -> Iterator[Record | RowError]:
    """Yield the rows of a Parquet file."""
    number = 0
    try:
        # A buffer makes the reader stream a row group, which may be the whole file.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns.check(str(path), names)
            wanted = [name for name in names if name in columns.wanted]
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                yield from _rows(batch, str(path), number)
                number += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet after row {number} ({error})") from error


def _rows(batch: pa.RecordBatch, source: str, before: int) -> Iterator[Record | RowError]:
    places = (Place(source, "row", before + index + 1) for index in range(batch.num_rows))
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for index, place in enumerate(places):
            yield _row(batch.slice(index, 1), place)
    else:
        for place, row in zip(places, rows, strict=True):
            yield Record(place, row)


def _row(batch: pa.RecordBatch, place: Place) -> Record | RowError:
    try:
        return Record(place, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return RowError(place, "not UTF-8", f"{error.reason} at byte {error.start + 1} of a cell")


def read_hf(source: str, columns: Columns) -> Iterator[Record | RowError]:
    """Yield the rows of a Hugging Face dataset as they arrive, none kept on disk.

    Args:
        source: `hf:DATASET`, `hf:DATASET:SPLIT` or `hf:DATASET:CONFIG:SPLIT`, the split `train`
            where none is named; DATASET is a hub id or a local directory of data files.
        columns: as `read_records`.

    Raises:
        DataError: as `read_records`.
    """
    dataset, *options = source.removeprefix("hf:").split(":")
    if not dataset or len(options) > 2:
        raise DataError(f"{source}: expected hf:DATASET[:SPLIT] or hf:DATASET:CONFIG:SPLIT")
    split = options[-1] if options else "train"
    config = options[0] if len(options) > 1 else None

    import datasets  # takes seconds, and most data are files
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    number = 0
    try:
        stream = datasets.load_dataset(dataset, config, split=split, streaming=True)
        if names := stream.column_names:
            columns.check(source, names)
            stream = stream.select_columns([name for name in names if name in columns.wanted])
        for number, row in enumerate(stream, start=1):
            yield Record(Place(source, "row", number), row)
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as error:
        raise DataError(
            f"{source} cannot be read after row {number} ({error}); it stands for "
            "hf:DATASET[:SPLIT] or hf:DATASET:CONFIG:SPLIT"
        ) from error
