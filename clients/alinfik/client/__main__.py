"""The `alinfik` command: parses, then calls one function for each sub-command."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    CliPositionalArg,
    CliSubCommand,
    SettingsConfigDict,
)

from alinfik.client.connection import SETTINGS, Connection
from alinfik.client.dlq import Dlq
from alinfik.client.explain import explain_file
from alinfik.client.info import show_bundles
from alinfik.client.kafka import ingest, watch
from alinfik.client.kafka_connection import KafkaConnection
from alinfik.client.samples import count_samples, read_samples
from alinfik.client.score import score_file
from alinfik.client.watch import show_valuations
from alinfik.command import CommandError, progress, run

_FILE = Field(
    description="JSONL or CSV file, .gz too, or a Parquet file; - is JSONL on standard input."
)
_TARGET = Field(
    default=[], description="Target to value for, such as gsm8k; repeatable. All by default."
)
_BUNDLE = Field(default="", description="Bundle id; the active one where not given.")


def _check_id(bundle: str) -> str:
    if "/" in bundle:
        # The server's variable of that name holds a directory.
        raise ValueError("give a bundle's id, as `alinfik info` shows it, or unset ALINFIK_BUNDLE")
    return bundle


_BundleId = Annotated[str, AfterValidator(_check_id)]


class Score(Connection):
    """Value the samples of a file.

    Prints JSON lines, or a table on a terminal. Exits with 1 if a sample has no value. With --out,
    a run that was interrupted goes on where it stopped when the same command is given again.
    """

    file: CliPositionalArg[str] = _FILE
    out: Path | None = Field(
        default=None, description="File to write: .jsonl, or a flat table in .csv or .parquet."
    )
    target: list[str] = _TARGET
    bundle: _BundleId = _BUNDLE

    def cli_cmd(self) -> None:
        """Score the file."""
        with self.client() as client:
            score_file(client, self.file, out=self.out, targets=self.target, bundle_id=self.bundle)


class Explain(Connection):
    """Show which tokens of a file's samples make their values.

    Prints a JSON line a sample, or on a terminal its text: green raises the value for the first
    target, red lowers it.
    """

    file: CliPositionalArg[str] = _FILE
    target: list[str] = _TARGET
    bundle: _BundleId = _BUNDLE

    def cli_cmd(self) -> None:
        """Explain the file."""
        with self.client() as client:
            explain_file(client, self.file, targets=self.target, bundle_id=self.bundle)


class Info(Connection):
    """Show what the server's bundles value, how, and how well."""

    # The field cannot be called json, which pydantic's models have a method for.
    model_config = SETTINGS | SettingsConfigDict(env_prefix_target="all")

    as_json: CliImplicitFlag[bool] = Field(
        default=False, validation_alias="json", description="Print one JSON line a bundle."
    )

    def cli_cmd(self) -> None:
        """Show the bundles."""
        with self.client() as client:
            show_bundles(client, as_json=self.as_json)


class Load(Connection):
    """Load a bundle beside those that are there, and print its id."""

    directory: CliPositionalArg[str] = Field(
        description="The bundle's directory, under the server's --bundle-root."
    )
    timeout_seconds: PositiveFloat = Field(
        default=300.0,
        description="Seconds that loading and warming up may take; raise it for a large bundle.",
    )

    def cli_cmd(self) -> None:
        """Load the bundle."""
        with self.client() as client:
            print(client.load_bundle(self.directory).bundle_id)


class Activate(Connection):
    """Have a loaded bundle value the requests that name none, and print what does so now."""

    bundle_id: CliPositionalArg[str] = Field(
        description='The bundle, as `alinfik info` shows it; "" with --shadow ends the shadow.'
    )
    shadow: CliImplicitFlag[bool] = Field(
        default=False,
        description="Only compare it with the active bundle, which goes on answering: try a new "
        "bundle on real requests so.",
    )

    def cli_cmd(self) -> None:
        """Activate the bundle."""
        with self.client() as client:
            now = client.activate_bundle(self.bundle_id, shadow=self.shadow)
        print(f"active {now.active_bundle_id}")
        if now.shadow_bundle_id:
            print(f"shadow {now.shadow_bundle_id}")


