"""Encryption of the gRPC port, over real sockets."""

import socket
import ssl
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from alinfik.command import CommandError
from alinfik.server.settings import ServerSettings
from alinfik.server.tls import server_credentials
from alinfik.v1 import ListBundlesRequest
from alinfik.v1.valuation_service_pb2_grpc import ValuationServiceStub
from tests.server.certificates import Pair, write_authority, write_pair
from tests.server_process import running_server

OURS = trustme.CA()
THEIRS = trustme.CA()


def flags(pair: Pair, client_ca: Path | None = None) -> list[str]:
    ca = ["--tls-client-ca", str(client_ca)] if client_ca else []
    return ["--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key), *ca]


def credentials(trusted: trustme.CA = OURS, client: Pair | None = None) -> grpc.ChannelCredentials:
    key, chain = (
        (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None,) * 2
    )
    return grpc.ssl_channel_credentials(trusted.cert_pem.bytes(), key, chain)


def answers(channel: grpc.Channel) -> bool:
    """Whether a call gets through the connection."""
    with channel:
        call = ValuationServiceStub(channel).ListBundles.future(ListBundlesRequest(), timeout=20)
        code = call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


def shown(address: str) -> bytes:
    """The certificate that the server shows to a client which connects now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 20) as raw,
        context.wrap_socket(raw) as encrypted,
    ):
        return ssl.DER_cert_to_PEM_cert(encrypted.getpeercert(binary_form=True)).encode()


def test_encrypted_calls_are_answered_and_plain_ones_are_not(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, "server", OURS)
    with running_server(tiny_bundle, *flags(pair)) as server:
        assert answers(grpc.secure_channel(server.grpc, credentials()))
        assert not answers(grpc.insecure_channel(server.grpc))
        assert not answers(grpc.secure_channel(server.grpc, credentials(THEIRS)))


def test_with_a_client_ca_only_its_own_get_in(tiny_bundle: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "server", OURS)
    client_ca = write_authority(tmp_path, "clients", THEIRS)
    one, other = (
        write_pair(tmp_path, "one", THEIRS, "one"),
        write_pair(tmp_path, "two", OURS, "two"),
    )
    with running_server(tiny_bundle, *flags(pair, client_ca)) as server:
        assert answers(grpc.secure_channel(server.grpc, credentials(client=one)))
        assert not answers(grpc.secure_channel(server.grpc, credentials()))
        assert not answers(grpc.secure_channel(server.grpc, credentials(client=other)))


def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_never(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, "server", OURS)
    with running_server(tiny_bundle, *flags(pair)) as server:
        first = shown(server.grpc)
        assert pair.certificate.read_bytes().startswith(first)
        with grpc.secure_channel(server.grpc, credentials()) as channel:
            stub = ValuationServiceStub(channel)
            stub.ListBundles(ListBundlesRequest())
            write_pair(tmp_path, "server", OURS)
            second = shown(server.grpc)
            assert second != first
            assert pair.certificate.read_bytes().startswith(second)
            pair.key.write_text("half a key")
            assert shown(server.grpc) == shown(server.grpc) == second
            pair.key.unlink()
            assert shown(server.grpc) == second
            stub.ListBundles(ListBundlesRequest())
        write_pair(tmp_path, "server", THEIRS)
        assert answers(grpc.secure_channel(server.grpc, credentials(THEIRS)))
    told = [line for line in server.log if "the old ones count" in line]
    assert len(told) == 2
    assert "holds no private key" in told[0]
    assert "No such file" in told[1]


def settings(pair: Pair, client_ca: Path | None = None) -> ServerSettings:
    return ServerSettings(
        bundle=Path("b"),
        tls_certificate=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=client_ca,
    )


def test_files_that_do_not_load_are_named(tmp_path: Path) -> None:
    good = write_pair(tmp_path, "good", OURS)
    other = write_pair(tmp_path, "other", OURS)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("-----BEGIN NONSENSE-----")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(good.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    missing = tmp_path / "missing.pem"
    for pair, client_ca, says in [
        (Pair(good.certificate, other.key), None, f"--tls-key {other.key}: is not the key of"),
        (Pair(good.certificate, nonsense), None, f"--tls-key {nonsense}: holds no private key"),
        (Pair(good.certificate, locked), None, f"--tls-key {locked}: .* or one with a password"),
        (Pair(nonsense, good.key), None, f"--tls-certificate {nonsense}: holds no certificate"),
        (Pair(missing, good.key), None, f"--tls-certificate {missing}: cannot be read"),
        (Pair(good.certificate, tmp_path), None, f"--tls-key {tmp_path}: cannot be read"),
        (good, nonsense, f"--tls-client-ca {nonsense}: holds no certificate"),
    ]:
        with pytest.raises(CommandError, match=says):
            server_credentials(settings(pair, client_ca))
    assert server_credentials(settings(good, good.certificate)) is not None
    assert server_credentials(ServerSettings(bundle=Path("b"))) is None
