"""Who may call what: one table from method to role, asked before a call is read.

Comes in: every call's method and metadata. Goes out: the call, or UNAUTHENTICATED or
PERMISSION_DENIED. Knows nothing of what the methods do and of how tokens are kept.
"""

from collections.abc import Collection
from contextvars import ContextVar
from typing import Literal

import grpc
import structlog
from grpc.aio import ServerInterceptor
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from structlog.contextvars import bind_contextvars

from alinfik.command import CommandError
from alinfik.server.address import is_loopback
from alinfik.server.calls import Calls, Continuation, Handler
from alinfik.server.errors import PermissionDeniedError, UnauthenticatedError
from alinfik.server.settings import ServerSettings
from alinfik.server.tokens import Role, Tokens
from alinfik.v1 import bundle_service_pb2, valuation_service_pb2

_VALUATIONS = valuation_service_pb2.DESCRIPTOR.services_by_name["ValuationService"]
_BUNDLES = bundle_service_pb2.DESCRIPTOR.services_by_name["BundleService"]

# What a caller needs for a service, or for one method of it. Nothing else is served.
NEEDED: dict[str, Role | Literal["nothing"]] = {
    HEALTH: "nothing",
    REFLECTION: "nothing",
    _VALUATIONS.full_name: "score",
    f"{_VALUATIONS.full_name}/Quote": "quote",
    _BUNDLES.full_name: "admin",
}

# A method that there is not must not become a label of its own.
_METHODS = {
    f"{service.full_name}/{method.name}": method.name
    for service in (_VALUATIONS, _BUNDLES)
    for method in service.methods
}
_BEARER = "bearer"
# Of the current call's caller: a call has a task of its own, and so a context.
_roles: ContextVar[Collection[Role]] = ContextVar("roles", default=())

_log = structlog.get_logger()


class Access(ServerInterceptor):
    """Lets through the calls of those who may make them.

    Args:
        tokens: who may do what; None where everyone may do ``open_roles``.
        open_roles: what may be done without tokens.
        calls: ends the calls that are not let through.
    """

    def __init__(self, tokens: Tokens | None, open_roles: Collection[Role], calls: Calls) -> None:
        self._tokens = tokens
        self._open_roles = open_roles
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Hand the call on, or what refuses it."""
        method = handler_call_details.method.removeprefix("/")
        needed = NEEDED.get(method) or NEEDED.get(method.partition("/")[0])
        if needed is None:
            # UNIMPLEMENTED, served or not: what the table does not know is closed.
            return None
        try:
            if needed != "nothing":
                self._check(needed, handler_call_details)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            return self._calls.refusal(_METHODS.get(method, "unknown"), error)
        return await continuation(handler_call_details)

    def _check(self, needed: Role, call: grpc.HandlerCallDetails) -> None:
        if self._tokens is None:
            _roles.set(self._open_roles)
            if needed not in self._open_roles:
                raise PermissionDeniedError(
                    "this server has no tokens, so nobody may do this; start it with --tokens "
                    "FILE, or with --open-admin on a machine of your own",
                    needed,
                )
            return
        if (token := _token(call)) is None:
            raise UnauthenticatedError(
                "a token is needed: send the metadata `authorization: Bearer TOKEN`"
            )
        if (holder := self._tokens.holder(token)) is None:
            raise UnauthenticatedError(
                "nobody has that token; ask whoever runs this server for a new one"
            )
        # For every line that the log has on this call.
        bind_contextvars(caller=holder.name)
        _roles.set(holder.roles)
        if needed not in holder.roles:
            raise PermissionDeniedError(
                f"{holder.name}'s token has not the role {needed}; whoever runs this server can "
                "add it",
                needed,
            )


def may_administer() -> bool:
    """Whether the current call is by someone who may call ``BundleService`` too."""
    return "admin" in _roles.get()


def make_access(settings: ServerSettings, calls: Calls) -> Access:
    """The access that ``settings`` grant.

    Raises:
        CommandError: the token file does not load.
    """
    tokens = Tokens(settings.tokens) if settings.tokens else None
    open_roles: set[Role] = {"score", "quote"}
    if settings.open_admin:
        open_roles.add("admin")
    return Access(tokens, open_roles, calls)


def check_exposure(settings: ServerSettings) -> None:
    """Refuse to be open to the network by mistake; warn of tokens that can be read on the way.

    Raises:
        CommandError: --listen is not of this machine alone, and nothing protects it.
    """
    if settings.allow_insecure or is_loopback(settings.listen):
        return
    if settings.open_admin and not settings.tls_client_ca:
        raise CommandError(
            f"--listen {settings.listen} with --open-admin lets the whole network switch bundles; "
            "give --tokens with the role admin in its place, or --tls-client-ca beside it"
        )
    if settings.tls_certificate:
        return
    if not settings.tokens:
        raise CommandError(
            f"--listen {settings.listen} opens the server to the network with neither TLS nor "
            "tokens; give --tls-certificate and --tls-key, or --tokens, or say --allow-insecure"
        )
    _log.warning(
        "tokens cross the network unencrypted; give --tls-certificate and --tls-key, or say "
        "--allow-insecure where a proxy encrypts",
        listen=settings.listen,
    )


def _token(call: grpc.HandlerCallDetails) -> str | None:
    for key, value in call.invocation_metadata or ():
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            return token.strip() if scheme.lower() == _BEARER else None
    return None
