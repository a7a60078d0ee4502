"""`alinfik score`: a file of samples to a server, values to a file, a pipe or a terminal."""

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from alinfik.client.batches import Scored
from alinfik.client.errors import SampleError
from alinfik.client.output import scored_json, table
from alinfik.client.partial import Partial
from alinfik.client.samples import STDIN, count_samples, read_samples
from alinfik.client.sync import Client
from alinfik.client.tally import Tally
from alinfik.client.visible import printable
from alinfik.command import CommandError, progress
from alinfik.v1 import Sample, Valuation

# What a terminal's reader looks at; the rest is for a file.
ROWS = 50


def score_file(
    client: Client, file: str, *, out: Path | None, targets: Sequence[str], bundle_id: str
) -> None:
    """Value every sample of ``file``, in order and in constant memory.

    All values are by the bundle that was active at the start, though another be activated
    meanwhile.

    Args:
        client: the server to ask.
        file: as ``read_samples`` takes it.
        out: the file to write, whole or not at all, as ``Partial`` takes it; standard output where
            None.
        targets: names of the targets wanted; all where empty.
        bundle_id: the bundle to value with; the active one where empty.

    Raises:
        FailedError: some samples have no value; each was reported on standard error.
        AlinfikError: the server could not be asked.
        CommandError: the input is no file of samples, or ``out`` cannot be written.
    """
    if out is not None and out.exists() and file != STDIN and out.samefile(file):
        raise CommandError(f"--out {out} is the file of the samples; give another for the values")
    total = count_samples(file)
    bundle = client.bundle(bundle_id)
    of = [one.name for one in bundle.targets if not targets or one.name in targets]
    tally = Tally(file, "value")
    with (
        closing(read_samples(file)) as samples,
        _writing(out, bundle.bundle_id, of) as sink,
        progress("score", total) as advance,
    ):
        for has_value in sink.answered(samples):
            tally.count_answered(failed=not has_value)
            advance()
        if tally.done:
            print(f"{tally.done} samples were answered before; going on", file=sys.stderr)
        for scored in client.score_stream(samples, targets, bundle.bundle_id):
            sink.add(scored)
            outcome = scored.outcome
            tally.count(outcome if isinstance(outcome, SampleError) else None)
            advance(note=printable(scored.sample.provider))
    tally.check("above" if out is None else f"the errors in {out}")


class _Sink(Protocol):
    """Where answers go."""

    def answered(self, samples: Iterator[Sample]) -> Iterator[bool]:
        """Draw the samples that are there already; whether each has a value."""
        ...

    def add(self, scored: Scored) -> None:
        """Take the next answer."""
        ...


@contextmanager
def _writing(out: Path | None, bundle_id: str, targets: Sequence[str]) -> Generator[_Sink]:
    console = Console()
    if out is not None:
        with Partial(out, bundle_id, targets) as partial:
            yield partial
    elif console.is_terminal:
        first = _First()
        yield first
        console.print(first.table())
    else:
        yield _Pipe()


class _Pipe:
    """Standard output, which holds nothing before the first answer."""

    def answered(self, samples: Iterator[Sample]) -> Iterator[bool]:  # noqa: ARG002
        return iter(())

    def add(self, scored: Scored) -> None:
        print(scored_json(scored))


class _First(_Pipe):
    """Gathers the first ``ROWS`` valuations for a table, and counts the rest."""

    def __init__(self) -> None:
        self._shown: list[Valuation] = []
        self._count = 0

    def add(self, scored: Scored) -> None:
        if isinstance(scored.outcome, SampleError):
            return
        self._count += 1
        if self._count <= ROWS:
            self._shown.append(scored.outcome)

    def table(self) -> Table:
        more = self._count - len(self._shown)
        note = f" and {more} more rows" if more else ""
        return table(self._shown, f"--out FILE keeps the 90 % intervals{note}")
