"""TLS of the gRPC port: certificate, key and client CA from PEM files that may change at any time.

Comes in: paths. Goes out: gRPC's credentials, which show the files' newest content at the next
handshake, or what is wrong with them. Knows nothing of tokens and calls.
"""

import ssl
from pathlib import Path

import grpc

from alinfik.command import CommandError
from alinfik.server.settings import ServerSettings
from alinfik.server.watched import Watched


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """The credentials that ``settings`` name files for; None where they name none.

    Raises:
        CommandError: a file cannot be read, holds something else, or the key is not the
            certificate's.
    """
    certificate, key, client_ca = (
        settings.tls_certificate,
        settings.tls_key,
        settings.tls_client_ca,
    )
    if not certificate or not key:
        return None
    paths = [path for path in (certificate, key, client_ca) if path]
    watched = Watched(paths, lambda: _load(certificate, key, client_ca))
    shown = watched.current()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        before, shown = shown, watched.current()
        return None if shown is before else shown

    return grpc.dynamic_ssl_server_credentials(
        shown,
        newer,  # pyright: ignore[reportArgumentType] - None is "no change", which its types leave out
        require_client_authentication=client_ca is not None,
    )


def _load(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCertificateConfiguration:
    chain = _certificates(certificate, "--tls-certificate")
    private = read_pem(key, "--tls-key")
    roots = _certificates(client_ca, "--tls-client-ca") if client_ca else None
    try:
        # The password keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise CommandError(_mend(certificate, key, error)) from error
    return grpc.ssl_server_certificate_configuration([(private, chain)], roots)


def _mend(certificate: Path, key: Path, error: OSError) -> str:
    match getattr(error, "reason", None):
        case None:
            return f"--tls-key {key}: holds no private key in PEM form, or one with a password"
        case "KEY_VALUES_MISMATCH":
            return f"--tls-key {key}: is not the key of --tls-certificate {certificate}"
        case reason:
            return f"--tls-certificate {certificate} and --tls-key {key} will not do ({reason})"


def _certificates(path: Path, flag: str) -> bytes:
    content = read_pem(path, flag)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
    except OSError as error:
        raise CommandError(f"{flag} {path}: holds no certificate in PEM form") from error
    return content


def read_pem(path: Path, flag: str) -> bytes:
    """The content of the file that ``flag`` names.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{flag} {path}: cannot be read ({error.strerror})") from error
