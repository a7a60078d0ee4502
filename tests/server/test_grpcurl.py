"""The calls of docs/security.md, by a client that shares no code with the server."""

import json
import subprocess
from pathlib import Path

import pytest
import trustme

from alinfik.server.tokens import new_token
from tests.grpcurl import grpcurl
from tests.server.certificates import Pair, write_authority, write_pair
from tests.server_process import ServerProcess, running_server

SCORE = "alinfik.v1.ValuationService/Score"
REQUEST = '{"samples": [{"id": "1", "completion": "2 + 2 = 4."}]}'


class Call:
    """grpcurl with a CA that it trusts."""

    def __init__(self, program: Path, server: ServerProcess, ca: Path) -> None:
        self._program = program
        self._server = server
        self._ca = ca

    def __call__(
        self, method: str, data: str = "{}", *, token: str = "", client: Pair | None = None
    ) -> subprocess.CompletedProcess[str]:
        header = ["-H", f"authorization: Bearer {token}"] if token else []
        shown = ["-cert", client.certificate, "-key", client.key] if client else []
        return subprocess.run(
            [
                *(self._program, "-connect-timeout", "20", "-max-time", "20"),
                *("-cacert", self._ca, *header, *shown, "-d", data, self._server.grpc, method),
            ],
            check=False,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def program() -> Path:
    return grpcurl()


@pytest.mark.parametrize("mutual", [False, True])
def test_grpcurl_gets_a_value_by_tls_and_a_token_and_without_them_hears_why(
    program: Path, tiny_bundle: Path, tmp_path: Path, *, mutual: bool
) -> None:
    authority = trustme.CA()
    ca = write_authority(tmp_path, "ca", authority)
    pair = write_pair(tmp_path, "server", authority)
    client = write_pair(tmp_path, "client", authority, "client") if mutual else None
    token, line = new_token("alice", ["score"])
    (tmp_path / "tokens").write_text(line)
    flags = ["--tls-certificate", pair.certificate, "--tls-key", pair.key]
    flags += ["--tokens", tmp_path / "tokens", *(["--tls-client-ca", ca] if mutual else [])]
    with running_server(tiny_bundle, *map(str, flags)) as server:
        call = Call(program, server, ca)
        done = call(SCORE, REQUEST, token=token, client=client)
        assert done.returncode == 0, done.stderr
        valuation = json.loads(done.stdout)["results"][0]["valuation"]
        assert [value["target"] for value in valuation["values"]] == ["gsm8k", "mbpp"]
        # Reflection, by which it knew the method, is open; so is health.
        assert "SERVING" in call("grpc.health.v1.Health/Check", client=client).stdout
        tokenless = call(SCORE, REQUEST, client=client)
        assert "Unauthenticated" in tokenless.stderr
        assert "authorization: Bearer TOKEN" in tokenless.stderr
