"""Which tokens of a sample make its value: the bundle's model of token values.

Comes in: samples. Goes out: ``alinfik.v1.Explanation``. One at a time and beside the queue, since
explaining is for people: it takes one core at most from those who are served by the queue.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from alinfik.server.bundle import Bundle
from alinfik.server.device import Device
from alinfik.server.encode import Encoder
from alinfik.server.runtime import TokenRuntime
from alinfik.v1 import Explanation, Sample, TokenValue

_FIELDS = {
    "prompt": TokenValue.FIELD_PROMPT,
    "completion": TokenValue.FIELD_COMPLETION,
    "added": TokenValue.FIELD_ADDED,
}


class NotExplainableError(Exception):
    """The bundle has no model of token values."""

    def __init__(self, bundle_id: str) -> None:
        super().__init__(
            f"bundle {bundle_id[:12]} cannot explain its values: it was distilled from labels "
            "without token values; label with --token-values true and distil it again"
        )


class Explainer:
    """Explains the values of a bundle; its model is loaded when it is first asked.

    Args:
        bundle: a verified bundle.
        encoder: its encoder.
        device: where to run.
    """

    def __init__(self, bundle: Bundle, encoder: Encoder, device: Device) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._device: Device = device
        self._thread = ThreadPoolExecutor(1, "explain")

    async def explain(self, samples: Sequence[Sample]) -> list[Explanation]:
        """Explain samples, which must be such as can be valued; for all targets of the bundle.

        Raises:
            NotExplainableError: it cannot.
            BundleError: its model does not load.
        """
        if not self._bundle.explains:
            raise NotExplainableError(self._bundle.id)
        loop = asyncio.get_running_loop()
        # One by one, so that a caller who goes leaves no work behind.
        return [
            await loop.run_in_executor(self._thread, self._explain, sample) for sample in samples
        ]

    def close(self) -> None:
        """Take no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _model(self) -> TokenRuntime:
        return TokenRuntime(self._bundle, self._device, threads=1)

    def _explain(self, sample: Sample) -> Explanation:
        encoded = self._encoder.encode([sample])[0]
        # A text without a token is padded to one.
        values = self._model.run(encoded)[: len(encoded)].tolist()
        return Explanation(
            sample_id=sample.id,
            targets=self._bundle.targets,
            tokens=[
                TokenValue(field=_FIELDS[place.field], start=place.start, end=place.end, values=of)
                for place, of in zip(self._encoder.places(sample), values, strict=True)
            ],
            truncated=encoded.truncated,
        )
