"""A second opinion on the server, by a load generator that others wrote, and not in Python.

In: an address and rows. Out: what ghz (https://ghz.sh) measures with callers in a closed loop. It
reads the contract and its requests, each of which it sends once, from files that are made for it:
it asks reflection for a method's name, and grpcio's knows services alone.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from alinfik.distill.samples import Row
from alinfik.v1 import valuation_service_pb2

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
        data, contract = Path(directory) / "requests.json", Path(directory) / "contract.protoset"
        data.write_text(json.dumps(requests))
        contract.write_bytes(_contract().SerializeToString())
        flags = ["--insecure", "--call", _METHOD, "--protoset", str(contract)]
        flags += ["--data-file", str(data), "--format", "json"]
        flags += ["--total", str(len(requests)), "--concurrency", str(callers), "--timeout", "60s"]
        ran = subprocess.run([command, *flags, address], check=True, stdout=subprocess.PIPE)
    said = json.loads(ran.stdout)
    return Opinion(
        len(rows) * 1e9 / said["total"],
        {one["percentage"]: one["latency"] / 1e6 for one in said["latencyDistribution"]},
        len(requests) - said["statusCodeDistribution"].get("OK", 0),
    )


def _contract() -> FileDescriptorSet:
    """The service's file and all that it imports, imports first."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        files[file.name] = file

    add(valuation_service_pb2.DESCRIPTOR)
    found = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found
