"""`alinfik score`: a file of samples to a server, valuations to a file, a pipe or a terminal."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alinfik.client.errors import SampleError
from alinfik.client.output import table, to_json
from alinfik.client.samples import count_samples, read_samples
from alinfik.client.sync import Client
from alinfik.command import CommandError, FailedError, progress
from alinfik.v1 import Valuation

# What a terminal's reader looks at; the rest is for a file.
ROWS = 50


def score_file(
    client: Client, file: str, *, out: Path | None, targets: Sequence[str], bundle_id: str
) -> None:
    """Value every sample of ``file``, in order.

    Args:
        client: the server to ask.
        file: as ``read_samples`` takes it.
        out: the JSONL file to write, whole or not at all; standard output where None.
        targets: names of the targets wanted; all where empty.
        bundle_id: the bundle to value with; the active one where empty.

    Raises:
        FailedError: some samples have no value; each was reported on standard error.
        AlinfikError: the server could not be asked.
        CommandError: the input is no JSONL of samples, or ``out`` cannot be written.
    """
    done = failed = 0
    total = count_samples(file)
    with _writing(out) as write, progress("score", total) as advance:
        for sample, outcome in client.score_stream(read_samples(file), targets, bundle_id):
            done += 1
            if isinstance(outcome, SampleError):
                failed += 1
                place = f"{file}: sample no. {done} (id {outcome.sample_id!r})"
                print(f"{place}: {outcome.code.name}: {outcome.reason}", file=sys.stderr)
            else:
                write(outcome)
            advance(note=sample.provider)
    if failed:
        raise FailedError(f"{failed} of {done} samples of {file} have no value: see above")


@contextmanager
def _writing(out: Path | None) -> Generator[Callable[[Valuation], None]]:
    """Where valuations go: a file, a pipe, or a table on a terminal."""
    console = Console()
    if out is not None:
        with _renamed_when_whole(out) as write:
            yield write
    elif console.is_terminal:
        first = _First()
        yield first.add
        console.print(first.table())
    else:
        yield lambda valuation: print(to_json(valuation))


class _First:
    """Gathers the first ``ROWS`` valuations for a table, and counts the rest."""

    def __init__(self) -> None:
        self._shown: list[Valuation] = []
        self._count = 0

    def add(self, valuation: Valuation) -> None:
        self._count += 1
        if self._count <= ROWS:
            self._shown.append(valuation)

    def table(self) -> Table:
        more = self._count - len(self._shown)
        note = f" and {more} more rows" if more else ""
        return table(self._shown, f"--out FILE keeps the 90 % intervals{note}")


@contextmanager
def _renamed_when_whole(out: Path) -> Generator[Callable[[Valuation], None]]:
    if out.is_dir():
        raise CommandError(f"--out {out} is a directory; give a file in it")
    partial = out.with_name(out.name + ".partial")
    try:
        stream = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be written ({error.strerror})") from error
    try:
        with stream:
            yield lambda valuation: print(to_json(valuation), file=stream)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
