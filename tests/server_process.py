"""`alinfik-server` as its users run it: a process of its own, on ports of its own."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

COMMAND = Path(sys.executable).parent / "alinfik-server"


class ServerProcess(NamedTuple):
    """A server that is ready, and where it listens."""

    grpc: str
    metrics: str
    process: subprocess.Popen[str]
    log: list[str]
    """Its lines so far; all of them once the process has ended and its block is left."""


@contextmanager
def running_server(bundle: Path, *flags: str) -> Generator[ServerProcess]:
    """Start a server and stop it at the end; fails with its log where it does not get ready."""
    command = [COMMAND, "--bundle", bundle, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--log-format", "json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        log: list[str] = []
        try:
            for line in process.stdout:
                log.append(line)
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("message") == "ready":
                    # Read on, or a full pipe would hold the server up.
                    reader = threading.Thread(target=log.extend, args=(process.stdout,))
                    reader.start()
                    yield ServerProcess(said["grpc"], said["metrics"], process, log)
                    break
            else:
                raise AssertionError(f"the server ended:\n{''.join(log)}")
        finally:
            process.terminate()
            # A test may have killed it.
            assert process.wait(30) in (0, -signal.SIGKILL), "".join(log)
        reader.join()
