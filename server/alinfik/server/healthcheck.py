"""`python -m alinfik.server.healthcheck`: is the server on this machine ready?

In: the server's own settings of where it listens and with which certificate. Out: exit code 0
where it is SERVING by the gRPC health protocol, or by its metrics where it has no gRPC, else 1 and
one line; 2 where a setting will not do. For container engines, which can run a command and no more.

They run it all day long, so it loads grpc and nothing beside: what other commands read their
settings with takes four times as long as the check.
"""

import os
import sys
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import grpc

from alinfik.server.address import join_address, parse_address

_PROGRAM = "alinfik.server.healthcheck"
# Addresses that mean every interface to a server, and nothing to a client.
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing listens here
# The messages of grpc.health.v1, as they are on the wire.
_CHECK, _SERVING = b"", b"\x08\x01"
# gRPC would ask even this machine by the proxy of `http_proxy`, which container engines pass on.
_DIRECTLY = [("grpc.enable_http_proxy", 0)]

_DEFAULTS = {
    "listen": "127.0.0.1:50051",
    "metrics": "127.0.0.1:9464",
    "health_timeout_seconds": "5",
}
_HELP = {
    "listen": "HOST:PORT that the server listens on. Empty, as the server's own: it has no gRPC, "
    "and its --metrics are asked.",
    "metrics": "HOST:PORT of the server's metrics.",
    "tls_certificate": "PEM file of the server's certificate, where it has one: it is trusted.",
    "health_ca": "PEM file of the CA to trust instead. Only for a server on another machine, whose "
    "certificate is not at hand.",
    "health_name": "A name in that certificate; needed where the address is not in it.",
    "health_certificate": "PEM file of a client certificate, for a server with --tls-client-ca.",
    "health_key": "PEM file of its private key.",
    "health_timeout_seconds": "Time to wait for the answer; under the container engine's own.",
}


class _NotReadyError(Exception):
    """The server does not answer, or says that it is not ready."""


class _SettingError(Exception):
    """A setting will not do."""


def main(arguments: Sequence[str]) -> NoReturn:
    """Ask once and exit."""
    code, said = 0, ""
    try:
        _ask(_read(arguments))
    except _NotReadyError as error:
        code, said = 1, str(error)
    except _SettingError as error:
        code, said = 2, str(error)
    if said:
        print(f"{_PROGRAM}: {' '.join(said.split())}", file=sys.stderr)
    sys.exit(code)


def _read(arguments: Sequence[str]) -> Namespace:
    """The settings: flags, then the environment, then the server's file."""
    summary = "Exit with 0 if the server on this machine is ready. No token is needed."
    parser = ArgumentParser(_PROGRAM, description=summary, allow_abbrev=False)
    parser.add_argument("--config", default=os.environ.get("ALINFIK_CONFIG"), metavar="FILE.toml")
    for name, purpose in _HELP.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=purpose)
    settings = parser.parse_args(arguments)
    try:
        held = tomllib.loads(Path(settings.config).read_text()) if settings.config else {}
    except (OSError, ValueError) as error:
        raise _SettingError(f"--config {settings.config}: {error}") from error
    for name in _HELP:
        if getattr(settings, name) is None:
            default = str(held.get(name, _DEFAULTS.get(name, "")))
            setattr(settings, name, os.environ.get(f"ALINFIK_{name.upper()}", default))
    if bool(settings.health_certificate) != bool(settings.health_key):
        raise _SettingError("--health-certificate and --health-key go together")
    return settings


def _ask(settings: Namespace) -> None:
    try:
        seconds = float(settings.health_timeout_seconds)
    except ValueError as error:
        raise _SettingError(f"--health-timeout-seconds: {error}") from error
    if not settings.listen:
        _ask_metrics(_reachable(settings, "metrics"), seconds)
        return
    address = _reachable(settings, "listen")
    with _channel(address, settings) as channel:
        try:
            # Not the library's stub, which has no types, nor its messages, which load protobuf.
            ask = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
            answer = ask(_CHECK, timeout=seconds)
        except grpc.RpcError as error:
            reason = error.details() if isinstance(error, grpc.Call) else error
            raise _NotReadyError(f"{address} does not answer: {reason}") from error
    if answer != _SERVING:
        raise _NotReadyError(f"{address} is NOT_SERVING")


def _ask_metrics(address: str, seconds: float) -> None:
    from http.client import HTTPConnection, HTTPException

    asked = HTTPConnection(address, timeout=seconds)
    try:
        asked.request("GET", "/metrics")
        lines = asked.getresponse().read().decode().splitlines()
    except (OSError, HTTPException) as error:
        raise _NotReadyError(f"{address} does not answer: {error}") from error
    finally:
        asked.close()
    if "alinfik_ready 1.0" not in lines:
        raise _NotReadyError(f"{address} is not ready")


def _channel(address: str, settings: Namespace) -> grpc.Channel:
    trusted = "health_ca" if settings.health_ca else "tls_certificate"
    if not getattr(settings, trusted):
        return grpc.insecure_channel(address, _DIRECTLY)
    credentials = grpc.ssl_channel_credentials(
        *(_pem(settings, name) for name in (trusted, "health_key", "health_certificate"))
    )
    name = settings.health_name
    named = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(address, credentials, [*_DIRECTLY, *named])


def _pem(settings: Namespace, name: str) -> bytes | None:
    """The content of the file that a setting names, if it does."""
    if not (path := getattr(settings, name)):
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        flag = f"--{name.replace('_', '-')}"
        raise _SettingError(f"{flag} {path}: cannot be read ({error.strerror})") from error


def _reachable(settings: Namespace, name: str) -> str:
    """The address for a client, of one to listen on."""
    try:
        host, port = parse_address(getattr(settings, name))
    except ValueError as error:
        raise _SettingError(f"--{name}: {error}") from error
    return join_address(_EVERY_INTERFACE.get(host, host), port)


if __name__ == "__main__":
    main(sys.argv[1:])
