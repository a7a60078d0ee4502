"""The `alinfik` command as its users run it: a real server, exit codes and messages."""

import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from google.rpc.error_details_pb2 import BadRequest

from alinfik.client.__main__ import Alinfik
from alinfik.client.batches import SAMPLES_A_REQUEST
from alinfik.command import run
from alinfik.v1 import (
    ActivateBundleRequest,
    ActivateBundleResponse,
    BundleManifest,
    BundleSummary,
    ExplainResponse,
    Explanation,
    LoadBundleRequest,
    LoadBundleResponse,
    ScoreResponse,
    ScoreResult,
    Target,
    TargetValue,
    TokenValue,
    UnloadBundleRequest,
    UnloadBundleResponse,
    Valuation,
)
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


def on_a_terminal(*arguments, colours=False):
    """What a person sees."""
    ours, theirs = pty.openpty()
    look = {"COLORTERM": "truecolor"} if colours else {"NO_COLOR": "1"}
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"} | look
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
    assert one_line(done, 1) == f"2 of 4 samples of {file} have no value: see the errors in {out}"
    first, second, *_ = done.stderr.splitlines()
    assert first.startswith(
        f"{file}: sample no. 2 (id 'blank'): INVALID_ARGUMENT: completion is empty"
    )
    assert second.startswith(f"{file}: sample no. 3 (id '3'): INVALID_ARGUMENT: completion")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert lines[1]["error"].startswith("INVALID_ARGUMENT: completion is empty")
    piped = alinfik("score", file, "--address", address)
    assert [json.loads(line)["sample_id"] for line in piped.stdout.splitlines()] == [
        line["sample_id"] for line in lines
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_score_reads_and_writes_tables(alinfik, address, tmp_path, suffix):
    pool, out = tmp_path / f"pool.{suffix}", tmp_path / f"values.{suffix}"
    write = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
    write(pyarrow.Table.from_pylist(GOOD), pool)
    done = alinfik("score", pool, "--address", address, "--out", out, "--target", "mbpp")
    assert (done.returncode, done.stdout) == (0, "")
    read = pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table
    table = read(out)
    assert table.column_names == [
        "sample_id", "provider", "mbpp_value", "mbpp_lower", "mbpp_upper", "mbpp_percentile",
        "token_count", "truncated", "out_of_distribution_score", "out_of_distribution",
        "bundle_id", "error",
    ]  # fmt: skip
    assert table["sample_id"].to_pylist() == ["sum", "[bold]x"]
    assert {path.name for path in tmp_path.iterdir()} == {pool.name, out.name}


def test_a_killed_run_goes_on_to_the_file_of_an_undisturbed_one(pool, tmp_path):
    rows = [{"id": str(n), "provider": "p", "completion": "x" * (n % 7)} for n in range(1500)]
    file = pool(*rows)
    bundle = BundleManifest(bundle_id="b", targets=[Target(name="length")])
    asked = []
    release = threading.Event()

    def answers(stop_after=None):
        def score_stream(requests, _):
            for number, request in enumerate(requests):
                if number == stop_after:
                    release.wait(60)
                    return
                asked.extend(sample.id for sample in request.samples)
                results = [
                    ScoreResult(
                        valuation=Valuation(
                            sample_id=sample.id,
                            provider=sample.provider,
                            bundle_id=request.bundle_id,
                            values=[TargetValue(target="length", value=len(sample.completion) / 7)],
                        )
                    )
                    for sample in request.samples
                ]
                yield ScoreResponse(results=results)

        return score_stream

    def command(out, address):
        return [COMMAND, "score", file, "--address", address, "--out", out]

    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    with odd_server(score_stream=answers(), bundle=bundle) as address:
        subprocess.run(command(whole, address), check=True, capture_output=True)
    partial = tmp_path / "cut.csv.partial"
    asked.clear()
    with odd_server(score_stream=answers(stop_after=9), bundle=bundle) as address:
        with subprocess.Popen(command(cut, address), stderr=subprocess.DEVNULL) as process:
            while not partial.exists() or partial.read_bytes().count(b"\n") < 9 * SAMPLES_A_REQUEST:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        release.set()
    kept = partial.read_bytes().count(b"\n")
    assert not cut.exists()
    assert kept == 9 * SAMPLES_A_REQUEST < len(rows)
    asked.clear()
    with odd_server(score_stream=answers(), bundle=bundle) as address:
        done = subprocess.run(command(cut, address), check=True, capture_output=True, text=True)
    assert f"{kept} samples were answered before; going on" in done.stderr
    assert asked == [row["id"] for row in rows[kept:]]
    assert cut.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_a_run_under_another_bundle_is_refused(alinfik, pool, tmp_path):
    def score_stream(requests, context):
        request = next(requests)
        answer = valued(request)
        for result in answer.results:
            result.valuation.bundle_id = request.bundle_id
        yield answer
        abort(context, grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    out = tmp_path / "values.jsonl"
    score = ("score", pool(*[GOOD[0]] * 200), "--out", out, "--address")
    with odd_server(score_stream=score_stream, bundle=BundleManifest(bundle_id="old")) as address:
        done = alinfik(*score, address)
    assert one_line(done, 1).startswith(f"{address}: the server is stopping")
    assert f"{out}.partial keeps what is answered; the same command goes on" in done.stderr
    with odd_server(score_stream=score_stream, bundle=BundleManifest(bundle_id="new")) as address:
        line = one_line(alinfik(*score, address), 2)
    assert "is by bundle old, and the values would be by new now; --bundle old goes on" in line


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
        assert line.endswith(
            "Is alinfik-server running there, and ready, without TLS (else --tls)?"
        )


def test_an_unknown_target_or_bundle_is_one_line(alinfik, pool, address):
    score = ("score", pool(*GOOD), "--address", address)
    assert one_line(alinfik(*score, "--target", "x"), 2) == "no target 'x'; there is gsm8k, mbpp"
    line = one_line(alinfik(*score, "--bundle", "x"), 2)
    assert line.startswith(f"{address}: no bundle 'x'; there is ")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--address", "localhost"], "--address: give HOST:PORT, for instance 127.0.0.1:50051"),
        (["--timeout-seconds", "0"], "--timeout-seconds: Input should be greater than 0"),
        (
            ["--out", "/no/such/folder/x.csv"],
            "--out /no/such/folder/x.csv: cannot be written (No such",
        ),
        (["--out", "/tmp"], "--out /tmp is a directory; give a file in it"),  # noqa: S108
        (["--out", "x.txt"], "--out x.txt: give a file that ends in .jsonl, .csv or .parquet"),
        (["--token-file", "/no/file"], "/no/file cannot be read (No such file or directory)"),
        (["--token-file", "/dev/null"], "a token is printable ASCII without spaces, and not"),
        (["--tls-ca", "/no/file"], "/no/file cannot be read (No such file or directory)"),
        (["--tls-ca", "/dev/null"], "/dev/null is no PEM file"),
        (["--tls-key", "/dev/null"], "a TLS key needs its certificate beside it"),
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
    for command in (["ingest", pool(*GOOD)], ["watch"], ["dlq", "list"], ["dlq", "show", "0:0"]):
        line = one_line(alinfik(*command, "--kafka-bootstrap", "127.0.0.1:1"), 1)
        assert line.startswith("no Kafka broker answers at 127.0.0.1:1 (--kafka-bootstrap)")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["list", "--since", "yesterday"], "--since: Input should be a valid datetime"),
        (["list", "--start-at", "3"], "--start-at: give PARTITION:OFFSET, for instance 2:1041"),
        (["show", "3:-1"], "--place: give PARTITION:OFFSET, for instance 2:1041"),
        (["resubmit"], "standard input is no terminal to ask on: give --yes to send, --dry-run"),
        (["list", "--kafka-username", "me"], "--kafka-username is not used with --kafka-security-"),
        (
            ["list", "--kafka-security-protocol", "SASL_SSL", "--kafka-username", "me"],
            "--kafka-security-protocol SASL_SSL needs --kafka-password-file",
        ),
        (
            ["list", "--kafka-security-protocol", "SSL", "--kafka-tls-ca", "/dev/null"],
            "--kafka-tls-ca /dev/null is no PEM file that can be read",
        ),
        (["list", "--kafka-tls-key", "/dev/null"], "--kafka-tls-key is not used with --kafka-sec"),
    ],
)
def test_a_wrong_flag_for_dead_letters_is_one_line(alinfik, flags, says):
    assert one_line(alinfik("dlq", *flags), 2).startswith(says)


