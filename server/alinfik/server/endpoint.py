"""Serves /metrics over HTTP, on an address of its own, for Prometheus.

Comes in: a registry. Goes out: its metrics, to whoever asks. Knows nothing of what they mean.
"""

from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from alinfik.server.address import join_address, parse_address
from alinfik.server.listenable import check_listenable


@contextmanager
def serve_metrics(address: str, registry: CollectorRegistry) -> Generator[str, None, None]:
    """Serve ``registry`` at ``address`` from a thread; yields the address with its real port.

    Raises:
        CommandError: the address cannot be listened on.
    """
    check_listenable(address, "--metrics")
    # A second series for each counter, which says when it was made: twice the series for nothing
    # that Prometheus reads by default.
    disable_created_metrics()
    host, port = parse_address(address)
    server, thread = start_http_server(port, host, registry)
    try:
        yield join_address(host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
