"""ONNX Runtime: runs a bundle's model on arrays.

Comes in: int64 arrays of one batch. Goes out: float32 arrays. The only module that knows
onnxruntime, which has no types; it knows nothing of samples and queues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort  # pyright: ignore[reportMissingTypeStubs] - it has none
import structlog
from numpy.typing import NDArray

from alinfik.server.bundle import Bundle, BundleError, Precision
from alinfik.server.device import Device
from alinfik.server.encode import Encoded

_INPUTS = ("input_ids", "attention_mask", "completion_mask")
_OUTPUTS = ("value", "lower", "upper", "ood")
_TOKEN_OUTPUTS = ("token_values",)
_CUDA = "CUDAExecutionProvider"
# Its errors reach us as exceptions; a line of its own on standard error would be no JSON.
_FATAL_ONLY = 4
# Every cast below gives a type to what ONNX Runtime leaves untyped.
_ort = cast("Any", ort)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Output:
    """What the model says of a batch of B samples for K targets, float32."""

    value: NDArray[np.float32]
    """[B, K]"""
    lower: NDArray[np.float32]
    """[B, K]"""
    upper: NDArray[np.float32]
    """[B, K]"""
    ood: NDArray[np.float32]
    """[B]"""


class _Session:
    """One ONNX Runtime session of one of a bundle's models.

    Args:
        model: the ONNX file.
        outputs: those that it must have, in the order in which they are wanted.
        pad_id: fills rows up.
        device: where to run; ``cuda`` falls back to the CPU where its libraries are missing, and
            ``device`` says what it came to.
        threads: CPU threads of one run.

    Raises:
        BundleError: it does not load, or has not the inputs and outputs of the contract.
    """

    def __init__(
        self, model: Path, outputs: Sequence[str], pad_id: int, device: Device, threads: int
    ) -> None:
        options = _ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _FATAL_ONLY
        # It would keep a plan of its memory for every shape that a batch has ever had.
        options.enable_mem_pattern = False
        # A thread that spins while it waits takes the core that the tokenizer and gRPC need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        if device == "cuda":
            # Finds cuDNN and cuBLAS where pip puts them.
            _ort.preload_dlls()
            providers.insert(0, _CUDA)
        try:
            self._session = _ort.InferenceSession(str(model), options, providers=providers)
        except Exception as error:
            # Its exceptions have no base of their own.
            raise BundleError(f"{model} does not load: {error}") from error
        self.device: Device = "cuda" if _CUDA in self._session.get_providers() else "cpu"
        if self.device != device:
            _log.warning(
                "the GPU is not used: CUDA or cuDNN is missing; install onnxruntime-gpu[cuda,cudnn]"
            )
        self._outputs = outputs
        self._pad_id = pad_id
        inputs = {one.name for one in self._session.get_inputs()}
        found = {one.name for one in self._session.get_outputs()}
        if inputs != set(_INPUTS) or not found.issuperset(outputs):
            raise BundleError(
                f"{model} reads {sorted(inputs)} and gives {sorted(found)}; a proxy reads "
                f"{sorted(_INPUTS)} and gives {sorted(outputs)}"
            )

    def run(self, batch: Sequence[Encoded]) -> list[NDArray[np.float32]]:
        """Run the model on ``batch``, padded to its longest row. Thread-safe; releases the GIL."""
        # Bound, so that a GPU is handed its inputs where it reads them, and nothing comes back but
        # the outputs.
        binding = self._session.io_binding()
        for name, array in zip(_INPUTS, self._pad(batch), strict=True):
            value = _ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    def _pad(self, batch: Sequence[Encoded]) -> tuple[NDArray[np.int64], ...]:
        """``input_ids``, ``attention_mask`` and ``completion_mask``, each [B, T] int64."""
        # A tokenizer may find nothing in a text; the model still needs a column.
        shape = len(batch), max(1, *map(len, batch))
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        attention = np.zeros(shape, dtype=np.int64)
        completion = np.zeros(shape, dtype=np.int64)
        for row, encoded in enumerate(batch):
            length = len(encoded.input_ids)
            ids[row, :length] = encoded.input_ids
            attention[row, :length] = 1
            completion[row, encoded.completion_start : length] = 1
        return ids, attention, completion


class Runtime:
    """A bundle's model.

    Args:
        bundle: a verified bundle.
        precision: which of the bundle's models to run.
        device: where to run; ``device`` then says where it does.
        threads: CPU threads of all runs together.

    Raises:
        BundleError: there is no such model, it does not load, or it is not as the contract says.
    """

    def __init__(self, bundle: Bundle, precision: Precision, device: Device, threads: int) -> None:
        model, pad_id = bundle.model(precision), bundle.manifest.encoding.pad_id
        self._session = _Session(model, _OUTPUTS, pad_id, device, threads)
        self.device: Device = self._session.device
        tiny = Encoded(np.zeros(1, dtype=np.int64), 0, truncated=False)
        try:
            columns = self.run([tiny]).value.shape[1]
        except Exception as error:
            # Of a GPU that is full, or of an output that has no columns.
            raise BundleError(f"{model} does not run: {error}") from error
        if columns != len(bundle.targets):
            raise BundleError(
                f"{model} gives {columns} values a sample, and the manifest has "
                f"{len(bundle.targets)} targets"
            )

    def run(self, batch: Sequence[Encoded]) -> Output:
        """Run the model on ``batch``, padded to its longest row. Thread-safe; releases the GIL."""
        return Output(*self._session.run(batch))


class TokenRuntime:
    """A bundle's model of token values.

    Args:
        bundle: a verified bundle that has one.
        device: where to run.
        threads: CPU threads of one run.

    Raises:
        BundleError: it does not load, or is not as the contract says.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        pad_id = bundle.manifest.encoding.pad_id
        self._session = _Session(bundle.explain, _TOKEN_OUTPUTS, pad_id, device, threads)

    def run(self, row: Encoded) -> NDArray[np.float32]:
        """Token values [T, K] of one row."""
        return self._session.run([row])[0][0]
