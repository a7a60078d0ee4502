"""What texts the server's settings may be: paths, addresses, a collector's URL.

Comes in: a flag's, a variable's or a file's text. Goes out: the setting, or why it will not do.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from alinfik.server.address import parse_address


def _paths(value: object) -> object:
    """A list of paths, also from one path, or from several with commas between."""
    if isinstance(value, str):
        return value.split(",")
    return [value] if isinstance(value, Path) else value


def _address(text: str) -> str:
    parse_address(text)
    return text


def _collector(url: str) -> str:
    if url:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or parts.path.strip("/"):
            raise ValueError(
                "a collector is http://HOST:PORT, or https://HOST:PORT, of its OTLP over gRPC"
            )
        parse_address(parts.netloc)
    return url


Paths = Annotated[list[Path], NoDecode, BeforeValidator(_paths), MinLen(1)]
Address = Annotated[str, AfterValidator(_address)]
AddressOrNone = Annotated[str, AfterValidator(lambda text: text and _address(text))]
Collector = Annotated[str, AfterValidator(_collector)]
