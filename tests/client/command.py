"""The `alinfik` command run by tests, and what it ended with."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

COMMAND = Path(sys.executable).parent / "alinfik"


GOOD = [
    {"id": "sum", "provider": "p", "prompt": "How many?", "completion": "48 / 2 = 24 clips."},
    {"id": "[bold]x", "provider": "q", "completion": "def add(a, b): return a + b"},
]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def on_a_terminal(*arguments, colours=False):
    """What a person sees."""
    ours, theirs = pty.openpty()
    look = {"COLORTERM": "truecolor"} if colours else {"NO_COLOR": "1"}
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"} | look
    with subprocess.Popen([COMMAND, *arguments], stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
    os.close(ours)
    return seen.decode()


def one_line(done, code):
    """The one line that a command ended with, without its name."""
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("alinfik: ")
    return last.removeprefix("alinfik: ")
