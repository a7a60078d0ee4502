import importlib
import io
import sys

import pytest

from alinfik.command import progress


def test_elsewhere_than_on_a_terminal_it_is_plain_lines(capsys):
    with progress("label pool", total=3) as advance:
        advance()
        advance(2, note="gsm8k")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "label pool: 3/3 in 0 s done\n"


def test_an_unknown_length_is_left_out(capsys):
    with progress("ingest", total=None) as advance:
        advance(7)
    assert capsys.readouterr().err == "ingest: 7 in 0 s done\n"


def test_a_step_that_fails_does_not_say_done(capsys):
    with pytest.raises(RuntimeError), progress("score", total=3):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_lines_come_now_and_then_while_the_step_runs(capsys, monkeypatch):
    module = importlib.import_module("alinfik.command.progress")  # the package's name is a function
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with progress("label", total=2) as advance:
        advance(note="a")
        assert capsys.readouterr().err == "label: 1/2 in 0 s a\n"
        advance(note="b")
    assert capsys.readouterr().err == "label: 2/2 in 0 s b\nlabel: 2/2 in 0 s done\n"


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("score", total=2) as advance:
        advance(2)
    assert "2/2" in terminal.getvalue()
    assert "score" in terminal.getvalue()
