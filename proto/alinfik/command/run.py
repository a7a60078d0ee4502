"""Runs a command: reads its settings, calls it, and turns what it raises into an exit code."""

import errno
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsError

from alinfik.command.errors import CommandError
from alinfik.command.file import subcommands, with_values

# How pydantic-settings says that a variable is no JSON where a list is wanted.
_OF_ENVIRONMENT = re.compile(r'for field "(\w+)" from source "EnvSettingsSource"')

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(settings: type[BaseSettings], argv: Sequence[str] | None = None) -> NoReturn:
    """Build ``settings`` from flags, environment and file, run its ``cli_cmd`` and exit.

    Args:
        settings: the command, a class with a ``cli_cmd`` method or sub-commands that have one.
        argv: the arguments after the program's name; the process's own by default.

    Exit codes are 0 done, 2 bad usage or input and 1 a FailedError (one line on standard error
    each), 130 interrupted, and 1, with a traceback, for anything else: that is a defect, and the
    traceback is what to report.
    """
    program = str(settings.model_config.get("cli_prog_name") or Path(sys.argv[0]).name)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, config = _take_config(arguments)
        CliApp.run(with_values(settings, _read(config)) if config else settings, cli_args=arguments)
        # Here, where a reader that has left is no error; at the exit it would be one.
        sys.stdout.flush()
    except CommandError as error:
        _fail(program, str(error), error.exit_code)
    except SettingsError as error:
        # Its first line says what is wrong; the help of the command may follow.
        reason, _, usage = str(error).removeprefix("Error: ").partition("\n")
        print(usage, end="\n" * bool(usage), file=sys.stderr)
        _fail(program, _of_environment(reason, settings) or reason)
    except ValidationError as error:
        _fail(program, _describe(error, settings))
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nothing more to say, nor anyone to hear it.
        _forget_output()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _forget_output()
        _fail(program, f"{error.filename or 'what it writes'}: {error.strerror}", 1)
    sys.exit(0)


def _forget_output() -> None:
    """What is left of standard output goes nowhere: at the exit it would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(program: str, message: str, exit_code: int = CommandError.exit_code) -> NoReturn:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(exit_code)


def _take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Split ``--config FILE`` off: it decides how the other arguments are read."""
    named = os.environ.get("ALINFIK_CONFIG")
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            named = next(remaining, None)
            if named is None:
                raise CommandError("--config needs the path of a TOML file")
        elif argument.startswith("--config="):
            named = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    if not named:
        return rest, None
    if not Path(named).is_file():
        raise CommandError(f"--config {named}: no such file")
    return rest, Path(named)


def _read(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"--config {config}: not TOML ({error})") from error


def _describe(error: ValidationError, settings: type[BaseSettings]) -> str:
    """Say every wrong setting by the flag that sets it."""
    parts: list[str] = []
    for item in error.errors(include_url=False):
        place = ".".join(_within_subcommand([str(part) for part in item["loc"]], settings))
        flag = "--" + place.replace("_", "-") if place else "settings"
        if item["type"] == "missing":
            parts.append(f"{flag} is required")
        elif item["type"] == "extra_forbidden":  # flags of no setting have not come this far
            parts.append(f"the configuration file sets {place}, which is no setting here")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            said = f"{flag}: {reason} (got {item['input']!r})"
            parts.append(_of_environment(reason, settings) or said)
    return "; ".join(parts) + ". See --help."


def _of_environment(reason: str, settings: type[BaseSettings]) -> str | None:
    """Say which variable is no JSON where a list is wanted, if that is the reason."""
    if not (named := _OF_ENVIRONMENT.search(reason)):
        return None
    name = str(settings.model_config.get("env_prefix", "")) + named[1].upper()
    return f'{name} in the environment is a list; write ["one", "two"]'


def _within_subcommand(loc: list[str], settings: type[BaseSettings]) -> list[str]:
    """Leave out which sub-command a setting is of, and of which sub-command that is."""
    if loc and (command := subcommands(settings).get(loc[0])):
        return _within_subcommand(loc[1:], command)
    return loc
