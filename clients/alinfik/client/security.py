"""How a client shows who it is, and makes sure of whom it talks to.

In: a token, PEM files. Out: the metadata of every call, the credentials of a channel. Knows nothing
of calls; what a token allows is the server's to say.
"""

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """A connection by TLS. ``Tls()`` trusts the authorities that come with gRPC.

    Args:
        ca: PEM file of the authorities that may vouch for the server; give it where the server's
            certificate is by an authority of your own.
        certificate: PEM file of the client's certificate, where the server asks for one (mTLS).
        key: PEM file of that certificate's private key.

    Raises:
        ValueError: a certificate without its key, or a key without its certificate.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            there, lacks = ("key", "certificate") if self.key else ("certificate", "key")
            raise ValueError(f"a TLS {there} needs its {lacks} beside it")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is no PEM, or not of what it should be.
        """
        pems = [_pem(file) for file in (self.ca, self.key, self.certificate)]
        self._check()
        return grpc.ssl_channel_credentials(*pems)

    def _check(self) -> None:
        """Have OpenSSL read the files: gRPC says at the first call that nobody answers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(cafile=self.ca)
            except ssl.SSLError as error:
                raise ValueError(f"{os.fspath(self.ca)} holds no certificate ({error})") from error
        if self.certificate is not None:
            try:
                # Without a password OpenSSL would ask the terminal for that of an encrypted key.
                context.load_cert_chain(self.certificate, self.key, password="")
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(
                    f"{os.fspath(self.certificate)} and {os.fspath(self.key or '')} are no "
                    f"certificate and its key, unencrypted ({error})"
                ) from error


def authorization(
    address: str, token: str | None, *, encrypted: bool
) -> tuple[tuple[str, str], ...]:
    """The metadata that every call to ``address`` carries; empty without a token.

    Args:
        address: the gRPC target.
        token: what the server's operator gave to the caller.
        encrypted: nobody on the way can read what is sent.

    Raises:
        ValueError: the token could be read on the way, or is none that a header can carry.
    """
    if token is None:
        return ()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("a token is printable ASCII without spaces, and not empty")
    if not (encrypted or stays_here(address)):
        raise ValueError(
            f"{address}: the token would travel in clear. Use TLS; where something else encrypts "
            "the connection, as a service mesh does, say allow-plaintext-token"
        )
    return (("authorization", f"Bearer {token}"),)


def stays_here(address: str) -> bool:
    """Whether all of a gRPC target is this machine: loopback addresses, Unix sockets.

    https://github.com/grpc/grpc/blob/master/doc/naming.md
    """
    scheme, colon, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        address = re.sub(r"^//[^/]*/", "", rest)
    return all(_is_loopback(one) for one in address.split(","))


def _is_loopback(host_and_port: str) -> bool:
    bracketed = re.match(r"\[([^]]*)]", host_and_port)
    host = bracketed[1] if bracketed else host_and_port.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(file: str | os.PathLike[str] | None) -> bytes | None:
    if file is None:
        return None
    content = Path(file).read_bytes()
    # gRPC would take anything, and say at the first call that nobody answers.
    if b"-----BEGIN " not in content:
        raise ValueError(f"{os.fspath(file)} is no PEM file: it has no line -----BEGIN …-----")
    return content
