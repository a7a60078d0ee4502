"""Puts a bundle that appears under the bundle root in service, where the server was told to.

Comes in: a directory, looked at again and again. Goes out: its newest bundle, active in the
registry, and the one before it gone. Knows nothing of how a bundle is verified and run.
"""

import asyncio
from pathlib import Path

import structlog

from alinfik.server.bundle import MANIFEST, Bundle, BundleError, load_bundle
from alinfik.server.errors import InUseError, NotFoundError
from alinfik.server.registry import Registry

# What changes when a file is written to.
_Stamp = tuple[str, int, int]

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
        # What was in each directory when it was last read: one that is being copied is read again.
        self._seen: dict[Path, list[_Stamp]] = {}

    async def run(self) -> None:
        """Follow until cancelled; a bundle that does not load is left until it changes."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - a defect must not end the watch in silence
                _log.exception("bundle root not read", path=str(self._root))
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Look once."""
        for bundle in await asyncio.to_thread(self._appeared):
            with self._registry.use() as engine:
                active = engine.bundle
            if _made(bundle) <= _made(active):
                continue
            try:
                await self._registry.load(bundle)
                self._registry.activate(bundle.id)
                await self._registry.unload(active.id)
            except BundleError as error:
                _log.error("bundle refused, the active one stays", error=str(error))
            except (InUseError, NotFoundError) as error:
                # An administrator was at it meanwhile, and has the last word.
                _log.warning("bundles were changed by hand meanwhile", error=str(error))
            except Exception:  # noqa: BLE001 - a defect must not end the watch in silence
                _log.exception("bundle not served, the active one stays", path=str(bundle.path))

    def _appeared(self) -> list[Bundle]:
        """The bundles that were not there at the last look, oldest first."""
        appeared: list[Bundle] = []
        for manifest in self._root.glob(f"*/{MANIFEST}"):
            directory = manifest.parent
            # Of a hidden name, as one that is being written has until it is renamed.
            if directory.name.startswith("."):
                continue
            try:
                stamps = sorted(map(_stamp, directory.iterdir()))
                if self._seen.get(directory) != stamps:
                    self._seen[directory] = stamps
                    appeared.append(load_bundle(directory))
            except BundleError as error:
                _log.error("bundle refused, the active one stays", error=str(error))
            except OSError as error:
                _log.warning("bundle went while it was read", path=str(directory), error=str(error))
        return sorted(appeared, key=_made)


def _stamp(file: Path) -> _Stamp:
    stat = file.stat()
    return file.name, stat.st_mtime_ns, stat.st_size


def _made(bundle: Bundle) -> int:
    return bundle.manifest.create_time.ToNanoseconds()
