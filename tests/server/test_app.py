"""The command as a whole: what it says, when it is ready, how it ends."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from urllib.request import urlopen

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from alinfik.server.bundle import load_bundle
from alinfik.server.front import SERVICE, Front
from alinfik.server.metrics import Metrics
from alinfik.server.registry import Registry
from alinfik.server.settings import ServerSettings
from alinfik.v1 import ListBundlesRequest, Sample, ScoreRequest, ScoreResponse
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from demo.broker import free_port
from tests.server_process import COMMAND, ServerProcess, running_server
from tests.support import skip_or_fail
from tests.tiny_bundle import read_manifest

NOVEL = "my unpublished novel"
CLIPS = Sample(id="clips", completion="72 clips")
ANY_PORT = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


def refusal(*flags: str | Path) -> str:
    """The one line that a command given bad input says before it exits with 2."""
    ended = subprocess.run(
        [COMMAND, *flags], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("alinfik-server: ")
    return ended.stderr


@pytest.mark.parametrize("flag", ["--listen", "--metrics"])
def test_a_port_in_use_is_one_line_that_names_the_flag(tiny_bundle: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal("--bundle", tiny_bundle, *ANY_PORT, flag, address)
    assert f"{flag} {address}: another program listens there" in said


def test_two_servers_do_not_share_a_port(tiny_bundle: Path, server: ServerProcess) -> None:
    said = refusal("--bundle", tiny_bundle, *ANY_PORT, "--listen", server.grpc)
    assert "another program listens there" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--listen", "50051"), "--listen: an address is HOST:PORT"),
        (("--metrics", "127.0.0.1:99999"), "--metrics: the port is a number from 0 to 65535"),
        (("--listen", "::1:50051"), "--listen: an address is HOST:PORT"),
        (("--listen", "nowhere.invalid:0"), "--listen nowhere.invalid:0: no such host"),
        (("--workers", "0"), "--workers: "),
        (
            ("--queue-samples", "10"),
            "1024 is more than --queue-samples 10",
        ),
    ],
)
def test_a_setting_that_will_not_do_is_one_line(
    tiny_bundle: Path, flags: tuple[str, str], says: str
) -> None:
    assert says in refusal("--bundle", tiny_bundle, *ANY_PORT, *flags)


def test_no_bundle_and_a_spoilt_bundle_are_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "--bundle is required" in refusal()
    assert "is not a bundle: it has no manifest.json" in refusal("--bundle", tmp_path, *ANY_PORT)
    spoilt = Path(shutil.copytree(tiny_bundle, tmp_path / "spoilt"))
    content = bytearray((spoilt / "model.onnx").read_bytes())
    content[-1] ^= 1
    (spoilt / "model.onnx").write_bytes(content)
    assert "model.onnx has changed since" in refusal("--bundle", spoilt, *ANY_PORT)


def test_reflection_lists_the_service_health_and_itself(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "alinfik.v1.BundleService",
            "alinfik.v1.ValuationService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        described = database.FindFileContainingSymbol("alinfik.v1.ValuationService")
        methods = [method.name for method in described.service[0].method]
        assert methods == ["Score", "ScoreStream", "Explain", "ListBundles", "GetBundle"]


def scrape(server: ServerProcess) -> str:
    with urlopen(f"http://{server.metrics}/metrics", timeout=10) as response:
        return response.read().decode()


def test_metrics_count_what_was_asked_and_promtool_is_content(server: ServerProcess) -> None:
    def sample_of(text: str, name: str) -> float:
        return next((float(line.split()[-1]) for line in text.splitlines() if name in line), 0.0)

    valued = 'alinfik_samples_total{outcome="valued",source="grpc"}'
    calls = 'alinfik_requests_total{code="OK",method="Score"}'
    before = scrape(server)
    with grpc.insecure_channel(server.grpc) as channel:
        ValuationServiceStub(channel).Score(ScoreRequest(samples=[CLIPS] * 3))
    after = scrape(server)
    assert sample_of(after, valued) - sample_of(before, valued) == 3
    assert sample_of(after, calls) - sample_of(before, calls) == 1
    assert "process_resident_memory_bytes" in after
    if (promtool := shutil.which("promtool")) is None:
        skip_or_fail("promtool is missing; install Debian's package prometheus")
    lint = subprocess.run(
        [promtool, "check", "metrics"], check=False, input=after, capture_output=True, text=True
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


def test_a_server_has_kafka_metrics_only_where_a_broker_is_named(
    server: ServerProcess, tiny_bundle: Path
) -> None:
    assert "alinfik_kafka" not in scrape(server)
    assert "alinfik_dead_letters" not in scrape(server)
    assert 'source="kafka"' not in scrape(server)
    with running_server(tiny_bundle, "--kafka-bootstrap", f"127.0.0.1:{free_port()}") as brokerless:
        said = scrape(brokerless)
    assert "\nalinfik_kafka_connected 0.0" in said
    # What alerts divide by is there before anything is counted.
    assert '\nalinfik_samples_total{outcome="valued",source="kafka"} 0.0' in said
    assert '\nalinfik_dead_letters_total{reason="bad_json"} 0.0' in said


def test_health_is_not_serving_until_warm_and_again_while_draining(tiny_bundle: Path) -> None:
    async def main() -> None:
        settings = ServerSettings(bundle=tiny_bundle, listen="127.0.0.1:0")
        metrics = Metrics(CollectorRegistry())
        registry = Registry(settings, metrics)
        front = Front(settings, registry, metrics)
        async with grpc.aio.insecure_channel(await front.listen()) as channel:
            health, stub = HealthStub(channel), ValuationServiceStub(channel)
            watch = health.Watch(HealthCheckRequest(service=SERVICE))
            overall = health.Watch(HealthCheckRequest())

            async def said() -> list[int]:
                return [(await watch.read()).status, (await overall.read()).status]

            assert await said() == [HealthCheckResponse.NOT_SERVING] * 2
            with pytest.raises(grpc.aio.AioRpcError) as early:
                await stub.Score(ScoreRequest(samples=[CLIPS]))
            assert early.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not (await stub.ListBundles(ListBundlesRequest())).bundles
            bundle = load_bundle(tiny_bundle)
            await registry.load(bundle)
            registry.activate(bundle.id)
            await front.open()
            assert await said() == [HealthCheckResponse.SERVING] * 2
            await stub.Score(ScoreRequest(samples=[CLIPS]))
            retiring = asyncio.create_task(front.retire(60))
            assert await said() == [HealthCheckResponse.NOT_SERVING] * 2
            await stub.Score(ScoreRequest(samples=[CLIPS]))
            retiring.cancel()
            await front.close(5)
            await registry.stop()

    asyncio.run(main())


def texts(count: int) -> list[Sample]:
    """Samples of as many texts, since one text is valued once."""
    return [Sample(id=str(n), completion=f"{n} clips") for n in range(count)]


def test_sigterm_finishes_calls_in_flight_ends_streams_and_exits_0(slow_bundle: Path) -> None:
    async def main(server: ServerProcess) -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = ValuationServiceStub(channel)
            stream = stub.ScoreStream()
            for number in range(3):
                await stream.write(ScoreRequest(samples=[Sample(id=str(number), completion="x")]))
            unary = asyncio.ensure_future(stub.Score(ScoreRequest(samples=texts(4))))
            # Its answer shows that the stream is being read; the rest is in flight.
            ids = [(await stream.read()).results[0].valuation.sample_id]
            server.process.send_signal(signal.SIGTERM)

            async def read_on() -> None:
                while isinstance(response := await stream.read(), ScoreResponse):
                    ids.append(response.results[0].valuation.sample_id)

            with pytest.raises(grpc.aio.AioRpcError) as end:
                await read_on()
            assert ids == list("012")[: len(ids)]
            assert end.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "open a new stream" in (end.value.details() or "")
            response = await unary
            assert [result.valuation.sample_id for result in response.results] == list("0123")

    with running_server(slow_bundle, "--batch-tokens", "1", "--workers", "1") as server:
        asyncio.run(main(server))
        assert server.process.wait(20) == 0


def test_a_call_that_outlives_the_drain_is_cut_off(slow_bundle: Path) -> None:
    flags = ("--batch-tokens", "1", "--workers", "1", "--drain-seconds", "0.3")
    with (
        running_server(slow_bundle, *flags) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        call = ValuationServiceStub(channel).Score.future(ScoreRequest(samples=texts(200)))
        wait_until_busy(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert any(line["message"] == "calls cut off" for line in map(json.loads, server.log))


def wait_until_busy(server: ServerProcess) -> None:
    while "\nalinfik_workers_busy 1.0" not in scrape(server):
        pass


def test_a_fault_is_in_the_log_under_the_id_that_the_caller_gets_and_without_its_text(
    failing_bundle: Path,
) -> None:
    with running_server(failing_bundle) as server, grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            ValuationServiceStub(channel).Score(
                ScoreRequest(samples=[Sample(completion=f"{NOVEL} friends")]),
                metadata=[("x-request-id", "the-callers-own")],
            )
        status = rpc_status.from_call(failed.value)
        info = ErrorInfo()
        assert status is not None
        assert status.details[0].Unpack(info)
    lines = [json.loads(line) for line in server.log]
    fault = next(line for line in lines if line.get("error_id") == info.metadata["error_id"])
    assert fault["exception"], "the traceback is missing"
    assert any(line.get("request_id") == "the-callers-own" for line in lines)
    assert NOVEL not in "".join(server.log)


def test_the_ready_line_says_what_is_served_and_where(
    server: ServerProcess, tiny_bundle: Path
) -> None:
    said = [json.loads(line) for line in server.log]
    ready = next(line for line in said if line["message"] == "ready")
    assert ready["bundle_id"] == read_manifest(tiny_bundle).bundle_id
    assert ready["targets"] == ["gsm8k", "mbpp"]
    assert ready["device"] in ("cpu", "cuda")
    assert not ready["grpc"].endswith(":0")
