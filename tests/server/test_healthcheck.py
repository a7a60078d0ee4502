import pytest

from alinfik.command import run
from alinfik.server.healthcheck import HealthCheck
from demo.broker import free_port


@pytest.fixture
def check(monkeypatch, capsys):
    def check(listen):
        monkeypatch.setenv("ALINFIK_LISTEN", listen)
        with pytest.raises(SystemExit) as exit_:
            run(HealthCheck, [])
        return exit_.value.code, capsys.readouterr().err

    return check


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - nothing listens
def test_a_ready_server_is_healthy_however_it_says_where_it_listens(server, check, host):
    port = server.grpc.rpartition(":")[2]
    assert check(f"{host}:{port}") == (0, "")


def test_nobody_there_is_1_and_one_line(check):
    address = f"127.0.0.1:{free_port()}"
    code, said = check(address)
    assert code == 1
    assert said.startswith(f"alinfik.server.healthcheck: {address} does not answer: ")
    assert said.count("\n") == 1
