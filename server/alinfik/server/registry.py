"""The bundles that are loaded: which of them answers, and which is only compared with it.

Comes in: bundles, and samples for one of them. Goes out: what that one's engine says. Bundles come
and go while samples are valued: a call is valued by one bundle from its start to its end, and a
bundle goes once no call is left in it. Knows nothing of gRPC, Kafka and where bundles come from.
"""

import asyncio
import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from alinfik.server.admission import QueueFull
from alinfik.server.batching import Priority
from alinfik.server.bundle import Bundle
from alinfik.server.engine import Engine, NotRunningError, Scored
from alinfik.server.metrics import Metrics
from alinfik.server.settings import ServerSettings
from alinfik.server.shadow import Shadow
from alinfik.server.tally import Source
from alinfik.v1 import BundleSummary, Explanation, Sample

# Characters of what a caller sent that are said back; a bundle's id has 64.
_ECHOED = 64
_IS_ACTIVE = "bundle {} is the active one; activate another one first"

_log = structlog.get_logger()


class NotFoundError(Exception):
    """A request names a ``kind`` of thing (``bundle``, ``target``) that is not there."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        if len(name) > _ECHOED:
            name = f"{name[:_ECHOED]}…"
        super().__init__(f"no {kind} {name!r}; there is {', '.join(known)}")
        self.kind = kind
        self.name = name


class InUseError(Exception):
    """What is asked for cannot be while something is as it is; the message says what."""


@dataclass
class _Loaded:
    """An engine and how many calls are in it."""

    engine: Engine
    calls: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()


class Registry:
    """The engines of all loaded bundles, by bundle id.

    Args:
        settings: of every engine.
        metrics: where all of them count.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.starting = False
        """Whether bundles are still to come, so that one which is missing may yet be among them."""
        self._loaded: dict[str, _Loaded] = {}
        self._active = ""
        self._shadow: Shadow | None = None
        # Engines that are unloaded and still answer.
        self._going: dict[asyncio.Task[None], Engine] = {}
        self._changing = asyncio.Lock()
        self._interactive = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._calm_since = -math.inf

    @property
    def active_id(self) -> str:
        """The bundle that values requests which name none; empty while there is none."""
        return self._active

    @property
    def shadow_id(self) -> str:
        """The bundle that is compared with it; empty where there is none."""
        return self._shadow.bundle_id if self._shadow else ""

    async def load(self, bundle: Bundle) -> None:
        """Start an engine for ``bundle``; nothing happens where it has one.

        Raises:
            BundleError: it does not load, or does not pass the trial. All is as it was.
        """
        async with self._changing:
            if bundle.id in self._loaded:
                return
            engine = Engine(bundle, self._settings, self._metrics)
            await engine.start()
            self._loaded[bundle.id] = _Loaded(engine)
            self._show()
        _log.info(
            "bundle loaded",
            bundle_id=bundle.id,
            path=str(bundle.path),
            workers=engine.warm.workers,
            tokens_per_second=round(engine.warm.tokens_per_second),
        )

    def activate(self, bundle_id: str) -> None:
        """Have a loaded bundle value the requests that name none.

        Raises:
            NotFoundError: it is not loaded.
        """
        self._find(bundle_id)
        if bundle_id == self.shadow_id:
            self._shadow = None
        self._active = bundle_id
        self._show()
        _log.info("bundle active", bundle_id=bundle_id)

    def shadow(self, bundle_id: str) -> None:
        """Compare a loaded bundle with the active one; none where ``bundle_id`` is empty.

        Raises:
            NotFoundError: it is not loaded.
            InUseError: it is the active one.
        """
        if bundle_id and bundle_id == self._active:
            raise InUseError(_IS_ACTIVE.format(bundle_id))
        engine = self._find(bundle_id).engine if bundle_id else None
        self._shadow = Shadow(engine, self._metrics) if engine else None
        self._show()
        _log.info("bundle shadows", bundle_id=bundle_id or "none")

    async def unload(self, bundle_id: str) -> None:
        """Forget a bundle; returns once the calls that it has begun are over.

        Raises:
            NotFoundError: it is not loaded.
            InUseError: it is the active one.
        """
        async with self._changing:
            leaving = self._find(bundle_id)
            if bundle_id == self._active:
                raise InUseError(_IS_ACTIVE.format(bundle_id))
            if bundle_id == self.shadow_id:
                self._shadow = None
            del self._loaded[bundle_id]
            self._show()
            # To its end, also where whoever asked for it does not wait.
            going = asyncio.create_task(self._end(leaving))
            self._going[going] = leaving.engine
            going.add_done_callback(self._going.pop)
            await asyncio.shield(going)

    @staticmethod
    async def _end(leaving: _Loaded) -> None:
        await leaving.idle.wait()
        await leaving.engine.stop()
        _log.info("bundle unloaded", bundle_id=leaving.engine.bundle.id)

    async def stop(self) -> None:
        """Stop every engine; what they have not valued is refused."""
        engines = [*(loaded.engine for loaded in self._loaded.values()), *self._going.values()]
        await asyncio.gather(*(engine.stop() for engine in engines))
        await asyncio.gather(*self._going)

    @contextmanager
    def use(self, bundle_id: str = "") -> Generator[Engine]:
        """The engine of a bundle, of the active one where ``bundle_id`` is empty; it stays.

        Raises:
            NotFoundError: the bundle is not loaded.
            NotRunningError: it is not, and the server is still starting.
        """
        loaded = self._find(bundle_id or self._active)
        loaded.calls += 1
        loaded.idle.clear()
        try:
            yield loaded.engine
        finally:
            loaded.calls -= 1
            if not loaded.calls:
                loaded.idle.set()

    def refusal(self) -> QueueFull | None:
        """What an interactive call is to hear before its request is read.

        It may be for any bundle but the shadow; None while one of them has room.
        """
        refusals = [
            loaded.engine.refusal()
            for bundle_id, loaded in self._loaded.items()
            if bundle_id != self.shadow_id
        ]
        return refusals[0] if refusals and all(refusals) else None

    async def score(
        self,
        samples: Sequence[Sample],
        *,
        priority: Priority,
        source: Source,
        wait: bool,
        deadline: float | None = None,
        bundle_id: str = "",
        targets: Sequence[str] = (),
    ) -> Scored:
        """Value samples as ``Engine.score`` does, by a bundle that has the targets.

        Raises:
            NotFoundError: the bundle is not loaded, or has not every target; also what
                ``Engine.score`` raises.
        """
        with self.use(bundle_id) as engine:
            _check_targets(targets, engine.bundle)
            with self._counted(priority):
                scored = await engine.score(
                    samples, priority=priority, source=source, wait=wait, deadline=deadline
                )
        if self._shadow and not bundle_id:
            self._shadow.compare(samples, scored.outcomes)
        return scored

    async def calm(self, seconds: float) -> float:
        """Wait until no interactive samples are being valued, ``seconds`` at most.

        Returns:
            For how many seconds none have been; 0 where some still are.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()
        return time.monotonic() - self._calm_since if self._calm.is_set() else 0.0

    @contextmanager
    def _counted(self, priority: Priority) -> Generator[None]:
        if priority != Priority.INTERACTIVE:
            yield
            return
        self._interactive += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._interactive -= 1
            if not self._interactive:
                self._calm_since = time.monotonic()
                self._calm.set()

    async def try_model(self) -> None:
        """Run the active bundle's model on plain texts, as ``Engine.try_model`` does.

        Raises:
            ModelError: it fails on them.
            NotRunningError: there is none.
        """
        with self.use() as engine:
            await engine.try_model()

    async def explain(
        self, samples: Sequence[Sample], *, bundle_id: str, targets: Sequence[str]
    ) -> list[Explanation]:
        """Explain samples that can be valued, by a bundle that has the targets.

        Raises:
            NotFoundError: the bundle is not loaded, or has not every target.
            NotExplainableError: it explains nothing.
        """
        with self.use(bundle_id) as engine:
            _check_targets(targets, engine.bundle)
            return await engine.explainer.explain(samples)

    def summaries(self) -> list[BundleSummary]:
        """All loaded bundles."""
        return [
            BundleSummary(
                bundle_id=bundle_id,
                active=bundle_id == self._active,
                shadow=bundle_id == self.shadow_id,
                targets=loaded.engine.bundle.targets,
                backbone=loaded.engine.bundle.manifest.proxy.backbone,
            )
            for bundle_id, loaded in self._loaded.items()
        ]

    def _find(self, bundle_id: str) -> _Loaded:
        if loaded := self._loaded.get(bundle_id):
            return loaded
        if self.starting or not self._active:
            raise NotRunningError("the bundle is not ready yet; the server is starting")
        raise NotFoundError("bundle", bundle_id, list(self._loaded))

    def _show(self) -> None:
        self._metrics.bundle.clear()
        for one in self.summaries():
            role = "active" if one.active else "shadow" if one.shadow else "loaded"
            self._metrics.bundle.labels(one.bundle_id, one.backbone, role).set(1)


def _check_targets(targets: Sequence[str], bundle: Bundle) -> None:
    if unknown := [name for name in targets if name not in bundle.targets]:
        raise NotFoundError("target", ", ".join(unknown), bundle.targets)
