"""Ctrl-C where it must not strike just anywhere: noted, to be heeded when nothing is half done.

In: signals. Out: KeyboardInterrupt, at a place of the caller's choice. Knows nothing of what is
interrupted.
"""

import signal
from collections.abc import Generator
from contextlib import contextmanager


class Interrupts:
    """Ctrl-C, while a block runs in which it strikes nowhere but where it is let."""

    def __init__(self) -> None:
        self._pressed = False
        self._let = False

    @contextmanager
    def let(self) -> Generator[None]:
        """Here it strikes: at once, or now if it was pressed before.

        Raises:
            KeyboardInterrupt: it was pressed.
        """
        self._let = True
        try:
            if self._pressed:
                raise KeyboardInterrupt
            yield
        finally:
            self._let = False

    def press(self) -> None:
        """Note that it was pressed.

        Raises:
            KeyboardInterrupt: it strikes.
        """
        self._pressed = True
        if self._let:
            raise KeyboardInterrupt


@contextmanager
def interrupts() -> Generator[Interrupts]:
    """Keep Ctrl-C from striking between a record's send and its count.

    Pressed again, it ends the program at once.
    """
    found = Interrupts()
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        found.press()

    signal.signal(signal.SIGINT, press)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)
