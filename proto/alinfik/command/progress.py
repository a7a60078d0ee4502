"""Progress of long steps: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Often enough to see that a step lives, seldom enough to keep a day's log readable.
SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """Tells the step's progress: ``advance(3)`` for three more units done."""

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Count ``units`` more as done; ``note`` stands beside the bar until the next call."""
        ...


@contextmanager
def progress(title: str, total: int | None) -> Generator[Advance]:
    """Show the progress of one step on standard error.

    Args:
        title: what the step does: ``label pool``.
        total: its length in units, or None where it is not known; of 0 there is nothing to show.

    Yields:
        A function that the step calls as it goes.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        ) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(units: int = 1, note: str = "") -> None:
                bar.update(task, advance=units, note=note)

            yield advance
    else:
        yield from _lines(title, total)


def _lines(title: str, total: int | None) -> Generator[Advance]:
    begun = last = time.monotonic()
    done = 0
    of = "" if total is None else f"/{total}"

    def say(note: str) -> None:
        seconds = time.monotonic() - begun
        print(
            f"{title}: {done}{of} in {seconds:.0f} s {note}".rstrip(), file=sys.stderr, flush=True
        )

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(note)

    yield advance
    if total != 0:
        say("done")
