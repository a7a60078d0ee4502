"""The gRPC front door: socket, service, health and reflection, from start to drained.

Comes in: settings. Goes out: a listening server that says NOT_SERVING until it has a bundle, and
again while it drains. Knows nothing of bundles and Kafka.
"""

import asyncio
from typing import Any, cast

import grpc
import structlog
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import (
    add_HealthServicer_to_server,  # pyright: ignore[reportUnknownVariableType] - untyped
)
from grpc_reflection.v1alpha import reflection

from alinfik.command import CommandError
from alinfik.server.access import check_exposure, make_access
from alinfik.server.address import join_address, parse_address
from alinfik.server.bundle_service import BundleService
from alinfik.server.calls import Calls
from alinfik.server.decode import Decode
from alinfik.server.limits import Limits
from alinfik.server.listenable import check_listenable
from alinfik.server.metrics import Metrics
from alinfik.server.registry import Registry
from alinfik.server.service import ValuationService
from alinfik.server.settings import ServerSettings
from alinfik.server.tls import server_credentials
from alinfik.v1 import bundle_service_pb2, valuation_service_pb2
from alinfik.v1.bundle_service_pb2_grpc import add_BundleServiceServicer_to_server
from alinfik.v1.valuation_service_pb2_grpc import add_ValuationServiceServicer_to_server

SERVICE = valuation_service_pb2.DESCRIPTOR.services_by_name["ValuationService"].full_name
ADMIN_SERVICE = bundle_service_pb2.DESCRIPTOR.services_by_name["BundleService"].full_name
# Once all calls are done: for their last bytes to leave, and for health watchers to hear the end.
# The watchers would stay for ever, so they are not waited for.
_PARTING_SECONDS = 0.5

# Of a connection. Pings find peers that died silently, and callers need theirs lest a proxy closes
# an idle stream; to ping more often than every ten seconds gains nothing, and ends the connection
# at the third time. A handshake that takes longer than that is somebody holding a socket.
_CONNECTION = (
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.server_handshake_timeout_ms", 10_000),
)

# Calls that have arrived and that the event loop has not yet come to.
_PENDING_CALLS = 16_384

_log = structlog.get_logger()


class Front:
    """A gRPC server with the standard services beside ours.

    Raises:
        CommandError: the files of TLS or of tokens do not load.
    """

    def __init__(self, settings: ServerSettings, registry: Registry, metrics: Metrics) -> None:
        self._settings = settings
        self._ready = metrics.ready
        self._credentials = server_credentials(settings)
        self._calls = Calls(metrics)
        limits = Limits(settings, metrics, self._calls, registry.refusal)
        self._service = ValuationService(settings, registry, metrics, self._calls, limits)
        self._admin = BundleService(registry, settings.bundle_root, self._calls)
        # The package ships no types.
        self._health: Any = cast("Any", health).aio.HealthServicer()
        self._server = grpc.aio.server(
            # In this order: who may not call takes no room, and what finds none is not parsed.
            interceptors=[make_access(settings, self._calls), limits, Decode(self._calls, limits)],
            options=[
                *_CONNECTION,
                ("grpc.max_connection_age_ms", int(settings.max_connection_seconds * 1000)),
                # gRPC's default lets a second server share the port in silence.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Past these gRPC drops calls itself, as CANCELLED and without a word on when to
                # come back, which we say as soon as we hear of a call.
                ("grpc.server_max_unrequested_time_in_server", settings.pending_seconds),
                ("grpc.server.max_pending_requests", _PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
            ],
        )

    async def listen(self) -> str:
        """Start to answer, with UNAVAILABLE for now; returns the address with its real port.

        Raises:
            CommandError: the address cannot be listened on, or is the network's and nothing
                protects it.
        """
        address = self._settings.listen
        check_listenable(address, "--listen")
        check_exposure(self._settings)
        add_ValuationServiceServicer_to_server(self._service, self._server)
        add_BundleServiceServicer_to_server(self._admin, self._server)
        add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, ADMIN_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._say(HealthCheckResponse.NOT_SERVING)
        try:
            port = (
                self._server.add_secure_port(address, self._credentials)
                if self._credentials
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise CommandError(f"--listen {address}: cannot listen ({error})") from error
        await self._server.start()
        return join_address(parse_address(address)[0], port)

    async def open(self) -> None:
        """Say that the registry has an active bundle."""
        await self._say(HealthCheckResponse.SERVING)

    async def retire(self, seconds: float) -> None:
        """Say for ``seconds`` that the server will take no more, while it still does."""
        self._ready.set(0)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(seconds)

    async def close(self, seconds: float) -> None:
        """Take no more, give calls in flight ``seconds`` to end, then cut them off."""
        self._ready.set(0)
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        stopped = asyncio.create_task(self._server.stop(seconds))
        try:
            async with asyncio.timeout(seconds):
                await self._calls.wait_idle()
        except TimeoutError:
            _log.warning("calls cut off", calls=self._calls.in_flight, drain_seconds=seconds)
        await self._server.stop(_PARTING_SECONDS)
        await stopped

    async def _say(self, status: HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)
        self._ready.set(status == HealthCheckResponse.SERVING)


class NoFront:
    """In place of ``Front`` where a server has no gRPC: it is ready or not, and no more."""

    def __init__(self, metrics: Metrics) -> None:
        self._ready = metrics.ready

    async def listen(self) -> str:
        """No address."""
        return ""

    async def open(self) -> None:
        """Say that the registry has an active bundle."""
        self._ready.set(1)

    async def retire(self, seconds: float) -> None:  # noqa: ARG002 - nobody sends anything
        """Say that the server takes no more."""
        self._ready.set(0)

    async def close(self, seconds: float) -> None:  # noqa: ARG002 - nothing is in flight
        """Say that the server takes no more."""
        self._ready.set(0)
