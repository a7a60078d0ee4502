"""The `alinfik` command on a terminal, as a person has it."""

import os
import pty
import subprocess
import sys
from pathlib import Path

ALINFIK = Path(sys.executable).parent / "alinfik"


def on_a_terminal(*arguments, answer=b"", columns=80, colours=False):
    """The exit code, and what a person sees who types ``answer``."""
    ours, theirs = pty.openpty()
    look = {"COLORTERM": "truecolor"} if colours else {"NO_COLOR": "1"}
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)} | look
    with subprocess.Popen(
        [ALINFIK, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        os.write(ours, answer)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
    os.close(ours)
    return process.returncode, seen.decode()