def test_no_subcommand_is_2_with_the_help(alinfik):
    done = alinfik()
    assert (done.returncode, done.stdout) == (2, "")
    for name in ("score", "explain", "ingest", "watch", "dlq", "info", "bundles"):
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
    assert (shown["active"], shown["shadow"]) == (True, False)
    assert [target["name"] for target in shown["bundle"]["targets"]] == ["gsm8k", "mbpp"]


def test_info_tells_the_shadow_from_the_active_bundle(alinfik):
    summaries = [
        BundleSummary(bundle_id="a", active=True),
        BundleSummary(bundle_id="b", shadow=True),
    ]
    with odd_server(summaries=summaries) as address:
        shown = alinfik("info", "--address", address).stdout
        lines = alinfik("info", "--address", address, "--json").stdout.splitlines()
    assert shown.index("(active)") < shown.index("(shadow)")
    assert [(one["active"], one["shadow"]) for one in map(json.loads, lines)] == [
        (True, False),
        (False, True),
    ]


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


def explains(request, context):
    """Halves every completion; the first half is worth 1, the second -2."""
    if not request.samples[0].completion.strip():
        bad = BadRequest.FieldViolation(field="samples[0].completion", description="is empty")
        details = BadRequest(field_violations=[bad])
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "invalid", details)
    targets = request.targets or ["gsm8k", "mbpp"]
    explanations = []
    for sample in request.samples:
        half, end = len(sample.completion) // 2, len(sample.completion)
        added, completion = TokenValue.FIELD_ADDED, TokenValue.FIELD_COMPLETION
        tokens = [
            TokenValue(field=added, values=[0.0] * len(targets)),
            TokenValue(field=completion, start=0, end=half, values=[1.0] * len(targets)),
            TokenValue(field=completion, start=half, end=end, values=[-2.0] * len(targets)),
        ]
        explanations.append(Explanation(sample_id=sample.id, targets=targets, tokens=tokens))
    return ExplainResponse(explanations=explanations)


