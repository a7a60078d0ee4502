"""Turns the model's arrays into valuations.

Comes in: token rows and the model's output. Goes out: ``alinfik.v1.Valuation`` of a text, without
the names of who sent it. Knows the manifest's reference distributions; knows nothing of models and
queues.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alinfik.server.bundle import Bundle
from alinfik.server.encode import Encoded
from alinfik.server.rejection import Rejection
from alinfik.server.runtime import Output
from alinfik.v1 import TargetValue, Valuation

_NOT_FINITE = Rejection(
    "not_finite", "completion", "cannot be valued: the proxy gives no finite number for it"
)


class Valuer:
    """The reference distributions of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle_id = bundle.id
        self._targets = bundle.targets
        self._quantiles = [
            np.array(target.value_quantiles, dtype=np.float64) for target in bundle.manifest.targets
        ]
        self._threshold = bundle.manifest.out_of_distribution.threshold

    def valuations(self, batch: Sequence[Encoded], output: Output) -> list[Valuation | Rejection]:
        """One valuation a row; a rejection where the model gave no finite number."""
        percentile = self.percentiles(output.value)
        # One array [B, K, 4] turned into Python floats at once: a tenth of the cost of one by one.
        numbers = np.stack([output.value, output.lower, output.upper, percentile], axis=2)
        finite = np.isfinite(numbers).all(axis=(1, 2)) & np.isfinite(output.ood)
        return [
            self._valuation(encoded, row, ood) if fine else _NOT_FINITE
            for encoded, row, ood, fine in zip(
                batch, numbers.tolist(), output.ood.tolist(), finite.tolist(), strict=True
            )
        ]

    def percentiles(self, value: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share in percent of the labelled pool below each of ``value`` [B, K]; same shape."""
        percent = np.arange(101.0)
        # Interpolated from above: on a stretch of equal quantiles np.interp gives the right end,
        # and what counts is the share of the pool that is strictly lower.
        columns: list[NDArray[np.float64]] = [
            100.0 - np.interp(-column.astype(np.float64), -quantiles[::-1], percent)
            for column, quantiles in zip(value.T, self._quantiles, strict=True)
        ]
        return np.stack(columns, axis=1)

    def _valuation(self, encoded: Encoded, row: list[list[float]], ood: float) -> Valuation:
        return Valuation(
            bundle_id=self._bundle_id,
            values=[
                TargetValue(target=name, value=value, lower=lower, upper=upper, percentile=percent)
                for name, (value, lower, upper, percent) in zip(self._targets, row, strict=True)
            ],
            token_count=len(encoded.input_ids),
            truncated=encoded.truncated,
            out_of_distribution_score=ood,
            out_of_distribution=ood > self._threshold,
        )
