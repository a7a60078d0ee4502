"""The `alinfik` command as its users run it: a real server, exit codes and messages."""

import json

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

from alinfik.v1 import (
    ActivateBundleRequest,
    ActivateBundleResponse,
    BundleManifest,
    BundleSummary,
    ExplainResponse,
    Explanation,
    LoadBundleRequest,
    LoadBundleResponse,
    TokenValue,
    UnloadBundleRequest,
    UnloadBundleResponse,
)
from tests.client.command import GOOD, one_line
from tests.client.odd_server import abort, odd_server, valued
from tests.terminal import on_a_terminal


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
        (["--token-file", "/dev/null"], "--token-file /dev/null is empty"),
        (
            ["--timeout-seconds", "inf"],
            "a timeout of inf s: give more than 0 and at most",
        ),
        (["--bundle", "/a/bundle"], "--bundle: give a bundle's id, as `alinfik info` shows it, or"),
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
        (["list", "--since", "yesterday"], "--since: give a time such as 2026-05-01T12:00:00Z"),
        # Seconds since 1970, to pydantic.
        (["list", "--until", "1777636800"], "--until: give a time such as 2026-05-01T12:00:00Z"),
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
        _, seen = on_a_terminal("explain", pool(*GOOD), "--address", address, colours=True)
    assert "sum for gsm8k, strongest token 2" in seen
    assert "How many?" in seen
    assert "\x1b[30;48;2;128;255;128m48 / 2 = \x1b[0m" in seen  # half as strong, green
    assert "\x1b[30;48;2;255;0;0m24 clips.\x1b[0m" in seen


def test_explain_keeps_to_the_bundle_that_it_began_with(alinfik, pool):
    asked = []

    def explain(request, context):
        asked.append(request.bundle_id)
        return explains(request, context)

    with odd_server(explain=explain, bundle=BundleManifest(bundle_id="first")) as address:
        assert alinfik("explain", pool(*GOOD), "--address", address).returncode == 0
    assert asked == ["first", "first"]


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
        for content, says in ((b"\xff", "is no text"), (b"\n", "is empty")):
            (tmp_path / "none").write_bytes(content)
            line = one_line(alinfik(*score, "--token-file", tmp_path / "none"), 2)
            assert f"--token-file {tmp_path / 'none'} {says}" in line
    assert seen == [None, "Bearer of-environment", "Bearer of-file"]


def test_tls_by_flags(alinfik, pool, tls_files, tls_server):
    ca, certificate, key = (tls_files / name for name in ("ca.pem", "client.pem", "client.key"))
    with tls_server(mutual=True) as address:
        score = ("score", pool(*GOOD), "--address", address)
        ours = ("--tls-certificate", certificate, "--tls-key", key)
        assert alinfik(*score, "--tls-ca", ca, *ours).returncode == 0
        assert "CERTIFICATE_VERIFY_FAILED" in one_line(alinfik(*score, "--tls"), 1)
        assert one_line(alinfik(*score), 1).endswith("and ready, without TLS (else --tls)?")
