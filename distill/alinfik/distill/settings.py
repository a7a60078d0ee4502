"""How every sub-command of `alinfik-distill` reads its settings."""

from pydantic_settings import SettingsConfigDict

SETTINGS = SettingsConfigDict(
    env_prefix="ALINFIK_",
    cli_prog_name="alinfik-distill",
    cli_kebab_case=True,
    cli_avoid_json=True,
    cli_hide_none_type=True,
    protected_namespaces=(),
)
