"""The options of every sub-command that calls a server, and the client that they describe.

In: flags, environment, file. Out: a ``Client`` whose errors end the command with one line.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat
from pydantic_settings import BaseSettings, CliImplicitFlag, SettingsConfigDict

from alinfik.client.errors import (
    AlinfikError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from alinfik.client.security import Tls
from alinfik.client.sync import Client
from alinfik.command import CommandError, FailedError

SETTINGS = SettingsConfigDict(
    env_prefix="ALINFIK_", cli_kebab_case=True, cli_avoid_json=True, cli_hide_none_type=True
)


def host_and_port(address: str) -> str:
    """Check an address.

    Raises:
        ValueError: it has no port, and gRPC would quietly try 443.
    """
    if ":" not in address.rpartition("]")[2]:
        raise ValueError("give HOST:PORT, for instance 127.0.0.1:50051")
    return address


class Connection(BaseSettings):
    """Where the server is, how to reach it, and who asks."""

    model_config = SETTINGS

    address: Annotated[str, AfterValidator(host_and_port)] = Field(
        default="127.0.0.1:50051", description="HOST:PORT of alinfik-server."
    )
    timeout_seconds: PositiveFloat = Field(
        default=30.0, description="Seconds that one answer may take; raise it for a busy server."
    )
    token_file: Path | None = Field(
        default=None,
        description="File with the token, where the server asks for one. ALINFIK_TOKEN in the "
        "environment may hold the token itself.",
    )
    allow_plaintext_token: CliImplicitFlag[bool] = Field(
        default=False,
        description="Send the token without TLS to another machine too: for where something else "
        "encrypts the connection, as a service mesh does.",
    )
    tls: CliImplicitFlag[bool] = Field(
        default=False, description="Connect by TLS; any of the options below means it too."
    )
    tls_ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that may vouch for the server; give it where its "
        "certificate is by your own. The public ones by default.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of your certificate, where the server asks for one."
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file of that certificate's private key."
    )

    @contextmanager
    def client(self) -> Generator[Client]:
        """A client whose errors end the command with one line."""
        try:
            with self._connect() as client:
                yield client
        except UnauthenticatedError as error:
            raise CommandError(
                f"{error}. --token-file or ALINFIK_TOKEN says who you are"
            ) from error
        except (
            FailedPreconditionError,
            InvalidRequestError,
            NotFoundError,
            PermissionDeniedError,
        ) as error:
            raise CommandError(str(error)) from error
        except UnavailableError as error:
            tls = "" if self._tls() else ", without TLS (else --tls)"
            raise FailedError(
                f"{error}. Is alinfik-server running there, and ready{tls}?"
            ) from error
        except AlinfikError as error:
            raise FailedError(str(error)) from error

    def _connect(self) -> Client:
        try:
            return Client(
                self.address,
                self.timeout_seconds,
                token=self._token(),
                tls=self._tls(),
                allow_plaintext_token=self.allow_plaintext_token,
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.filename} cannot be read ({error.strerror})") from error

    def _token(self) -> str | None:
        # No setting of its own: a flag would show it to whoever lists processes.
        if self.token_file is None:
            return os.environ.get("ALINFIK_TOKEN") or None
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise CommandError(f"--token-file {self.token_file} is no text ({error})") from error
        if not token:
            raise CommandError(f"--token-file {self.token_file} is empty")
        return token

    def _tls(self) -> Tls | None:
        if not (self.tls or self.tls_ca or self.tls_certificate or self.tls_key):
            return None
        return Tls(self.tls_ca, self.tls_certificate, self.tls_key)
