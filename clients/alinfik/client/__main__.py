"""The `alinfik` command: parses, then calls one function for each sub-command."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    CliPositionalArg,
    CliSubCommand,
    SettingsConfigDict,
)

from alinfik.client import (
    AlinfikError,
    Client,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from alinfik.client.info import show_bundles
from alinfik.client.samples import count_samples, read_samples
from alinfik.client.score import score_file
from alinfik.client.watch import show_valuations
from alinfik.command import CommandError, FailedError, progress, run

_SETTINGS = SettingsConfigDict(
    env_prefix="ALINFIK_", cli_kebab_case=True, cli_avoid_json=True, cli_hide_none_type=True
)


def _host_and_port(address: str) -> str:
    # Without a port gRPC would quietly try 443.
    if ":" not in address.rpartition("]")[2]:
        raise ValueError("give HOST:PORT, for instance 127.0.0.1:50051")
    return address


def _brokers(addresses: str) -> str:
    return ",".join(_host_and_port(address.strip()) for address in addresses.split(","))


_Address = Annotated[str, AfterValidator(_host_and_port)]
_Brokers = Annotated[str, AfterValidator(_brokers)]
_ADDRESS = Field(default="127.0.0.1:50051", description="HOST:PORT of alinfik-server.")
_TIMEOUT = Field(
    default=30.0, description="Seconds that one answer may take; raise it for a busy server."
)
_BOOTSTRAP = Field(
    default="127.0.0.1:9092", description="HOST:PORT of Kafka brokers, comma-separated."
)


class Score(BaseSettings):
    """Value the samples of a JSONL file.

    Prints JSON lines, or a table on a terminal. Exits with 1 if a sample has no value.
    """

    model_config = _SETTINGS

    file: CliPositionalArg[str] = Field(description="JSONL file, .gz too; - is standard input.")
    address: _Address = _ADDRESS
    out: Path | None = Field(default=None, description="JSONL file to write the valuations to.")
    target: list[str] = Field(
        default=[], description="Target to value for, such as gsm8k; repeatable. All by default."
    )
    bundle: str = Field(default="", description="Bundle id; the active one where not given.")
    timeout_seconds: PositiveFloat = _TIMEOUT

    def cli_cmd(self) -> None:
        """Score the file."""
        with _server(self.address, self.timeout_seconds) as client:
            score_file(client, self.file, out=self.out, targets=self.target, bundle_id=self.bundle)


class Info(BaseSettings):
    """Show what the server's bundles value, how, and how well."""

    # The field cannot be called json, which pydantic's models have a method for.
    model_config = _SETTINGS | SettingsConfigDict(env_prefix_target="all")

    address: _Address = _ADDRESS
    timeout_seconds: PositiveFloat = _TIMEOUT
    as_json: CliImplicitFlag[bool] = Field(
        default=False, validation_alias="json", description="Print one JSON line a bundle."
    )

    def cli_cmd(self) -> None:
        """Show the bundles."""
        with _server(self.address, self.timeout_seconds) as client:
            show_bundles(client, as_json=self.as_json)


class Ingest(BaseSettings):
    """Send the samples of a JSONL file to a Kafka topic, from which the server values them."""

    model_config = _SETTINGS

    file: CliPositionalArg[str] = Field(description="JSONL file, .gz too; - is standard input.")
    kafka_bootstrap: _Brokers = _BOOTSTRAP
    topic: str = Field(default="samples", description="Topic that the server reads.")

    def cli_cmd(self) -> None:
        """Send the file."""
        from alinfik.client.kafka import ingest  # only here is kafka-python needed

        with progress("ingest", count_samples(self.file)) as advance:
            ingest(
                read_samples(self.file),
                bootstrap=self.kafka_bootstrap,
                topic=self.topic,
                on_sent=advance,
            )


class Watch(BaseSettings):
    """Show valuations as they land on a Kafka topic: JSON lines, or a table on a terminal."""

    model_config = _SETTINGS

    kafka_bootstrap: _Brokers = _BOOTSTRAP
    topic: str = Field(default="valuations", description="Topic that the server writes.")
    from_beginning: CliImplicitFlag[bool] = Field(
        default=False, description="Start with the oldest valuation instead of the next."
    )
    count: PositiveInt | None = Field(
        default=None, description="Stop after so many; runs until interrupted where not given."
    )

    def cli_cmd(self) -> None:
        """Show the valuations."""
        from alinfik.client.kafka import watch  # only here is kafka-python needed

        show_valuations(
            watch(
                bootstrap=self.kafka_bootstrap,
                topic=self.topic,
                from_beginning=self.from_beginning,
                count=self.count,
            )
        )


class Alinfik(BaseSettings):
    """Values training text for language models: sends samples, shows what they are worth.

    --config FILE.toml and ALINFIK_… in the environment set any option too; flags win over both.
    """

    model_config = _SETTINGS | SettingsConfigDict(cli_prog_name="alinfik")

    score: CliSubCommand[Score] = Field(description="value a file of samples over gRPC")
    ingest: CliSubCommand[Ingest] = Field(description="send a file of samples to Kafka")
    watch: CliSubCommand[Watch] = Field(description="show valuations as they land on Kafka")
    info: CliSubCommand[Info] = Field(description="show the bundles of a server")

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        CliApp.run_subcommand(self, cli_exit_on_error=False)


@contextmanager
def _server(address: str, timeout_seconds: float) -> Generator[Client]:
    """A client whose errors end the command with one line."""
    try:
        with Client(address, timeout_seconds) as client:
            yield client
    except (InvalidRequestError, NotFoundError) as error:
        raise CommandError(str(error)) from error
    except UnavailableError as error:
        raise FailedError(f"{error}. Is alinfik-server running there, and ready?") from error
    except AlinfikError as error:
        raise FailedError(str(error)) from error


def main() -> None:
    """Entry point of the `alinfik` console command."""
    run(Alinfik)


if __name__ == "__main__":
    main()
