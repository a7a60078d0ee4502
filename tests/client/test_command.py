"""The `alinfik` command as its users run it: a real server, exit codes and messages."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from alinfik.client.__main__ import Alinfik
from alinfik.command import run
from tests.client.odd_server import abort, odd_server, valued

COMMAND = Path(sys.executable).parent / "alinfik"
GOOD = [
    {"id": "sum", "provider": "p", "prompt": "How many?", "completion": "48 / 2 = 24 clips."},
    {"id": "[bold]x", "provider": "q", "completion": "def add(a, b): return a + b"},
]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def alinfik(capsys, monkeypatch):
    """Runs the command in this process, which saves a second a time."""

    def alinfik(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as exit_:
            run(Alinfik, [str(argument) for argument in arguments])
        return Done(exit_.value.code, *capsys.readouterr())

    return alinfik


def on_a_terminal(*arguments):
    """What a person sees."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    with subprocess.Popen([COMMAND, *arguments], stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
    os.close(ours)
    return seen.decode()


@pytest.fixture
def pool(tmp_path):
    def pool(*rows):
        path = tmp_path / "pool.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return pool


def one_line(done, code):
    """The one line that a command ended with, without its name."""
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("alinfik: ")
    return last.removeprefix("alinfik: ")


def test_score_writes_a_json_line_a_sample(alinfik, pool, address):
    done = alinfik("score", pool(*GOOD), "--address", address)
    assert done.returncode == 0
    valuations = [json.loads(line) for line in done.stdout.splitlines()]
    assert [valuation["sample_id"] for valuation in valuations] == ["sum", "[bold]x"]
    assert {"target", "value", "lower", "upper", "percentile"} == set(valuations[0]["values"][0])
    assert valuations[0]["truncated"] is False


def test_score_reads_standard_input_and_the_environment(alinfik, address, monkeypatch):
    monkeypatch.setenv("ALINFIK_ADDRESS", address)
    done = alinfik("score", "-", "--target", "mbpp", stdin=json.dumps(GOOD[0]))
    assert done.returncode == 0
    [value] = json.loads(done.stdout)["values"]
    assert value["target"] == "mbpp"


def test_score_writes_the_file_whole(alinfik, pool, address, tmp_path):
    out = tmp_path / "values.jsonl"
    done = alinfik("score", pool(*GOOD), "--address", address, "--out", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("score: 2/2 in ")
    assert len(out.read_text().splitlines()) == 2


def test_score_leaves_no_file_where_it_could_not_finish(alinfik, pool, address, tmp_path):
    out = tmp_path / "values.jsonl"
    out.write_text("of an earlier run")
    broken = pool(*GOOD, "{")
    done = alinfik("score", broken, "--address", address, "--out", out)
    assert one_line(done, 2).startswith(f"{broken} line 3: not JSON (")
    assert out.read_text() == "of an earlier run"
    assert {path.name for path in tmp_path.iterdir()} == {"pool.jsonl", "values.jsonl"}


def test_score_reports_each_sample_without_a_value(alinfik, pool, address, tmp_path):
    out = tmp_path / "values.jsonl"
    file = pool(GOOD[0], {"id": "blank", "completion": " "}, {"completion": ""}, GOOD[1])
    done = alinfik("score", file, "--address", address, "--out", out)
    assert one_line(done, 1) == f"2 of 4 samples of {file} have no value: see above"
    first, second, *_ = done.stderr.splitlines()
    assert first.startswith(
        f"{file}: sample no. 2 (id 'blank'): INVALID_ARGUMENT: completion is empty"
    )
    assert second.startswith(f"{file}: sample no. 3 (id '3'): INVALID_ARGUMENT: completion")
    assert len(out.read_text().splitlines()) == 2


def test_score_shows_a_table_on_a_terminal(pool, address):
    seen = on_a_terminal("score", str(pool(*GOOD)), "--address", address)
    assert "2/2" in seen
    for text in ("gsm8k", "mbpp", "%ile", "sum", "[bold]x"):
        assert text in seen


def test_an_unreachable_server_is_one_line_with_its_address(alinfik, pool):
    with odd_server() as address:
        pass
    for command in (["score", pool(*GOOD)], ["info"]):
        line = one_line(alinfik(*command, "--address", address), 1)
        assert line.startswith(f"{address}: ")
        assert line.endswith("Is alinfik-server running there, and ready?")


def test_an_unknown_target_or_bundle_is_one_line(alinfik, pool, address):
    score = ("score", pool(*GOOD), "--address", address)
    assert one_line(alinfik(*score, "--target", "x"), 2) == "no target 'x'; there is gsm8k, mbpp"
    assert one_line(alinfik(*score, "--bundle", "x"), 2).startswith("no bundle 'x'; there is ")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--address", "localhost"], "--address: give HOST:PORT, for instance 127.0.0.1:50051"),
        (["--timeout-seconds", "0"], "--timeout-seconds: Input should be greater than 0"),
        (["--out", "/no/such/folder/x"], "--out /no/such/folder/x: cannot be written (No such"),
        (["--out", "/tmp"], "--out /tmp is a directory; give a file in it"),  # noqa: S108
    ],
)
def test_a_wrong_flag_is_one_line(alinfik, pool, address, flags, says):
    done = alinfik("score", pool(*GOOD), "--address", address, *flags)
    assert one_line(done, 2).startswith(says)


def test_a_missing_file_is_one_line(alinfik):
    assert one_line(alinfik("score", "/no/pool.jsonl"), 2) == "/no/pool.jsonl: no such file"
    done = alinfik("ingest", "/no/pool.jsonl", "--kafka-bootstrap", "127.0.0.1:1")
    assert one_line(done, 2) == "/no/pool.jsonl: no such file"


def test_an_unreachable_broker_is_one_line(alinfik, pool):
    line = one_line(alinfik("ingest", pool(*GOOD), "--kafka-bootstrap", "127.0.0.1:1"), 1)
    assert "127.0.0.1:1" in line


def test_no_subcommand_is_2_with_the_help(alinfik):
    done = alinfik()
    assert (done.returncode, done.stdout) == (2, "")
    for name in ("score", "ingest", "watch", "info"):
        assert f"\n    {name} " in done.stderr


def test_info_shows_each_bundle(alinfik, address):
    done = alinfik("info", "--address", address)
    assert done.returncode == 0
    shown = ("(active)", "gsm8k", "mbpp", "nats per unit learning rate", "token limit", "Spearman")
    for text in shown:
        assert text in done.stdout


def test_info_as_json_is_the_manifest(alinfik, address):
    done = alinfik("info", "--address", address, "--json")
    [line] = done.stdout.splitlines()
    shown = json.loads(line)
    assert shown["active"] is True
    assert [target["name"] for target in shown["bundle"]["targets"]] == ["gsm8k", "mbpp"]


def test_a_lost_server_in_mid_stream_leaves_no_file(alinfik, pool, tmp_path):
    def score_stream(requests, context):
        yield valued(next(requests))
        abort(context, grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    out = tmp_path / "values.jsonl"
    with odd_server(score_stream=score_stream) as address:
        rows = [GOOD[0]] * 200
        done = alinfik("score", pool(*rows), "--address", address, "--out", out)
    assert one_line(done, 1).startswith(f"{address}: the server is stopping")
    assert not out.exists()