def test_explain_prints_every_token_with_its_text(alinfik, pool):
    with odd_server(explain=explains) as address:
        file = pool({"id": "1", "completion": "añ€😀"}, {"id": "bad", "completion": " "}, GOOD[0])
        done = alinfik("explain", file, "--address", address, "--target", "mbpp")
    assert done.returncode == 1
    first, last = map(json.loads, done.stdout.splitlines())
    assert (first["sample_id"], last["sample_id"], first["targets"]) == ("1", "sum", ["mbpp"])
    assert first["tokens"] == [
        {"text": "", "field": "added", "start": 0, "end": 0, "values": [0.0]},
        {"text": "añ", "field": "completion", "start": 0, "end": 2, "values": [1.0]},
        {"text": "€😀", "field": "completion", "start": 2, "end": 4, "values": [-2.0]},
    ]
    reason, *_, summary = done.stderr.splitlines()
    assert reason == f"{file}: sample no. 2 (id 'bad'): INVALID_ARGUMENT: completion is empty"
    assert summary == f"alinfik: 1 of 3 samples of {file} have no explanation: see above"


def test_explain_shows_text_on_colours_on_a_terminal(pool):
    with odd_server(explain=explains) as address:
        seen = on_a_terminal("explain", pool(*GOOD), "--address", address, colours=True)
    assert "sum for gsm8k, strongest token 2" in seen
    assert "How many?" in seen
    assert "\x1b[30;48;2;128;255;128m48 / 2 = \x1b[0m" in seen  # half as strong, green
    assert "\x1b[30;48;2;255;0;0m24 clips.\x1b[0m" in seen


