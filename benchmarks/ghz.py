"""A second opinion on the server, by a load generator that others wrote, and not in Python.

In: an address and rows. Out: what ghz (https://ghz.sh) measures with callers in a closed loop. It
learns the method by reflection and reads its requests from a file, each of which it sends once.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alinfik.distill.samples import Row

_METHOD = "alinfik.v1.ValuationService.Score"


@dataclass(frozen=True)
class Opinion:
    """What ghz says; latencies in ms by percentile."""

    samples_per_second: float
    latency_ms: dict[int, float]
    failed: int


def by_ghz(command: str, address: str, rows: Sequence[Row], size: int, callers: int) -> Opinion:
    """Have ghz send all rows, ``size`` a request.

    Raises:
        CalledProcessError: ghz failed; it says why on standard error.
    """
    requests = [
        {"samples": [{"prompt": row.prompt, "completion": row.completion} for row in group]}
        for group in (rows[start : start + size] for start in range(0, len(rows), size))
    ]
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "requests.json"
        data.write_text(json.dumps(requests))
        flags = ["--insecure", "--call", _METHOD, "--data-file", str(data), "--format", "json"]
        flags += ["--total", str(len(requests)), "--concurrency", str(callers), "--timeout", "60s"]
        ran = subprocess.run([command, *flags, address], check=True, stdout=subprocess.PIPE)
    said = json.loads(ran.stdout)
    return Opinion(
        len(rows) * 1e9 / said["total"],
        {one["percentage"]: one["latency"] / 1e6 for one in said["latencyDistribution"]},
        len(requests) - said["statusCodeDistribution"].get("OK", 0),
    )
