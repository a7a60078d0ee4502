import io
import json
import sys

import grpc
import pytest
import trustme

from alinfik.client.__main__ import Alinfik
from alinfik.command import run
from tests.client.both import Asyncio, Blocking
from tests.client.command import Done
from tests.client.odd_server import odd_server, seeing


@pytest.fixture
def address(server):
    """Where a real server listens, with the tiny bundle."""
    return server.grpc


@pytest.fixture(params=[Blocking, Asyncio], ids=["blocking", "asyncio"])
def client(request):
    """Each client in turn."""
    return request.param()


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory):
    """PEM files of an authority, of a client that it vouches for, and of another authority."""
    folder = tmp_path_factory.mktemp("tls")
    ours, others = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    others.cert_pem.write_to_path(folder / "other.pem")
    client = ours.issue_cert("client.example")
    client.private_key_pem.write_to_path(folder / "client.key")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    server = ours.issue_cert("localhost")
    server.private_key_pem.write_to_path(folder / "server.key")
    server.cert_chain_pems[0].write_to_path(folder / "server.pem")
    return folder


@pytest.fixture
def tls_server(tls_files):
    """Starts a server with a certificate; ``mutual`` asks for one of the client too."""

    def tls_server(*, mutual=False, seen=None):
        key, chain = (
            (tls_files / "server.key").read_bytes(),
            (tls_files / "server.pem").read_bytes(),
        )
        credentials = grpc.ssl_server_credentials(
            [(key, chain)], (tls_files / "ca.pem").read_bytes() if mutual else None, mutual
        )
        return odd_server(*seeing([] if seen is None else seen), credentials=credentials)

    return tls_server


@pytest.fixture
def alinfik(capsys, monkeypatch):
    """Runs the command in this process, which saves a second a time."""

    def alinfik(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as exit_:
            run(Alinfik, [str(argument) for argument in arguments])
        return Done(exit_.value.code, *capsys.readouterr())

    return alinfik


@pytest.fixture
def pool(tmp_path):
    def pool(*rows):
        path = tmp_path / "pool.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return pool
