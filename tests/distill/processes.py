"""`alinfik-distill` in processes that begin with torch loaded: ten seconds less for each."""

import multiprocessing
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from alinfik.command import run
from alinfik.distill.commands import Distill

_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["alinfik.distill.label", "alinfik.distill.train"])


def started(arguments: list[str], messages: Path) -> ForkServerProcess:
    """Start the command in a process of its own.

    Args:
        arguments: what stands after `alinfik-distill` on the command line.
        messages: the file that what it writes to stderr goes to.
    """
    process = _LOADED.Process(target=_main, args=(arguments, messages))
    process.start()
    return process


def _main(arguments: list[str], messages: Path) -> None:
    # Tests that a shell runs in the background ignore interrupts, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with messages.open("w") as sys.stderr:
        run(Distill, arguments)
