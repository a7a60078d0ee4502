"""Who may call what, over real sockets."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from structlog.testing import capture_logs

import alinfik.v1
from alinfik.command import CommandError
from alinfik.server.access import NEEDED, check_exposure
from alinfik.server.app import running
from alinfik.server.settings import ServerSettings
from alinfik.server.tokens import ROLES, Role, new_token
from alinfik.v1 import (
    GetBundleRequest,
    ListBundlesRequest,
    LoadBundleRequest,
    Sample,
    ScoreRequest,
    UnloadBundleRequest,
    bundle_service_pb2,
    valuation_service_pb2,
)
from alinfik.v1.bundle_service_pb2_grpc import BundleServiceStub
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.test_service import detail, failure
from tests.server_process import running_server
from tests.tiny_bundle import read_manifest, write_manifest

REQUEST = ScoreRequest(samples=[Sample(completion="72 clips")])
LOOPBACK = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


class Caller(NamedTuple):
    channel: grpc.aio.Channel
    registry: object

    async def codes(self, authorization: str | None) -> dict[str, grpc.StatusCode]:
        """How a call of each kind ends, with that metadata."""
        metadata = [] if authorization is None else [("authorization", authorization)]
        valuations, bundles = ValuationServiceStub(self.channel), BundleServiceStub(self.channel)
        stream = valuations.ScoreStream(metadata=metadata)
        await stream.done_writing()
        quote = self.channel.unary_unary("/alinfik.v1.ValuationService/Quote")
        return {
            "Score": await valuations.Score(REQUEST, metadata=metadata).code(),
            "ListBundles": await valuations.ListBundles(
                ListBundlesRequest(), metadata=metadata
            ).code(),
            "ScoreStream": await stream.code(),
            "Quote": await quote(b"", metadata=metadata).code(),
            "LoadBundle": await bundles.LoadBundle(
                LoadBundleRequest(directory="nowhere"), metadata=metadata
            ).code(),
        }


@asynccontextmanager
async def served(bundle: Path, **flags: object) -> AsyncIterator[Caller]:
    async with (
        running(ServerSettings(bundle=bundle, **LOOPBACK, **flags)) as server,
        grpc.aio.insecure_channel(server.grpc) as channel,
    ):
        yield Caller(channel, server.registry)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[Role, str]:
    """A token of each role alone, in the file `tokens`."""
    made = {role: new_token(f"the-{role}", [role]) for role in ROLES}
    (tmp_path / "tokens").write_text("\n".join(line for _, line in made.values()))
    return {role: token for role, (token, _) in made.items()}


def test_every_service_of_ours_is_in_the_table() -> None:
    files = [valuation_service_pb2.DESCRIPTOR, bundle_service_pb2.DESCRIPTOR]
    ours = {service.full_name for file in files for service in file.services_by_name.values()}
    modules = {path.stem for path in Path(alinfik.v1.__path__[0]).glob("*_service_pb2.py")}
    assert modules == {Path(file.name).stem + "_pb2" for file in files}
    assert {name.partition("/")[0] for name in NEEDED if name.startswith("alinfik.")} == ours


def test_without_tokens_scoring_is_open_and_administration_is_not(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as caller:
            codes = await caller.codes(None)
            assert codes["Score"] is codes["ScoreStream"] is grpc.StatusCode.OK
            assert codes["ListBundles"] is grpc.StatusCode.OK
            stub = BundleServiceStub(caller.channel)
            status = await failure(stub.UnloadBundle(UnloadBundleRequest()))
        assert status.code == Code.PERMISSION_DENIED
        assert "--tokens" in status.message
        assert "--open-admin" in status.message
        info = detail(status, ErrorInfo)
        assert (info.reason, info.metadata["role"]) == ("ROLE_NEEDED", "admin")

        async with served(tiny_bundle, open_admin=True) as caller:
            assert (await caller.codes(None))["LoadBundle"] not in REFUSALS

    asyncio.run(main())


def test_each_role_may_do_what_it_is_for(
    tiny_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    allowed: dict[Role, set[str]] = {
        "score": {"Score", "ScoreStream", "ListBundles"},
        "quote": {"Quote"},
        "admin": {"LoadBundle"},
    }

    async def main() -> None:
        async with served(tiny_bundle, tokens=tmp_path / "tokens") as caller:
            for role, token in tokens.items():
                codes = await caller.codes(f"Bearer {token}")
                refused = {method for method, code in codes.items() if code in REFUSALS}
                assert set(codes) - refused == allowed[role]
                assert {codes[method] for method in refused} == {grpc.StatusCode.PERMISSION_DENIED}
            assert (await caller.codes(f"bearer  {tokens['score']}"))["Score"] is grpc.StatusCode.OK

    asyncio.run(main())


def test_providers_figures_are_for_administrators_alone(
    tiny_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = read_manifest(bundle)
    manifest.metrics.targets[0].providers.add(provider="rival", held_out_count=3)
    write_manifest(bundle, manifest)
    both, line = new_token("both", ["score", "admin"])
    with (tmp_path / "tokens").open("a") as file:
        file.write(f"\n{line}")

    async def shown(token: str | None = None, **flags: object) -> bool:
        async with served(bundle, **flags) as caller:
            metadata = [("authorization", f"Bearer {token}")] if token else []
            stub = ValuationServiceStub(caller.channel)
            found = (await stub.GetBundle(GetBundleRequest(), metadata=metadata)).bundle
            assert found.metrics.targets[0].spearman
            return bool(found.metrics.targets[0].providers)

    async def main() -> None:
        assert not await shown(tokens["score"], tokens=tmp_path / "tokens")
        assert await shown(both, tokens=tmp_path / "tokens")
        assert not await shown()
        assert await shown(open_admin=True)

    asyncio.run(main())


def test_without_a_token_or_with_nobodys_all_but_health_and_reflection_is_closed(
    tiny_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    wrong = [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        tokens["admin"],
        f"Basic {tokens['admin']}",
        f"Bearer {tokens['admin']}x",
    ]

    async def main() -> None:
        async with served(tiny_bundle, tokens=tmp_path / "tokens") as caller:
            for authorization in wrong:
                codes = await caller.codes(authorization)
                assert set(codes.values()) == {grpc.StatusCode.UNAUTHENTICATED}, authorization
            status = await failure(ValuationServiceStub(caller.channel).Score(REQUEST))
            assert detail(status, ErrorInfo).reason == "TOKEN_NEEDED"
            assert "authorization: Bearer TOKEN" in status.message

            answer = await HealthStub(caller.channel).Check(HealthCheckRequest())
            assert answer.status == HealthCheckResponse.SERVING
            asked = ServerReflectionStub(caller.channel).ServerReflectionInfo()
            await asked.write(ServerReflectionRequest(list_services=""))
            assert (await asked.read()).list_services_response.service
            nowhere = caller.channel.unary_unary("/grpc.reflection.v1.ServerReflection/Nothing")
            assert await nowhere(b"").code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


def test_those_who_may_not_call_take_no_room(
    tiny_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    async def main() -> None:
        async with served(tiny_bundle, tokens=tmp_path / "tokens", max_calls=1) as caller:
            stub = ValuationServiceStub(caller.channel)
            calls = [stub.Score(REQUEST) for _ in range(50)]
            codes = await asyncio.gather(*[call.code() for call in calls])
            assert set(codes) == {grpc.StatusCode.UNAUTHENTICATED}
            refused = caller.registry.get_sample_value("alinfik_refused_total", {"limit": "calls"})
            assert refused == 0
            await stub.Score(REQUEST, metadata=[("authorization", f"Bearer {tokens['score']}")])

    asyncio.run(main())


def test_a_large_request_by_nobody_hears_why(
    tiny_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    assert tokens

    async def main() -> None:
        async with served(tiny_bundle, tokens=tmp_path / "tokens") as caller:
            large = ScoreRequest(samples=[Sample(completion="x" * 15_000_000)])
            for _ in range(3):
                call = ValuationServiceStub(caller.channel).Score(large)
                assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(main())


def test_what_is_refused_is_counted_under_no_name_that_a_caller_made_up(
    tiny_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    assert tokens

    async def main() -> None:
        async with served(tiny_bundle, tokens=tmp_path / "tokens") as caller:

            def count(method: str) -> float | None:
                labels = {"method": method, "code": "UNAUTHENTICATED"}
                return caller.registry.get_sample_value("alinfik_requests_total", labels)

            async def comes_to(method: str, calls: int) -> None:
                # Its caller may hear of a refusal a moment before it is counted.
                async with asyncio.timeout(10):
                    while count(method) != calls:
                        await asyncio.sleep(0.001)

            await caller.codes(None)
            for method in ("Score", "ScoreStream", "LoadBundle", "unknown"):  # Quote is unknown.
                await comes_to(method, 1)
            made_up = caller.channel.unary_unary("/alinfik.v1.ValuationService/MadeUp")
            assert await made_up(b"").code() is grpc.StatusCode.UNAUTHENTICATED
            await comes_to("unknown", 2)
            assert count("MadeUp") is None

    asyncio.run(main())


def test_the_log_says_whose_call_failed(
    failing_bundle: Path, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    with (
        running_server(failing_bundle, "--tokens", str(tmp_path / "tokens")) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        metadata = [("authorization", f"Bearer {tokens['score']}")]
        fatal = ScoreRequest(samples=[Sample(completion="A text of friends.")])
        call = ValuationServiceStub(channel).Score.future(fatal, metadata=metadata)
        assert call.code() is grpc.StatusCode.INTERNAL
    log = "".join(server.log)
    assert '"caller": "the-score"' in log
    assert not any(token in log for token in tokens.values())


def test_tokens_come_and_go_while_serving(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alinfik.server.tokens._LOOK_SECONDS", 0.0)
    file = tmp_path / "tokens"
    (old, old_line), (new, new_line) = new_token("p", ["score"]), new_token("p", ["score"])

    async def main() -> None:
        async with served(tiny_bundle, tokens=file) as caller:

            async def enter(token: str) -> bool:
                metadata = [("authorization", f"Bearer {token}")]
                call = ValuationServiceStub(caller.channel).Score(REQUEST, metadata=metadata)
                return await call.code() is grpc.StatusCode.OK

            assert [await enter(old), await enter(new)] == [True, False]
            file.write_text(f"{old_line}\n{new_line}\n")
            assert [await enter(old), await enter(new)] == [True, True]
            file.write_text(f"{new_line}\n")
            assert [await enter(old), await enter(new)] == [False, True]
            file.write_text("not a token file")
            assert [await enter(old), await enter(new)] == [False, True]

    file.write_text(old_line)
    asyncio.run(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3"])  # noqa: S104 - nothing listens
def test_the_network_is_not_let_in_by_mistake(host: str) -> None:
    def settings(**flags: object) -> ServerSettings:
        return ServerSettings(bundle=Path("b"), listen=f"{host}:50051", **flags)

    with pytest.raises(CommandError, match="opens the server to the network with neither") as told:
        check_exposure(settings())
    assert "--allow-insecure" in str(told.value)
    tls = {"tls_certificate": Path("c"), "tls_key": Path("k")}
    with pytest.raises(CommandError, match="lets the whole network switch bundles"):
        check_exposure(settings(open_admin=True, **tls))
    with capture_logs() as warned:
        check_exposure(settings(tokens=Path("t")))
    assert "tokens cross the network unencrypted" in warned[0]["event"]
    with capture_logs() as warned:
        check_exposure(settings(allow_insecure=True))
        check_exposure(settings(**tls, tokens=Path("t")))
        check_exposure(settings(**tls, tls_client_ca=Path("a"), open_admin=True))
    assert warned == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_this_machine_is(host: str) -> None:
    check_exposure(ServerSettings(bundle=Path("b"), listen=f"{host}:50051"))
