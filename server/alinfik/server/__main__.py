"""The command ``alinfik-server``: serves, or does what its first word says."""

import asyncio
import json
import sys
from typing import Annotated, NoReturn

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from alinfik.command import run
from alinfik.server.settings import ServerSettings
from alinfik.server.tokens import Role, new_token


class Server(ServerSettings):
    """Value training text over gRPC and, where a broker is named, over Kafka.

    Serves one bundle, the directory that `alinfik-distill train` wrote:

        alinfik-server --bundle runs/bundle

    `alinfik-server check`, with the same options, says whether they would do, and serves nothing;
    `alinfik-server token NAME --role score` makes a token for --tokens.
    """

    def cli_cmd(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        # Here, so that --help and a wrong flag answer at once.
        from alinfik.server.app import serve

        asyncio.run(serve(self))


class Check(ServerSettings):
    """Say whether a server with these options would start.

    Exits with 0 and what they come to, as a JSON object, or with 2 and why not. Verifies the
    bundle, runs its model once, reads the files of TLS and tokens, and tries the addresses, which
    a running server has taken. Asks no broker.
    """

    model_config = SettingsConfigDict(cli_prog_name="alinfik-server check")

    def cli_cmd(self) -> None:
        """Check, and print one JSON object."""
        from alinfik.server.check import check
        from alinfik.server.logs import configure_logs

        configure_logs(self.log_format)
        print(json.dumps(asyncio.run(check(self)), ensure_ascii=False))


def _name(text: str) -> str:
    if not text or text.split() != [text] or text.startswith("#"):
        raise ValueError("a name is one word and does not begin with #")
    return text


class Token(BaseSettings):
    """Make a token: prints it, which nobody can do again, and its line for the file of --tokens."""

    model_config = SettingsConfigDict(
        env_prefix="ALINFIK_",
        cli_prog_name="alinfik-server token",
        cli_kebab_case=True,
        cli_avoid_json=True,
        # The file that ALINFIK_CONFIG names is the server's.
        extra="ignore",
    )

    name: CliPositionalArg[Annotated[str, AfterValidator(_name)]] = Field(
        description="Who is to have it; logs say so."
    )
    role: list[Role] = Field(
        min_length=1,
        description="What it is good for; repeatable. score: values and explanations; quote: "
        "statements; admin: loading and switching bundles.",
    )

    def cli_cmd(self) -> None:
        """Print both."""
        token, line = new_token(self.name, list(dict.fromkeys(self.role)))
        print(f"token: {token}\nline:  {line}")


_WORDS: dict[str, type[BaseSettings]] = {"check": Check, "token": Token}


def main() -> NoReturn:
    """Entry point."""
    arguments = sys.argv[1:]
    # Not the library's sub-commands: under those, serving would need a word of its own.
    command = _WORDS.get(arguments[0]) if arguments else None
    run(command or Server, arguments[1:] if command else arguments)


if __name__ == "__main__":
    main()
