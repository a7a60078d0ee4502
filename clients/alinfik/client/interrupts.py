"""Ctrl-C where it must not strike just anywhere: noted, to be heeded when nothing is half done.

In: signals. Out: whether one has come. Knows nothing of what is interrupted.
"""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def interrupts() -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: it must not strike between a record's send and its count.

    Pressed again, it ends the program at once.
    """
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
