"""Runs the project's own commands as a user would, and ends them."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BIN = Path(sys.executable).parent

# More than the server's own budget for draining.
_STOP_SECONDS = 30.0


class DemoError(RuntimeError):
    """A step of the demo failed; its own message stands above."""


def run(program: str, *arguments: str | Path) -> str:
    """Run one command to its end, its messages on the terminal; return its standard output."""
    command = [str(_BIN / program), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            _stop(process)
            raise
    if process.returncode != 0:
        raise DemoError(f"{program} {arguments[0]} ended with {process.returncode}")
    return output


@dataclass(frozen=True)
class Server:
    """A running `alinfik-server`."""

    grpc: str
    metrics: str


@contextmanager
def server(log: Path, *arguments: str | Path) -> Generator[Server]:
    """Run `alinfik-server` on free ports until the block ends; its log goes to a file."""
    command = [_BIN / "alinfik-server", "--log-format=json", "--listen=127.0.0.1:0"]
    command += ["--metrics=127.0.0.1:0", *arguments]
    with (
        log.open("w") as written,
        subprocess.Popen(list(map(str, command)), stderr=written) as process,
    ):
        try:
            yield _wait_until_ready(process, log)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> Server:
    with log.open() as lines:
        while True:
            ended = process.poll() is not None
            for line in lines:
                event = json.loads(line) if line.startswith("{") else {}
                if event.get("message") == "ready":
                    return Server(event["grpc"], event["metrics"])
            if ended:
                raise DemoError(f"the server ended at once:\n{log.read_text()}")
            try:
                process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def arguments_of(pairs: Sequence[tuple[str, Path]]) -> list[str]:
    """Return `--target NAME=FILE` for every pair."""
    return [part for name, path in pairs for part in ("--target", f"{name}={path}")]
