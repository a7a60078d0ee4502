"""Shows dead letters: a JSON line for programs, a table for people.

What stands in a record is anybody's: on a terminal no byte of it moves the cursor.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from rich.table import Table
from rich.text import Text

from alinfik.client.dead_letters import DeadLetter
from alinfik.client.visible import printable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def letter_json(letter: DeadLetter) -> str:
    """One line: all of a dead letter but its value and its headers."""
    topic, place = letter.source or (None, None)
    line = {
        "partition": letter.place.partition,
        "offset": letter.place.offset,
        "time": _time(letter.timestamp),
        "reason": letter.reason,
        "error": letter.error,
        "source_topic": topic,
        "source_partition": None if place is None else place.partition,
        "source_offset": None if place is None else place.offset,
        "attempt": letter.attempt,
        "key": None if letter.key is None else letter.key_text,
        "size": letter.size,
        "value_left_out": letter.left_out_bytes is not None,
    }
    return json.dumps(line, ensure_ascii=False)


def letter_table(letters: Iterable[DeadLetter], caption: str) -> Table:
    """One row a dead letter; its place is what ``show`` and ``--start-at`` take."""
    shown = Table(caption=caption, caption_justify="left")
    shown.add_column("place", justify="right", no_wrap=True)
    shown.add_column("time (UTC)")
    shown.add_column("reason", overflow="fold")
    shown.add_column("error", overflow="fold", ratio=1)
    shown.add_column("source", overflow="fold")
    shown.add_column("try", justify="right")
    shown.add_column("key", overflow="fold")
    shown.add_column("bytes", justify="right")
    for letter in letters:
        topic, place = letter.source or ("", "")
        cells = [
            str(letter.place),
            _time(letter.timestamp)[:19].replace("T", " "),
            letter.reason,
            letter.error,
            f"{topic} {place}",
            str(letter.attempt),
            letter.key_text,
            str(letter.size),
        ]
        shown.add_row(*(Text(printable(cell)) for cell in cells))
    return shown


def _time(timestamp: int) -> str:
    """ISO 8601 in UTC; empty where the record has none, or one that no calendar has."""
    try:
        moment = _EPOCH + timedelta(milliseconds=timestamp)
    except OverflowError:
        return ""
    return "" if timestamp < 0 else moment.isoformat(timespec="milliseconds")
