"""Puts a bundle that appears under the bundle root in service, where the server was told to.

Comes in: a directory, looked at again and again. Goes out: its newest bundle, active in the
registry, beside the one before it, which callers may still name. Knows nothing of how a bundle is
verified and run.
"""

import asyncio
from pathlib import Path

import structlog

from alinfik.server.bundle import MANIFEST, Bundle, BundleError, load_bundle
from alinfik.server.registry import InUseError, NotFoundError, Registry
from alinfik.server.watched import Stamp, stamp

_log = structlog.get_logger()


class BundleWatch:
    """Follows the newest bundle under a directory, by the time at which it was made.

    Args:
        registry: where to put it in service.
        root: the directory; a bundle is a directory in it.
        seconds: from one look to the next.
    """

    def __init__(self, registry: Registry, root: Path, seconds: float) -> None:
        self._registry = registry
        self._root = root
        self._seconds = seconds
        # Calls name it that began before the swap: a file is valued by one bundle, in many calls.
        self._previous = ""
        # What was in each directory when it was last read: one that is being copied is read again.
        self._seen: dict[Path, dict[str, Stamp]] = {}

    async def run(self) -> None:
        """Follow until cancelled; a bundle that does not load is left until it changes."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.look()

    async def look(self) -> None:
        """Look once; what goes wrong is in the log, and the active bundle stays."""
        try:
            appeared = await asyncio.to_thread(self._appeared)
        except Exception:  # noqa: BLE001 - a defect must not end the watch in silence
            _log.exception("bundle root not read", path=str(self._root))
            return
        for bundle in appeared:
            if await self._serve(bundle):
                break

    async def _serve(self, bundle: Bundle) -> bool:
        """Put ``bundle`` in service; False where it does not load, so that an older one may do."""
        with self._registry.use() as engine:
            active = engine.bundle
        if _made(bundle) <= _made(active):
            return True
        try:
            await self._registry.load(bundle)
            self._registry.activate(bundle.id)
            await self._retire(active.id)
        except BundleError as error:
            _log.error("bundle refused, the active one stays", error=str(error))
            return False
        except (InUseError, NotFoundError) as error:
            # An administrator was at it meanwhile, and has the last word.
            _log.warning("bundles were changed by hand meanwhile", error=str(error))
        except Exception:  # noqa: BLE001 - a defect must not end the watch in silence
            _log.exception("bundle not served, the active one stays", path=str(bundle.path))
            return False
        return True

    async def _retire(self, bundle_id: str) -> None:
        """Keep the bundle that was active until the next one has been, and let that one go."""
        gone, self._previous = self._previous, bundle_id
        if gone not in ("", bundle_id, self._registry.active_id):
            await self._registry.unload(gone)

    def _appeared(self) -> list[Bundle]:
        """The bundles that were not there at the last look, newest first."""
        appeared: list[Bundle] = []
        for manifest in self._root.glob(f"*/{MANIFEST}"):
            directory = manifest.parent
            # Of a hidden name, as one that is being written has until it is renamed.
            if directory.name.startswith("."):
                continue
            try:
                stamps = {file.name: stamp(file) for file in directory.iterdir()}
                if self._seen.get(directory) != stamps:
                    self._seen[directory] = stamps
                    appeared.append(load_bundle(directory))
            except BundleError as error:
                _log.error("bundle refused, the active one stays", error=str(error))
            except OSError as error:
                _log.warning("bundle went while it was read", path=str(directory), error=str(error))
        return sorted(appeared, key=_made, reverse=True)


def _made(bundle: Bundle) -> int:
    return bundle.manifest.create_time.ToNanoseconds()
