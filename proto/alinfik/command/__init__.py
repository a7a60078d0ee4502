"""What the three console commands promise alike: settings, exit codes, one-line errors, progress.

A command is a pydantic-settings class. Its fields are set by, in order of strength, flags, the
environment (``ALINFIK_…``) and a TOML file named by ``--config`` or ``ALINFIK_CONFIG``, with a
table for each sub-command. This package knows nothing of language models, servers or streams.
"""

from alinfik.command.errors import CommandError, FailedError
from alinfik.command.progress import progress
from alinfik.command.run import run

__all__ = ["CommandError", "FailedError", "progress", "run"]
