import subprocess
import sys

import pytest
import trustme

from alinfik.server.healthcheck import main
from demo.broker import free_port
from tests.server.certificates import write_authority, write_pair
from tests.server_process import running_server


@pytest.fixture
def check(monkeypatch, capsys):
    def check(listen, *flags, **environment):
        monkeypatch.setenv("ALINFIK_LISTEN", listen)
        for name, value in environment.items():
            monkeypatch.setenv(f"ALINFIK_{name.upper()}", str(value))
        with pytest.raises(SystemExit) as exit_:
            main([str(flag) for flag in flags])
        return exit_.value.code, capsys.readouterr().err

    return check


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - nothing listens
def test_a_ready_server_is_healthy_however_it_says_where_it_listens(server, check, host):
    port = server.grpc.rpartition(":")[2]
    assert check(f"{host}:{port}") == (0, "")


def test_this_machine_is_asked_by_no_proxy(server, check, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert check(server.grpc) == (0, "")


def test_nobody_there_is_1_and_one_line(check):
    address = f"127.0.0.1:{free_port()}"
    code, said = check(address)
    assert code == 1
    assert said.startswith(f"alinfik.server.healthcheck: {address} does not answer: ")
    assert said.count("\n") == 1


def test_an_encrypted_server_is_healthy_by_its_own_settings_and_needs_no_token(
    tiny_bundle, tmp_path, check
):
    pair = write_pair(tmp_path, "server", trustme.CA())
    (tmp_path / "tokens").write_text("")
    own = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tokens": tmp_path / "tokens"}
    flags = [part for name, path in own.items() for part in (f"--{name.replace('_', '-')}", path)]
    with running_server(tiny_bundle, *map(str, flags)) as server:
        assert check(server.grpc)[0] == 1
        (tmp_path / "server.toml").write_text(
            "".join(f'{name} = "{path}"\n' for name, path in own.items())
        )
        assert check(server.grpc, "--config", tmp_path / "server.toml") == (0, "")
        assert check(server.grpc, **own) == (0, "")


def test_a_server_that_asks_for_certificates_is_shown_one(tiny_bundle, tmp_path, check):
    ours, theirs = trustme.CA(), trustme.CA()
    pair = write_pair(tmp_path, "server", ours, "alinfik.example")
    health = write_pair(tmp_path, "health", theirs, "health")
    flags = ["--tls-certificate", pair.certificate, "--tls-key", pair.key]
    flags += ["--tls-client-ca", write_authority(tmp_path, "clients", theirs)]
    with running_server(tiny_bundle, *map(str, flags)) as server:
        name = ("--health-name", "alinfik.example")
        shown = ("--health-certificate", health.certificate, "--health-key", health.key)
        own = {"tls_certificate": pair.certificate}
        assert check(server.grpc, *name, *shown, **own) == (0, "")
        ca = ("--health-ca", write_authority(tmp_path, "ours", ours))
        assert check(server.grpc, *ca, *name, *shown) == (0, "")
        for lacking in ([*name], [*shown], [*name, *shown, "--health-ca", health.certificate]):
            code, said = check(server.grpc, *lacking)
            assert code == 1
            assert f"{server.grpc} does not answer: " in said


def test_it_loads_no_more_than_it_needs_since_it_is_run_all_day():
    heavy = "{'pydantic', 'rich', 'structlog', 'google'} & set(sys.modules)"
    program = f"import sys, alinfik.server.healthcheck; sys.exit(repr({heavy} or 0))"
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert ended.stderr == b"0\n"


def test_files_that_do_not_do_are_named(tmp_path, check):
    code, said = check("127.0.0.1:1", "--health-ca", tmp_path / "none.pem")
    assert (code, "none.pem: cannot be read" in said) == (2, True)
    assert "go together" in check("127.0.0.1:1", "--health-key", "k")[1]
    assert "--listen: an address is HOST:PORT" in check("50051")[1]
