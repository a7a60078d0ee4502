"""The command ``alinfik-server``."""

import asyncio
from typing import NoReturn

from alinfik.command import run
from alinfik.server.settings import ServerSettings


class Server(ServerSettings):
    """Value training text over gRPC and, where a broker is named, over Kafka.

    Serves one bundle, the directory that `alinfik-distill train` wrote:

        alinfik-server --bundle runs/bundle
    """

    def cli_cmd(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        # Here, so that --help and a wrong flag answer at once.
        from alinfik.server.app import serve

        asyncio.run(serve(self))


def main() -> NoReturn:
    """Entry point."""
    run(Server)


if __name__ == "__main__":
    main()
