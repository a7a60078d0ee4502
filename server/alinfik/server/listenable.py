"""Says why an address cannot be listened on, before a server tries.

Comes in: a setting's address. Goes out: nothing, or an error that names the mend. Knows nothing of
gRPC and HTTP.
"""

import errno
import socket

from alinfik.command import CommandError
from alinfik.server.address import parse_address


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


def _mend(error: OSError, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program listens there; stop it, or give {flag} another port (0: any free)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; 127.0.0.1 and 0.0.0.0 always work"
    if error.errno == errno.EACCES:
        return "not permitted; ports under 1024 need privileges, so choose a higher one"
    return f"cannot listen ({error.strerror})"
