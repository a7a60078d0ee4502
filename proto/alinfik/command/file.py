"""Puts a configuration file's values under a command's flags and environment.

In: a settings class and what its TOML file held. Out: a class of the same name, fields and help,
where those values stand if neither flag nor environment gives one. A table with a sub-command's
name is that sub-command's own.
"""

from typing import Any, get_args

from pydantic import create_model
from pydantic_settings import (
    BaseSettings,
    CliSubCommand,
    InitSettingsSource,
    PydanticBaseSettingsSource,
)

from alinfik.command.errors import CommandError

_SUBCOMMAND_MARK = get_args(CliSubCommand[object])[1]


def subcommands(settings: type[BaseSettings]) -> dict[str, type[BaseSettings]]:
    """The sub-commands of a command, by name; nothing for a command that has none."""
    return {
        name: get_args(field.annotation)[0]  # of the union with None
        for name, field in settings.model_fields.items()
        if _SUBCOMMAND_MARK in field.metadata
    }


def with_values(settings: type[BaseSettings], values: dict[str, Any]) -> type[BaseSettings]:
    """Derive a class that reads ``values`` last.

    A sub-command reads its table in its own class: given to the parent, a table would select its
    sub-command, and would outweigh the environment, which a sub-command reads for itself.

    Raises:
        CommandError: a sub-command's name stands for something else than a table.
    """
    nested = subcommands(settings)
    for name in nested:
        if not isinstance(values.get(name, {}), dict):
            raise CommandError(f"--config: {name} is a sub-command; its settings stand in [{name}]")
    own = {name: value for name, value in values.items() if name not in nested}

    class WithValues(settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = InitSettingsSource(settings_cls, own)
            return init_settings, env_settings, dotenv_settings, file_secret_settings, file

    fields: dict[str, Any] = {
        name: (CliSubCommand[with_values(command, values.get(name, {}))], ...)
        for name, command in nested.items()
    }
    return create_model(settings.__name__, __base__=WithValues, __doc__=settings.__doc__, **fields)
