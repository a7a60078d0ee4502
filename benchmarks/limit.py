"""What no server can beat: the model in ONNX Runtime, its input ready, with all cores.

In: a bundle and rows. Out: samples a second. The rows are tokenised ahead and sorted by length, and
the best of several batch sizes counts, each tried with all cores on one batch and with a batch a
core.

A machine that is shared is a tenth quicker or slower from one minute to the next. So what is held
against the limit is measured between two measurements of it.
"""

import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from tokenizers import Tokenizer

from alinfik.distill.batches import Batch, batched_by_length
from alinfik.distill.bundle import MODEL, QUANTISED, TOKENIZER, read_manifest
from alinfik.distill.encoding import Encoder
from alinfik.distill.export import INPUTS, OUTPUTS
from alinfik.distill.samples import Row

Way = tuple[int, int]
"""How a model is run: most padded tokens of a batch, and batches at a time."""

_BUDGETS = (512, 1024, 2048, 4096, 8192)
_TRY_SECONDS = 1.0
# Of the batches, in the order of their lengths: a slow model takes half a minute for all.
_TRIED = slice(None, None, 8)


@dataclass
class Limit:
    """How quick the model was around something that was measured; known once that has ended.

    Attributes:
        samples_per_second: in the best way.
        batch_seconds: a full batch's, in the way that was asked for.
    """

    samples_per_second: float = 0.0
    batch_seconds: float = 0.0


class Alone:
    """A bundle's model without a server.

    Args:
        bundle: whose model.
        rows: what it values.

    Attributes:
        best: the quickest way found to run it.
        samples_per_second: in that way, when it was found.
        tokenise_seconds: CPU time to tokenise a sample, which the model does not need here.
    """

    def __init__(self, bundle: Path, rows: list[Row]) -> None:
        cores = len(os.sched_getaffinity(0))
        encoding = read_manifest(bundle).encoding
        encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), encoding)
        begun = time.process_time()
        samples = encoder.encode(rows)
        self.tokenise_seconds = (time.process_time() - begun) / len(rows)
        self._tokens_per_sample = sum(len(one.input_ids) for one in samples) / len(samples)
        self._batches = {
            budget: list(batched_by_length(samples, budget, encoding.pad_id))[_TRIED]
            for budget in _BUDGETS
        }
        self._models = {
            workers: _Model(bundle, workers, cores // workers)
            for workers in sorted({1, max(1, cores // 2), cores})
        }
        speeds = {
            (budget, workers): self._speed((budget, workers), _TRY_SECONDS)
            for budget in _BUDGETS
            for workers in self._models
        }
        self.best: Way = max(speeds, key=speeds.__getitem__)
        self.samples_per_second = speeds[self.best]

    @contextmanager
    def around(self, seconds: float, way: Way | None = None) -> Generator[Limit]:
        """Measure the model for half of so many seconds before a block and for half after it.

        Args:
            seconds: in all, at least.
            way: in which to run full batches for ``batch_seconds``; the best one by default.
        """
        limit, way = Limit(), way or self.best
        measured = [self._both(way, seconds / 2)]
        yield limit
        measured.append(self._both(way, seconds / 2))
        limit.samples_per_second = sum(speed for speed, _ in measured) / 2
        limit.batch_seconds = sum(batch for _, batch in measured) / 2

    def _both(self, way: Way, seconds: float) -> tuple[float, float]:
        """Samples a second in the best way, and the time of a full batch in ``way``."""
        best = self._speed(self.best, seconds)
        speed = best if way == self.best else self._speed(way, seconds)
        return best, way[1] * self.samples_per_batch(way) / speed

    def samples_per_batch(self, way: Way) -> float:
        """Samples of mean length in a full batch of ``way``."""
        batches = self._batches[way[0]]
        return _tokens(batches) / len(batches) / self._tokens_per_sample

    def _speed(self, way: Way, seconds: float) -> float:
        """Samples of mean length a second."""
        (budget, workers) = way
        batches = self._batches[budget]
        taken = self._models[workers].seconds_a_round(batches, seconds)
        return _tokens(batches) / self._tokens_per_sample / taken


def served_model(bundle: Path) -> str:
    """Return the file of the model that a server runs on a CPU."""
    return QUANTISED if (bundle / QUANTISED).exists() else MODEL


def _tokens(batches: Sequence[Batch]) -> int:
    return sum(int(batch.attention_mask.sum()) for batch in batches)


class _Model:
    """A bundle's model: ``workers`` batches at a time, ``threads`` cores each."""

    def __init__(self, bundle: Path, workers: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            bundle / served_model(bundle), options, providers=["CPUExecutionProvider"]
        )
        self._pool = ThreadPoolExecutor(workers)

    def seconds_a_round(self, batches: list[Batch], seconds: float) -> float:
        """Run all batches again and again for at least so long; return the mean time of a round."""
        feeds = [{name: getattr(batch, name).numpy() for name in INPUTS} for batch in batches]

        def run(feed: dict[str, object]) -> None:
            self._session.run(list(OUTPUTS), feed)

        run(feeds[0])
        rounds, begun = 0, time.perf_counter()
        while (taken := time.perf_counter() - begun) < seconds:
            list(self._pool.map(run, feeds))
            rounds += 1
        return taken / rounds