class Unload(Connection):
    """Forget a bundle once the requests that it has begun are answered."""

    bundle_id: CliPositionalArg[str] = Field(
        description="The bundle, as `alinfik info` shows it; not the active one."
    )

    def cli_cmd(self) -> None:
        """Unload the bundle."""
        with self.client() as client:
            client.unload_bundle(self.bundle_id)


class Bundles(BaseSettings):
    """Change the bundles of a running server, which goes on serving meanwhile; for its operator."""

    model_config = SETTINGS

    load: CliSubCommand[Load] = Field(description="load a bundle beside those that are there")
    activate: CliSubCommand[Activate] = Field(description="have a loaded bundle answer")
    unload: CliSubCommand[Unload] = Field(description="forget a bundle")

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        CliApp.run_subcommand(self, cli_exit_on_error=False)


class Ingest(KafkaConnection):
    """Send the samples of a file to a Kafka topic, from which the server values them."""

    file: CliPositionalArg[str] = _FILE
    topic: str = Field(default="samples", description="Topic that the server reads.")
    skip: NonNegativeInt = Field(
        default=0,
        description="Samples at the beginning that are not sent; a run that ends early says how "
        "many, so that the next one goes on there.",
    )

    def cli_cmd(self) -> None:
        """Send the file."""
        brokers = self.brokers()
        count = count_samples(self.file)
        if count is not None and count < self.skip:
            raise CommandError(
                f"{self.file} has {count} samples, and --skip is {self.skip}: is it the file that "
                "the run before was of?"
            )
        with progress("ingest", None if count is None else count - self.skip) as advance:
            ingest(
                read_samples(self.file),
                bootstrap=brokers.bootstrap,
                security=brokers.security,
                topic=self.topic,
                skip=self.skip,
                on_sent=advance,
            )


class Watch(KafkaConnection):
    """Show valuations as they land on a Kafka topic: JSON lines, or a table on a terminal."""

    topic: str = Field(default="valuations", description="Topic that the server writes.")
    from_beginning: CliImplicitFlag[bool] = Field(
        default=False, description="Start with the oldest valuation instead of the next."
    )
    count: PositiveInt | None = Field(
        default=None, description="Stop after so many; runs until interrupted where not given."
    )

    def cli_cmd(self) -> None:
        """Show the valuations."""
        brokers = self.brokers()
        show_valuations(
            watch(
                bootstrap=brokers.bootstrap,
                security=brokers.security,
                topic=self.topic,
                from_beginning=self.from_beginning,
                count=self.count,
            )
        )


class Alinfik(BaseSettings):
    """Values training text for language models: sends samples, shows what they are worth.

    --config FILE.toml and ALINFIK_… in the environment set any option too; flags win over both.
    """

    model_config = SETTINGS | SettingsConfigDict(cli_prog_name="alinfik")

    score: CliSubCommand[Score] = Field(description="value a file of samples over gRPC")
    explain: CliSubCommand[Explain] = Field(description="show which tokens make their values")
    ingest: CliSubCommand[Ingest] = Field(description="send a file of samples to Kafka")
    watch: CliSubCommand[Watch] = Field(description="show valuations as they land on Kafka")
    dlq: CliSubCommand[Dlq] = Field(description="look at samples that failed, send them again")
    info: CliSubCommand[Info] = Field(description="show the bundles of a server")
    bundles: CliSubCommand[Bundles] = Field(description="load, activate and unload bundles")

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        CliApp.run_subcommand(self, cli_exit_on_error=False)


def main() -> None:
    """Entry point of the `alinfik` console command."""
    run(Alinfik)


if __name__ == "__main__":
    main()