def test_explain_without_token_values_is_one_line(alinfik, pool):
    def explain(_, context):
        abort(context, grpc.StatusCode.FAILED_PRECONDITION, "the bundle has no token values")

    with odd_server(explain=explain) as address:
        line = one_line(alinfik("explain", pool(*GOOD), "--address", address), 2)
    assert line == f"{address}: the bundle has no token values"


def test_bundles_are_loaded_activated_and_unloaded(alinfik):
    asked = []

    def load(request, _):
        asked.append(request)
        return LoadBundleResponse(bundle=BundleSummary(bundle_id="new"))

    def activate(request, _):
        asked.append(request)
        shadow = request.bundle_id if request.shadow else ""
        return ActivateBundleResponse(active_bundle_id="a", shadow_bundle_id=shadow)

    def unload(request, context):
        asked.append(request)
        if request.bundle_id == "a":
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, "a is the active bundle")
        return UnloadBundleResponse()

    with odd_server(load=load, activate=activate, unload=unload) as address:

        def bundles(*arguments):
            return alinfik("bundles", *arguments, "--address", address)

        assert bundles("load", "2026-05-01")[:2] == (0, "new\n")
        assert bundles("activate", "a")[:2] == (0, "active a\n")
        assert bundles("activate", "new", "--shadow")[:2] == (0, "active a\nshadow new\n")
        assert bundles("activate", "", "--shadow")[:2] == (0, "active a\n")
        assert bundles("unload", "new")[:2] == (0, "")
        assert one_line(bundles("unload", "a"), 2) == f"{address}: a is the active bundle"
    assert asked == [
        LoadBundleRequest(directory="2026-05-01"),
        ActivateBundleRequest(bundle_id="a"),
        ActivateBundleRequest(bundle_id="new", shadow=True),
        ActivateBundleRequest(shadow=True),
        UnloadBundleRequest(bundle_id="new"),
        UnloadBundleRequest(bundle_id="a"),
    ]


def test_a_token_is_read_from_a_file_or_the_environment(alinfik, pool, tmp_path, monkeypatch):
    seen = []

    def score_stream(requests, context):
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        if seen[-1] is None:
            abort(context, grpc.StatusCode.UNAUTHENTICATED, "a token is wanted")
        yield from map(valued, requests)

    (tmp_path / "token").write_text("of-file\n")
    with odd_server(score_stream=score_stream) as address:
        score = ("score", pool(*GOOD), "--address", address)
        line = one_line(alinfik(*score), 2)
        assert line.endswith(": a token is wanted. --token-file or ALINFIK_TOKEN says who you are")
        monkeypatch.setenv("ALINFIK_TOKEN", "of-environment")
        assert alinfik(*score).returncode == 0
        assert alinfik(*score, "--token-file", tmp_path / "token").returncode == 0
        line = one_line(alinfik("info", "--address", "192.0.2.1:1"), 2)
        assert "192.0.2.1:1: the token would travel in clear" in line
    assert seen == [None, "Bearer of-environment", "Bearer of-file"]


def test_tls_by_flags(alinfik, pool, tls_files, tls_server):
    ca, certificate, key = (tls_files / name for name in ("ca.pem", "client.pem", "client.key"))
    with tls_server(mutual=True) as address:
        score = ("score", pool(*GOOD), "--address", address)
        ours = ("--tls-certificate", certificate, "--tls-key", key)
        assert alinfik(*score, "--tls-ca", ca, *ours).returncode == 0
        assert "CERTIFICATE_VERIFY_FAILED" in one_line(alinfik(*score, "--tls"), 1)
        assert one_line(alinfik(*score), 1).endswith("and ready, without TLS (else --tls)?")
