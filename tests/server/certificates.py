"""Certificate files as an operator would lay them out."""

from pathlib import Path
from typing import NamedTuple

import trustme

LOCALHOST = "localhost", "127.0.0.1"


class Pair(NamedTuple):
    """PEM files of a certificate with its chain, and of its key."""

    certificate: Path
    key: Path


def write_pair(directory: Path, name: str, authority: trustme.CA, *names: str) -> Pair:
    """Issue a certificate, by default for this machine, and write it over ``name``'s."""
    issued = authority.issue_cert(*(names or LOCALHOST))
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    pair.key.write_bytes(issued.private_key_pem.bytes())
    return pair


def write_authority(directory: Path, name: str, authority: trustme.CA) -> Path:
    """The CA's own certificate."""
    path = directory / f"{name}.pem"
    path.write_bytes(authority.cert_pem.bytes())
    return path
