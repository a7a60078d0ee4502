"""Runs a command: reads its settings, calls it, and turns what it raises into an exit code."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from alinfik.command.errors import CommandError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(settings: type[BaseSettings], argv: Sequence[str] | None = None) -> NoReturn:
    """Build ``settings`` from flags, environment and file, run its ``cli_cmd`` and exit.

    Args:
        settings: the command, a class with a ``cli_cmd`` method or sub-commands that have one.
        argv: the arguments after the program's name; the process's own by default.

    Exit codes are 0 done, 2 bad usage or input (one line on standard error), 130 interrupted, and
    1, with a traceback, for anything else: that is a defect, and the traceback is what to report.
    """
    program = str(settings.model_config.get("cli_prog_name") or Path(sys.argv[0]).name)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, config = _take_config(arguments)
        CliApp.run(_with_config_file(settings, config), cli_args=arguments)
    except (CommandError, SettingsError) as error:
        _fail(program, str(error))
    except ValidationError as error:
        _fail(program, _describe(error))
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nothing more to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


def _fail(program: str, message: str) -> NoReturn:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


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


def _with_config_file(settings: type[BaseSettings], config: Path | None) -> type[BaseSettings]:
    if config is None:
        return settings

    class WithConfigFile(settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = TomlConfigSettingsSource(settings_cls, config)
            return init_settings, env_settings, dotenv_settings, file_secret_settings, file

    WithConfigFile.__doc__ = settings.__doc__
    WithConfigFile.__name__ = settings.__name__
    return WithConfigFile


def _describe(error: ValidationError) -> str:
    """Say every wrong setting by the flag that sets it."""
    parts: list[str] = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        flag = "--" + place.replace("_", "-") if place else "settings"
        if item["type"] == "missing":
            parts.append(f"{flag} is required")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            parts.append(f"{flag}: {reason} (got {item['input']!r})")
    return "; ".join(parts) + ". See --help."
