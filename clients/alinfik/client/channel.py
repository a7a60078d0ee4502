"""How both clients talk to a server: retries, keepalive, limits. Options of a channel, no more."""

import json
from typing import Any

_SERVICE = "alinfik.v1.ValuationService"


def _retry(*codes: str) -> dict[str, Any]:
    """At most 4 retries, after up to 0.1, 0.2, 0.4 and 0.8 s (each drawn at random, as gRPC does).

    So a restart behind a load balancer or a full queue of about a second is ridden out, and a
    server that is not there is reported after at most a second and a half.
    """
    return {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": list(codes),
    }


# Every method is free of side effects, so repeating a call is always safe.
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": _retry("UNAVAILABLE", "RESOURCE_EXHAUSTED"),
        },
        # A full queue slows a stream and never ends it, so RESOURCE_EXHAUSTED there is no passing
        # state; and once the first answer is here gRPC does not retry a stream at all.
        {
            "name": [{"service": _SERVICE, "method": "ScoreStream"}],
            "retryPolicy": _retry("UNAVAILABLE"),
        },
    ]
}

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
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
