"""Bearer tokens: who may do what, from a file that holds their hashes alone.

    # NAME ROLE[,ROLE] SHA256HEX
    alice score        2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    ops   score,admin  fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9

Comes in: a file, a token. Goes out: whose token it is, or that it is nobody's. Knows nothing of
calls and methods. A token has 256 random bits, so its plain SHA-256 cannot be guessed back.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from alinfik.command import CommandError
from alinfik.server.watched import Watched

Role = Literal["score", "quote", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

_TOKEN_BYTES = 32
_FIELDS = 3
# So long may a revoked token still work; a `stat` a call would be the price of less.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a token, and what for. A name may have several, as while one replaces another."""

    name: str
    roles: frozenset[Role]
    sha256: str
    """Of the token, in lower-case hex."""


class Tokens:
    """The tokens of a file, which is read again within a second of a change.

    Raises:
        CommandError: as ``read_tokens``.
    """

    def __init__(self, path: Path) -> None:
        self._holders = Watched([path], lambda: read_tokens(path), _LOOK_SECONDS)

    def __len__(self) -> int:
        return len(self._holders.current())

    def holder(self, token: str) -> Holder | None:
        """Whose ``token`` it is; takes as long for one that is nobody's."""
        digest = _digest(token)
        found = None
        for holder in self._holders.current():
            if hmac.compare_digest(holder.sha256, digest):
                found = holder
        return found


def new_token(name: str, roles: list[Role]) -> tuple[str, str]:
    """A random token, and the line by which a token file knows it."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    return token, f"{name} {','.join(roles)} {_digest(token)}"


def read_tokens(path: Path) -> list[Holder]:
    """Parse a token file. One without tokens is right: it lets nobody in.

    Raises:
        CommandError: says which line is wrong, what with it, and never what stands there: it may
            be a token in the clear.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--tokens {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"--tokens {path}: is not text in UTF-8") from error
    holders: dict[str, Holder] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        holder = _holder(line, f"--tokens {path}, line {number}")
        if first := holders.get(holder.sha256):
            raise CommandError(
                f"--tokens {path}, line {number}: {first.name} has that token already; make "
                "another by `alinfik-server token`"
            )
        holders[holder.sha256] = holder
    return list(holders.values())


def _holder(line: str, place: str) -> Holder:
    fields = line.split()
    if len(fields) != _FIELDS:
        raise CommandError(
            f"{place}: has {len(fields)} fields; it takes NAME ROLE[,ROLE] SHA256HEX, such as "
            "`alinfik-server token` prints"
        )
    name, roles, digest = fields
    named: list[Role] = [role for role in ROLES if role in roles.split(",")]
    if len(named) != len(roles.split(",")):
        raise CommandError(f"{place}: roles are {', '.join(ROLES)}, each once, between commas")
    if not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise CommandError(
            f"{place}: the third field is the token's SHA-256, 64 hex digits, not the token itself"
        )
    return Holder(name, frozenset(named), digest.lower())


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()
