"""The gRPC service ``alinfik.v1.BundleService``: bundles come and go while the server serves.

Comes in: an administrator's requests. Goes out: a changed registry, or the statuses of ``errors``.
Knows where bundles may lie; knows nothing of engines.
"""

# ruff: noqa: N802 - the proto names the methods

import asyncio
from pathlib import Path

from grpc.aio import ServicerContext

from alinfik.server.bundle import Bundle, BundleError, load_bundle
from alinfik.server.calls import Calls
from alinfik.server.errors import InvalidRequestError
from alinfik.server.registry import InUseError, Registry
from alinfik.v1 import (
    ActivateBundleRequest,
    ActivateBundleResponse,
    LoadBundleRequest,
    LoadBundleResponse,
    UnloadBundleRequest,
    UnloadBundleResponse,
)
from alinfik.v1.bundle_service_pb2_grpc import BundleServiceServicer


class BundleService(BundleServiceServicer):
    """Changes which bundles a registry has.

    Args:
        registry: the one to change.
        root: the directory that bundles are loaded from under; none are where it is None.
        calls: surrounds every call.
    """

    def __init__(self, registry: Registry, root: Path | None, calls: Calls) -> None:
        self._registry = registry
        self._root = root
        self._calls = calls

    async def LoadBundle(
        self,
        request: LoadBundleRequest,
        context: ServicerContext[LoadBundleRequest, LoadBundleResponse],
    ) -> LoadBundleResponse:
        """Load a bundle beside the others."""
        async with self._calls.call("LoadBundle", context):
            try:
                bundle = await asyncio.to_thread(self._read, request.directory)
                await self._registry.load(bundle)
            except BundleError as error:
                raise InvalidRequestError([("directory", str(error))]) from error
            loaded = {one.bundle_id: one for one in self._registry.summaries()}
            return LoadBundleResponse(bundle=loaded[bundle.id])

    async def ActivateBundle(
        self,
        request: ActivateBundleRequest,
        context: ServicerContext[ActivateBundleRequest, ActivateBundleResponse],
    ) -> ActivateBundleResponse:
        """Have a bundle answer, or be compared with the one that does."""
        async with self._calls.call("ActivateBundle", context):
            if request.shadow:
                self._registry.shadow(request.bundle_id)
            else:
                self._registry.activate(request.bundle_id)
            return ActivateBundleResponse(
                active_bundle_id=self._registry.active_id,
                shadow_bundle_id=self._registry.shadow_id,
            )

    async def UnloadBundle(
        self,
        request: UnloadBundleRequest,
        context: ServicerContext[UnloadBundleRequest, UnloadBundleResponse],
    ) -> UnloadBundleResponse:
        """Forget a bundle."""
        async with self._calls.call("UnloadBundle", context):
            await self._registry.unload(request.bundle_id)
            return UnloadBundleResponse()

    def _read(self, directory: str) -> Bundle:
        if self._root is None:
            raise InUseError("the server has no --bundle-root to load bundles from")
        root = self._root.resolve()
        # Resolved, so that neither dots nor links lead out of the root.
        path = (root / directory).resolve()
        if path == root or not path.is_relative_to(root):
            raise InvalidRequestError([("directory", "must name a directory under --bundle-root")])
        return load_bundle(path)
