"""HOST:PORT addresses.

Comes in: a setting's text. Goes out: host and port, and whose address that is. Knows nothing of
gRPC and HTTP.
"""

import socket
from ipaddress import ip_address

_MAX_PORT = 65_535


def parse_address(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ValueError: there is no host, or the port is not a number from 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = bare != host
    if not colon or not bare or (":" in bare and not bracketed):
        raise ValueError("an address is HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051")
    if not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise ValueError(f"the port is a number from 0 to {_MAX_PORT}")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of ``parse_address``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach ``address``, by all that its host resolves to.

    Raises:
        OSError: no name resolves; see ``listenable``.
    """
    host, port = parse_address(address)
    return all(
        ip_address(found[4][0]).is_loopback
        for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
