"""Says so where a disk is full, and leaves no half of a file behind."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from alinfik.command import CommandError, FailedError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors gives no number, but in its message.
_FULL_IN_WORDS = tuple(f"os error {number}" for number in _FULL)


class DiskFullError(FailedError):
    """A file that there is no room for; what was written before it is whole."""


def cache_directory() -> Path:
    """Where converted models and other derived files are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "alinfik"


def remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed while they wrote a file left beside it."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)


def check_place(path: Path, kind: Literal["file", "directory"]) -> None:
    """See before hours of work that ``path`` can be written after them; nothing is made.

    Raises:
        CommandError: it cannot.
    """
    place = path.absolute()
    try:
        there = next(one for one in (place, *place.parents) if one.exists())
        wanted = there.is_file() if there == place and kind == "file" else there.is_dir()
    except OSError as error:
        raise CommandError(f"{path}: cannot be reached ({error.strerror})") from error
    if not wanted or not os.access(there, os.W_OK):
        what = kind if there == place else "directory"
        raise CommandError(f"{path}: {there} is no {what} that may be written to")


@contextmanager
def new_file(path: Path) -> Generator[Path]:
    """Write a file under a temporary name beside it, renamed once it is whole.

    Yields:
        The temporary name.

    Raises:
        DiskFullError: there is no room for it.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        # Or a power cut could leave the name and not what it stands for.
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.rename(path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in _FULL and not any(
            words in str(error) for words in _FULL_IN_WORDS
        ):
            raise
        raise DiskFullError(
            f"no room on the disk for {path}; make some and run the same command again, which goes "
            "on where this one stopped"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
