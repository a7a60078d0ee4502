import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alinfik.command import CommandError
from alinfik.server.address import join_address, parse_address
from alinfik.server.listenable import check_listenable

ports = st.integers(0, 65_535)


@given(
    host=st.one_of(st.sampled_from(["localhost", "::1", "::"]), st.ip_addresses().map(str)),
    port=ports,
)
def test_parsing_undoes_joining(host: str, port: int) -> None:
    assert parse_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":80", "host:-1", "host:65536", "host:٣", "::1:80", "h:8o"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|port is a number"):
        parse_address(text)


def test_an_address_that_is_free_stays_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"--listen 127.0.0.1:{port}: another program"):
            check_listenable(f"127.0.0.1:{port}", "--listen")
    check_listenable(f"127.0.0.1:{port}", "--listen")
    check_listenable(f"127.0.0.1:{port}", "--listen")


def test_an_address_of_another_machine_is_refused() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    with pytest.raises(CommandError, match="this machine has no such address"):
        check_listenable("192.0.2.1:0", "--listen")
