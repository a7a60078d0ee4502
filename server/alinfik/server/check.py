"""Whether a server with these settings would start, found out without serving.

Comes in: settings. Goes out: what they come to, or the one thing that is wrong. Knows nothing of
brokers, which may well be down now and up later.
"""

from typing import TypedDict

from prometheus_client import CollectorRegistry

from alinfik.server.access import check_exposure
from alinfik.server.bundle import Bundle, load_bundles
from alinfik.server.engine import Engine
from alinfik.server.kafka_security import connection
from alinfik.server.listenable import check_listenable
from alinfik.server.metrics import Metrics
from alinfik.server.settings import ServerSettings
from alinfik.server.tls import server_credentials
from alinfik.server.tokens import read_tokens
from alinfik.server.tracing import check_tracing


class FoundBundle(TypedDict):
    """What a bundle comes to on this machine."""

    bundle_id: str
    targets: list[str]
    device: str
    precision: str


class Found(TypedDict):
    """What settings come to on this machine."""

    bundles: list[FoundBundle]
    """The one that values requests which name none is the first."""
    tls: str
    """``none``, ``server``, or ``mutual`` where clients need a certificate."""
    tokens: int | None
    """How many there are; None where none are asked for."""


async def check(settings: ServerSettings) -> Found:
    """Verify all that a server reads at its start, and run the model once.

    Raises:
        CommandError: as ``serve``.
    """
    check_tracing(settings)
    check_listenable(settings.metrics, "--metrics")
    if settings.listen:
        check_listenable(settings.listen, "--listen")
        check_exposure(settings)
    credentials = server_credentials(settings)
    connection(settings)
    tokens = read_tokens(settings.tokens) if settings.tokens else None
    bundles, shadow = load_bundles(settings.bundle, settings.shadow)
    return Found(
        bundles=[await _try(one, settings) for one in (*bundles, shadow) if one],
        tls="none" if not credentials else "mutual" if settings.tls_client_ca else "server",
        tokens=None if tokens is None else len(tokens),
    )


async def _try(bundle: Bundle, settings: ServerSettings) -> FoundBundle:
    async with Engine(bundle, settings, Metrics(CollectorRegistry())) as engine:
        return FoundBundle(
            bundle_id=bundle.id,
            targets=bundle.targets,
            device=engine.warm.runtime.device,
            precision=engine.warm.precision,
        )
