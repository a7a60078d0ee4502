"""The exceptions that end a command with a message instead of a traceback."""

from typing import ClassVar


class CommandError(Exception):
    """Bad usage or bad input: the command prints the message on one line and exits with 2.

    The message says what is wrong, where, and how to mend it. Exceptions of the packages that mean
    the same (a bundle that does not verify, a data file that does not parse) derive from it.
    """

    exit_code: ClassVar[int] = 2


class FailedError(CommandError):
    """The command was right and could not be done (no server answers): one line, exit with 1."""

    exit_code = 1
