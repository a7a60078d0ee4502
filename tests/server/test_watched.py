from pathlib import Path

import pytest
from structlog.testing import capture_logs

from alinfik.command import CommandError
from alinfik.server.watched import Watched


class Number:
    """A file that holds a number, and how often it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads = 0

    def load(self) -> int:
        self.reads += 1
        text = self.path.read_text()
        if not text.isdigit():
            raise CommandError(f"{text!r} is no number")
        return int(text)


@pytest.fixture
def number(tmp_path: Path) -> Number:
    path = tmp_path / "number"
    path.write_text("1")
    return Number(path)


def test_files_are_read_once_for_each_change(number: Number) -> None:
    watched = Watched([number.path], number.load)
    assert [watched.current() for _ in range(3)] == [1, 1, 1]
    assert number.reads == 1
    number.path.write_text("22")
    assert [watched.current() for _ in range(3)] == [22, 22, 22]
    assert number.reads == 2


def test_what_does_not_load_is_told_once_and_changes_nothing(number: Number) -> None:
    watched = Watched([number.path], number.load)
    number.path.write_text("one")
    with capture_logs() as logs:
        assert [watched.current() for _ in range(3)] == [1, 1, 1]
    [line] = logs
    assert (line["log_level"], line["error"]) == ("warning", "'one' is no number")
    number.path.write_text("333")
    assert watched.current() == 333


def test_what_does_not_load_to_begin_with_is_an_error(number: Number) -> None:
    number.path.write_text("")
    with pytest.raises(CommandError):
        Watched([number.path], number.load)


def test_it_looks_no_more_often_than_asked(number: Number) -> None:
    watched = Watched([number.path], number.load, seconds=3600)
    number.path.write_text("22")
    assert watched.current() == 1
