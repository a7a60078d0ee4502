"""How both clients talk to a server: retries, keepalive, limits. Options of a channel, no more.

In: the server's address. Out: options.
"""

import json
from typing import Any

from alinfik.client.batches import BYTES_A_REQUEST, REQUESTS_IN_FLIGHT
from alinfik.client.security import stays_here

# A unary call is repeated by ``retry``, which heeds the delay that a server asks for. A stream is
# left to gRPC, which repeats it where nobody takes it and no answer has come yet: it alone still
# has the requests that were sent. After up to 0.1, 0.2, 0.4 and 0.8 s, each drawn at random.
# A full queue slows a stream and never ends it. RESOURCE_EXHAUSTED says that the server has as many
# streams as it may; then the caller decides.
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "alinfik.v1.ValuationService", "method": "ScoreStream"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                # The latter where the server has not come to it in its --pending-seconds.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
    ]
}

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # What gRPC keeps of a stream to send it again; past its default of 256 KiB it gives up at once.
    # Twice the samples, since ids and targets stand beside them.
    ("grpc.per_rpc_retry_buffer_size", 2 * REQUESTS_IN_FLIGHT * BYTES_A_REQUEST),
    # Finds a connection that died silently (a laptop asleep, a dropped NAT entry) while a call is
    # open. Five minutes is the least that a gRPC server allows unless told otherwise, and closes
    # the connection below with "too many pings"; the sixth is for clocks that differ.
    ("grpc.keepalive_time_ms", 6 * 60 * 1000),
    ("grpc.keepalive_timeout_ms", 20 * 1000),
    # A server that comes back is noticed within seconds, not after gRPC's default of two minutes.
    ("grpc.max_reconnect_backoff_ms", 5 * 1000),
    # Answers are ours to bound (SAMPLES_A_REQUEST); a manifest with many targets is not.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


# gRPC takes a deadline past what its clock can count for one that has passed.
_LONGEST_SECONDS = 1e6


def checked_timeout(seconds: float) -> float:
    """Return the seconds that an answer may take.

    Raises:
        ValueError: they are none, or too many.
    """
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError(f"a timeout of {seconds:g} s: give more than 0 and at most 1,000,000")
    return seconds


def channel_options(address: str) -> list[tuple[str, Any]]:
    """Options of a channel to a gRPC target.

    What stays on this machine does not go by the proxy of `http_proxy`, where gRPC would send even
    loopback: a token in clear must not leave.
    """
    return [*_OPTIONS, ("grpc.enable_http_proxy", int(not stays_here(address)))]
