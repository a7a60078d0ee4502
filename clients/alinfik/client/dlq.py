"""`alinfik dlq`: which samples could not be valued, and why; and once more into the stream."""

import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, TextIO, cast

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    CliPositionalArg,
    CliSubCommand,
)
from rich.console import Console
from rich.prompt import Confirm

from alinfik.client.connection import SETTINGS
from alinfik.client.dead_letter_output import letter_json, letter_table
from alinfik.client.dead_letter_topic import DeadLetterTopic
from alinfik.client.dead_letters import DeadLetter, Place, Selection
from alinfik.client.kafka_connection import KafkaConnection
from alinfik.client.resubmit import Plan, Survey, send, survey
from alinfik.client.visible import printable
from alinfik.command import CommandError, FailedError, progress

# What a terminal's reader looks at; the rest is for --limit, or a file.
_ROWS = 50


def _check_place(text: str) -> str:
    if not re.fullmatch(r"\d{1,10}:\d{1,18}", text, re.ASCII):
        raise ValueError("give PARTITION:OFFSET, for instance 2:1041")
    return text


def _place(text: str) -> Place:
    partition, _, offset = text.partition(":")
    return Place(int(partition), int(offset))


def _milliseconds(moment: datetime) -> int:
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    # Kafka knows no time before 1970.
    return max(0, round(zoned.timestamp() * 1000))


def _iso(moment: object) -> object:
    """Read a time as ISO 8601 has it: pydantic would take 20260501 for seconds since 1970."""
    try:
        return datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError as error:
        raise ValueError("give a time such as 2026-05-01T12:00:00Z") from error


_Place = Annotated[str, AfterValidator(_check_place)]
_Moment = Annotated[datetime, BeforeValidator(_iso)]


class DeadLetters(KafkaConnection):
    """Which topic is read."""

    kafka_dead_letters: str = Field(
        default="samples.dlq", description="Topic that the server writes dead letters to."
    )


class Filters(DeadLetters):
    """Which dead letters are meant: those that fit every option given."""

    reason: list[str] = Field(
        default=[], description="Reason, such as bad_json; repeatable. Any by default."
    )
    source_topic: str | None = Field(default=None, description="Topic that they came from.")
    source_partition: NonNegativeInt | None = Field(
        default=None, description="Partition that they came from."
    )
    since: _Moment | None = Field(
        default=None,
        description="Time of the oldest, as 2026-05-01T12:00:00Z; UTC where it names no zone. It "
        "is the sample's own time, which its dead letter keeps.",
    )
    until: _Moment | None = Field(
        default=None, description="Time that they are older than; written as that of --since."
    )
    key: list[str] = Field(
        default=[],
        description="Key, or a pattern of keys as 'word-problems-*'; repeatable. `alinfik ingest` "
        "has the sample's id as key. Any by default.",
    )
    start_at: _Place | None = Field(
        default=None,
        description="PARTITION:OFFSET of the first; those before it, and of lower partitions, are "
        "passed over. Goes on where an interrupted run stopped.",
    )
    limit: PositiveInt | None = Field(default=None, description="Take so many at most.")

    def selection(self) -> Selection:
        """The filters in the units of the records."""
        return Selection(
            reasons=self.reason,
            source_topic=self.source_topic,
            source_partition=self.source_partition,
            since=None if self.since is None else _milliseconds(self.since),
            until=None if self.until is None else _milliseconds(self.until),
            keys=self.key,
            start_at=None if self.start_at is None else _place(self.start_at),
        )


class List(Filters):
    """Show the dead letters that there are: JSON lines, or a table on a terminal.

    Where --limit does not say, the table has the first 50.
    """

    def cli_cmd(self) -> None:
        """List them."""
        with DeadLetterTopic(self.brokers(), self.kafka_dead_letters) as topic, _output() as show:
            limit = self.limit or (_ROWS if Console().is_terminal else None)
            selection = self.selection()
            with progress("read", topic.count(selection)) as advance:
                for letter in islice(topic.letters(selection, advance), limit):
                    show(letter)


class Show(DeadLetters):
    """Write a record's value to standard output byte for byte, its headers to standard error."""

    place: CliPositionalArg[_Place] = Field(
        description="PARTITION:OFFSET of the dead letter, as `alinfik dlq list` shows it."
    )

    def cli_cmd(self) -> None:
        """Show it."""
        with DeadLetterTopic(self.brokers(), self.kafka_dead_letters) as topic:
            record = topic.at(_place(self.place))
        for name, value in record.headers:
            text = (value or b"").decode(errors="backslashreplace")
            print(printable(f"{name}: {text}"), file=sys.stderr, flush=True)
        sys.stdout.buffer.write(record.value or b"")
        sys.stdout.buffer.flush()


class Resubmit(Filters):
    """Send samples once more to where the server reads them.

    Key, value, timestamp and the producer's headers are as they were. The dead letters stay where
    they are. Exits with 1 if one that was meant was not sent; standard error names each.
    """

    topic: str | None = Field(
        default=None, description="Topic to send to. The one that each came from by default."
    )
    max_attempt: PositiveInt = Field(
        default=3,
        description="Tries of one sample at most, the first included; raise it once the cause of "
        "the earlier ones is mended.",
    )
    dry_run: CliImplicitFlag[bool] = Field(
        default=False, description="Show as `alinfik dlq list` what would be sent; send nothing."
    )
    yes: CliImplicitFlag[bool] = Field(default=False, description="Send without asking first.")

    def cli_cmd(self) -> None:
        """Send them."""
        # None where whoever started us has closed it.
        asked = cast("TextIO | None", sys.stdin)
        if not (self.yes or self.dry_run or (asked and asked.isatty())):
            raise CommandError(
                "standard input is no terminal to ask on: give --yes to send, --dry-run to look"
            )
        brokers = self.brokers()
        plan = Plan(self.selection(), self.topic, self.max_attempt, self.limit)
        with DeadLetterTopic(brokers, self.kafka_dead_letters) as topic:
            if self.dry_run:
                with _output() as show:
                    found = survey(topic, plan, show)
                print(f"would resubmit: {found}", file=sys.stderr)
                return
            found = survey(topic, plan)
            # Before the first is sent: half of them sent is the worst end.
            for name in sorted(found.to):
                brokers.check_topic(name)
            if found.to:
                self._confirm(found)
                send(brokers, topic, plan, found.to.total())
        print(f"resubmitted: {found}", file=sys.stderr)
        if found.left:
            raise FailedError(f"{found.left} dead letters were not resubmitted: see above")

    def _confirm(self, found: Survey) -> None:
        console = Console(stderr=True)
        if not (self.yes or Confirm.ask(f"Resubmit {found}?", default=False, console=console)):
            raise FailedError("nothing was sent")


class Dlq(BaseSettings):
    """Look at the samples that could not be valued, and send them once more."""

    model_config = SETTINGS

    list: CliSubCommand[List] = Field(description="show which there are, and why")
    show: CliSubCommand[Show] = Field(description="write one of them to standard output")
    resubmit: CliSubCommand[Resubmit] = Field(description="send them once more")

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        CliApp.run_subcommand(self, cli_exit_on_error=False)


@contextmanager
def _output() -> Generator[Callable[[DeadLetter], None]]:
    """Takes dead letters: each is a line at once; on a terminal they become a table at the end."""
    console = Console()
    if not console.is_terminal:
        yield lambda letter: print(letter_json(letter))
        return
    rows: list[DeadLetter] = []
    yield rows.append
    if rows:
        console.print(letter_table(rows, f"{len(rows)} dead letters"))
