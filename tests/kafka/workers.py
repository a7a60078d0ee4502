"""A server that is started again whenever it ends, as a supervisor would.

Comes in: a bundle and the flags of `alinfik-server`. Goes out: a process that may be killed, and
its log. Knows nothing of Kafka.
"""

import threading
from pathlib import Path

import grpc

from alinfik.v1 import ActivateBundleRequest, LoadBundleRequest, UnloadBundleRequest
from alinfik.v1.bundle_service_pb2_grpc import BundleServiceStub
from tests.server_process import ServerProcess, running_server
from tests.tiny_bundle import read_manifest

_CALL_SECONDS = 60.0


class Worker:
    """One supervised server.

    Args:
        bundle: what it starts with, by its directory under ``--bundle-root``.
        flags: of the command.

    Attributes:
        logs: the lines of each life.
    """

    def __init__(self, bundle: Path, flags: list[str]) -> None:
        self.logs: list[list[str]] = []
        self._bundle = bundle
        self._flags = [*flags, "--open-admin", f"--bundle-root={bundle.parent}"]
        # The model's cost is nothing: measuring which way to run it is quickest would be most of a
        # start.
        self._flags += ["--workers=1", "--threads-per-worker=1"]
        self._server: ServerProcess | None = None
        self._up = threading.Event()
        self._killing = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Keep it up until ``stop``; at the end it must drain and exit with 0."""
        while not self._stopping.is_set():
            with running_server(self._bundle, *self._flags) as server:
                self.logs.append(server.log)
                self._server = server
                self._up.set()
                if not self._stopping.is_set():
                    server.process.wait()

    def kill(self) -> None:
        """SIGKILL, once it is up."""
        with self._killing:
            self._wait_up().process.kill()
            self._up.clear()

    def swap(self, bundle: Path) -> None:
        """Replace the bundle while it serves; a start from now on is with the new one."""
        old, self._bundle = read_manifest(self._bundle).bundle_id, bundle
        new = read_manifest(bundle).bundle_id
        with grpc.insecure_channel(self._wait_up().grpc) as channel:
            admin = BundleServiceStub(channel)
            try:
                admin.LoadBundle(LoadBundleRequest(directory=bundle.name), timeout=_CALL_SECONDS)
                admin.ActivateBundle(ActivateBundleRequest(bundle_id=new), timeout=_CALL_SECONDS)
                admin.UnloadBundle(UnloadBundleRequest(bundle_id=old), timeout=_CALL_SECONDS)
            except grpc.RpcError as error:
                # Killed over it, so it starts with the new one; or it did already, and never had
                # the old one.
                fine = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND
                if not isinstance(error, grpc.Call) or error.code() not in fine:
                    raise

    def stop(self) -> None:
        """SIGTERM; ``run`` returns once it has drained."""
        self._stopping.set()
        if self._server is not None:
            self._server.process.terminate()

    def _wait_up(self) -> ServerProcess:
        assert self._up.wait(_CALL_SECONDS), f"not up in {_CALL_SECONDS} s"
        assert self._server is not None
        return self._server
