"""grpcurl, the gRPC client of the command line, built once by Go into a cache of its own."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support import skip_or_fail

# The newest that Debian 12's Go 1.19 builds.
_PACKAGE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.8.9"


def grpcurl() -> Path:
    """The program; skips the test where it is not there and Go cannot build it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = home / "alinfik" / "go" / _PACKAGE.rpartition("/")[2] / "grpcurl"
    if program.exists():
        return program
    if (go := shutil.which("go")) is None:
        skip_or_fail("go is not installed, which builds grpcurl: apt-get install golang-go")
    # Go writes the program under another name and renames it, so two sessions may do so at once.
    built = subprocess.run(
        [go, "install", _PACKAGE],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"GOBIN": str(program.parent)},
    )
    if built.returncode != 0:
        skip_or_fail(f"go could not build grpcurl: {built.stderr.strip()[-300:]}")
    return program
