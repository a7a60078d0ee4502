"""The `alinfik` command run by tests, and what it ended with."""

from typing import NamedTuple

GOOD = [
    {"id": "sum", "provider": "p", "prompt": "How many?", "completion": "48 / 2 = 24 clips."},
    {"id": "[bold]x", "provider": "q", "completion": "def add(a, b): return a + b"},
]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def one_line(done, code):
    """The one line that a command ended with, without its name."""
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("alinfik: ")
    return last.removeprefix("alinfik: ")
