"""`alinfik score`: whole files, what is left of a run that was cut, and samples without a value."""

import json
import subprocess
import threading
import time

import grpc
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from alinfik.client.batches import SAMPLES_A_REQUEST
from alinfik.v1 import (
    BundleManifest,
    ScoreResponse,
    ScoreResult,
    Target,
    TargetValue,
    Valuation,
)
from tests.client.command import GOOD, one_line
from tests.client.odd_server import abort, odd_server, valued
from tests.terminal import ALINFIK, on_a_terminal


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
        return [ALINFIK, "score", file, "--address", address, "--out", out]

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
    _, seen = on_a_terminal("score", str(pool(*GOOD)), "--address", address)
    assert "2/2" in seen
    for text in ("gsm8k", "mbpp", "%ile", "sum", "[bold]x"):
        assert text in seen


def test_providers_neither_style_nor_steer_a_terminal(pool, address, tmp_path):
    rows = [row | {"provider": "[/x]\x1b]0;owned\x07"} for row in GOOD]
    out = tmp_path / "values.jsonl"
    code, seen = on_a_terminal("score", str(pool(*rows)), "--address", address, "--out", str(out))
    assert code == 0
    assert r"[/x]\x1b]0;owned\x07" in seen
    assert "\x1b]0;owned" not in seen


def test_the_samples_are_not_written_over(alinfik, pool, address):
    file = pool(*GOOD)
    before = file.read_bytes()
    line = one_line(alinfik("score", file, "--address", address, "--out", file), 2)
    assert "is the file of the samples" in line
    assert file.read_bytes() == before


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
