"""Who calls, and who answers: tokens and certificates over real sockets."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.client import (
    Client,
    Sample,
    Tls,
    UnauthenticatedError,
    UnavailableError,
)
from alinfik.client.security import authorization, stays_here
from tests.client.odd_server import abort, odd_server, seeing, valued

SAMPLES = [Sample(id="1", completion="24 clips")]


def test_the_token_goes_with_every_call(client, tls_files, tls_server):
    seen = []
    connection = {"token": "s3cret", "tls": Tls(ca=tls_files / "ca.pem")}
    with tls_server(seen=seen) as address:
        client.score(address, SAMPLES, connection=connection)
        list(client.score_stream(address, SAMPLES, connection=connection))
    assert seen == ["Bearer s3cret"] * 2


def test_a_token_stays_in_clear_on_this_machine_alone(client):
    seen = []
    with odd_server(*seeing(seen)) as address:
        client.score(address, SAMPLES, connection={"token": "t"})
    assert seen == ["Bearer t"]
    with pytest.raises(ValueError, match="the token would travel in clear"):
        client.score("192.0.2.1:50051", SAMPLES, connection={"token": "t"})


def test_what_stays_on_this_machine_goes_by_no_proxy(client, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with odd_server(lambda request, _: valued(request)) as address:
        assert client.score(address, SAMPLES)


def test_a_token_goes_in_clear_where_that_is_said(client):
    connection = {"token": "t", "allow_plaintext_token": True}
    with pytest.raises(UnavailableError):
        client.score("no-such-host.invalid:1", SAMPLES, connection=connection)


def test_a_client_shows_its_certificate_where_it_is_asked(client, tls_files, tls_server):
    ours = Tls(tls_files / "ca.pem", tls_files / "client.pem", tls_files / "client.key")
    with tls_server(mutual=True) as address:
        assert client.score(address, SAMPLES, connection={"tls": ours})
        with pytest.raises(UnavailableError, match=address):
            client.score(address, SAMPLES, connection={"tls": Tls(tls_files / "ca.pem")})


def test_a_server_that_nobody_vouches_for_is_not_talked_to(client, tls_files, tls_server):
    seen = []
    with tls_server(seen=seen) as address:
        for tls in (Tls(tls_files / "other.pem"), Tls()):
            with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                client.score(address, SAMPLES, connection={"tls": tls, "token": "t"})
    assert seen == []


def test_a_refused_token_is_not_tried_again(client):
    calls = []

    def score(_, context):
        calls.append(None)
        abort(context, grpc.StatusCode.UNAUTHENTICATED, "unknown token")

    with odd_server(score) as address, pytest.raises(UnauthenticatedError, match="unknown token"):
        client.score(address, SAMPLES, connection={"token": "t"})
    assert len(calls) == 1


def test_files_that_are_none_are_named(tls_files, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ValueError, match=r"empty\.pem is no PEM file"):
        Client("localhost:1", tls=Tls(tmp_path / "empty.pem"))
    begin, end = (f"-----{word} CERTIFICATE-----\n" for word in ("BEGIN", "END"))
    (tmp_path / "rubbish.pem").write_text(f"{begin}rubbish\n{end}")
    with pytest.raises(ValueError, match=r"rubbish\.pem holds no certificate"):
        Client("localhost:1", tls=Tls(tmp_path / "rubbish.pem"))
    with pytest.raises(ValueError, match=r"client\.key and .*client\.pem are no certificate and"):
        Client("localhost:1", tls=Tls(None, tls_files / "client.key", tls_files / "client.pem"))
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", tls=Tls(tmp_path / "missing.pem"))
    with pytest.raises(ValueError, match="a TLS certificate needs its key"):
        Tls(certificate=tls_files / "client.pem")
    with pytest.raises(ValueError, match="a TLS key needs its certificate"):
        Tls(key=tls_files / "client.key")


@given(st.text())
def test_a_token_is_refused_unless_a_header_can_carry_it(token):
    if token and all("!" <= letter <= "~" for letter in token):
        assert authorization("h:1", token, encrypted=True) == (
            ("authorization", f"Bearer {token}"),
        )
    else:
        with pytest.raises(ValueError, match="printable ASCII"):
            authorization("h:1", token, encrypted=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "127.8.9.1:1",
        "localhost:1",
        "[::1]:1",
        "dns:localhost:1",
        "dns:///localhost:1",
        "dns://192.0.2.1/localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
        "unix:/run/alinfik.sock",
        "unix:///run/alinfik.sock",
        "unix-abstract:alinfik",
    ],
)
def test_this_machine_is_known_by_its_names(address):
    assert stays_here(address)


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.1:1",
        "localhost.example.com:1",
        "127.0.0.1.example.com:1",
        "[2001:db8::1]:1",
        "dns:///example.com:1",
        "dns://127.0.0.1/example.com:1",
        "ipv4:127.0.0.1:1,192.0.2.1:1",
        "xds:///localhost",
        "",
    ],
)
def test_other_machines_are_not_this_one(address):
    assert not stays_here(address)
