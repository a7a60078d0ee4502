"""HOST:PORT addresses: parsing them, and saying why one cannot be listened on.

Comes in: a setting's text. Goes out: host and port, or an error that names the mend. Knows nothing
of gRPC and HTTP.
"""

import errno
import socket
from ipaddress import ip_address

from alinfik.command import CommandError

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


def check_listenable(address: str, flag: str) -> None:
    """Bind and release, since only the operating system can say why an address will not do.

    Raises:
        CommandError: the address is in use, not of this machine, forbidden, or no name resolves.
    """
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # Else a server that has just ended blocks its own port for a minute.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except socket.gaierror as error:
        raise CommandError(f"{flag} {address}: no such host ({error.strerror})") from error
    except OSError as error:
        raise CommandError(f"{flag} {address}: {_mend(error, flag)}") from error


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach ``address``, by all that its host resolves to.

    Raises:
        OSError: no name resolves; see ``check_listenable``.
    """
    host, port = parse_address(address)
    return all(
        ip_address(found[4][0]).is_loopback
        for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )


def _mend(error: OSError, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program listens there; stop it, or give {flag} another port (0: any free)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; 127.0.0.1 and 0.0.0.0 always work"
    if error.errno == errno.EACCES:
        return "not permitted; ports under 1024 need privileges, so choose a higher one"
    return f"cannot listen ({error.strerror})"
