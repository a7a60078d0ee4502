"""Writes the served model as ONNX and checks that ONNX Runtime agrees with torch."""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from alinfik.command import CommandError
from alinfik.distill.batches import Batch
from alinfik.distill.calibrate import ServedModel, TokenModel
from alinfik.distill.gradients import Gradients
from alinfik.distill.proxy import Estimate

INPUTS = ("input_ids", "attention_mask", "completion_mask")
OUTPUTS = ("value", "lower", "upper", "ood")
TOKEN_OUTPUTS = ("token_values",)

# Largest difference from torch, as a share of the values' spread, that may ship. float32 rounding
# gives about 1e-6; single tokens', of the way back through thirty layers, up to 1e-3.
PARITY_LIMIT = 1e-3
TOKEN_PARITY_LIMIT = 1e-2
# Of a value, the least that its spread is taken for: below it differences are rounding.
_LEAST_SPREAD = 1e-3

Floats = NDArray[np.float32]


class ExportError(CommandError):
    """The exported model does not compute what the trained one does."""


class OnnxModel:
    """An exported model in ONNX Runtime, on the CPU.

    Args:
        path: `model.onnx` or `model.int8.onnx` of a bundle.
    """

    def __init__(self, path: Path) -> None:
        self._session = _session(path)

    def run(self, batch: Batch) -> tuple[Floats, Floats, Floats, Floats]:
        """Return value, lower, upper [B, K] and ood [B]."""
        value, lower, upper, ood = _run(self._session, OUTPUTS, batch)
        return value, lower, upper, ood


class TokenOnnxModel:
    """An exported model of token values in ONNX Runtime, on the CPU.

    Args:
        path: `explain.onnx` of a bundle.
    """

    def __init__(self, path: Path) -> None:
        self._session = _session(path)

    def run(self, batch: Batch) -> Floats:
        """Return token values [B, T, K], which reduce to the values."""
        return _run(self._session, TOKEN_OUTPUTS, batch)[0]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # What a batch needed is given back: the largest proxies take gigabytes for one.
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(
    session: onnxruntime.InferenceSession, outputs: tuple[str, ...], batch: Batch
) -> list[Floats]:
    feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, _inputs(batch), strict=True)}
    return [np.asarray(output, dtype=np.float32) for output in session.run(list(outputs), feed)]


def export_onnx(
    served: ServedModel, tokens: TokenModel | None, example: Batch, model: Path, explain: Path
) -> None:
    """Write what is served to ``model`` and what explains it, if it is given, to ``explain``.

    Both have dynamic batch and length. Weights of more than 1.5 GiB are in a file beside each,
    `….data`.

    Args:
        served: in evaluation mode, on the CPU.
        tokens: of the same proxy.
        example: at least two samples of at least three tokens, to trace with.
        model: the file to write.
        explain: the other one.

    Raises:
        ExportError: ONNX Runtime does not give the token values that torch gives.
    """
    parts = {model: OUTPUTS} if tokens is None else {model: OUTPUTS, explain: TOKEN_OUTPUTS}
    # Both at once: to trace a large model takes minutes.
    program = _program(_Whole(served, tokens).eval(), sum(parts.values(), ()), example)
    whole = program.model
    for path, kept in parts.items():
        program.model = whole.clone()
        graph = program.model.graph
        graph.outputs[:] = [output for output in graph.outputs if output.name in kept]
        common.RemoveUnusedNodesPass()(program.model)
        program.save(path, external_data=False)
    if tokens is not None:
        _check_tokens(tokens, TokenOnnxModel(explain), example)


@torch.no_grad()
def _check_tokens(tokens: TokenModel, onnx: TokenOnnxModel, batch: Batch) -> None:
    expected = tokens(*_inputs(batch))
    spread = max(float(expected.std()), 1e-12)
    error = float(np.abs(onnx.run(batch) - expected.numpy()).max()) / spread
    _check_parity(error, TOKEN_PARITY_LIMIT)


class _Whole(nn.Module):
    """What is served and what explains it, by one pass."""

    def __init__(self, served: ServedModel, tokens: TokenModel | None) -> None:
        super().__init__()
        self.served = served
        self.tokens = tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> tuple[Tensor, ...]:
        estimate: Estimate = self.served.proxy(input_ids, attention_mask, completion_mask)
        told = self.served.told(estimate, input_ids, attention_mask)
        if self.tokens is None:
            return told
        return *told, self.tokens.told(estimate, attention_mask, completion_mask)


def _program(model: nn.Module, outputs: tuple[str, ...], example: Batch) -> torch.onnx.ONNXProgram:
    rows, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1)
    # The exporter tells its user how to name axes and which torchvision operators it lacks.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _traced(model, example),
            _inputs(example),
            dynamo=True,
            verbose=False,
            input_names=list(INPUTS),
            output_names=list(outputs),
            dynamic_shapes=({0: rows, 1: tokens},) * len(INPUTS),
            optimize=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export gave no program")
    _simplify(program.model)
    return program


def _simplify(model: onnx_ir.Model) -> None:
    """Fold constants and drop what is computed twice or for nothing, in time linear in nodes.

    What the exporter does by default matches patterns too, in time quadratic in nodes, of which the
    way back through thirty layers has tens of thousands.
    """
    fold_constants(model)
    onnx_ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _traced(model: nn.Module, example: Batch) -> nn.Module:
    """Return a model whose forward pass differentiates as one that has the way back written out."""
    if not any(isinstance(module, Gradients) for module in model.modules()):
        return model
    with torch.no_grad():
        return make_fx(
            model,
            decomposition_table=cast("Any", core_aten_decompositions()),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*_inputs(example))


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    """The batch's tensors, in the order of `INPUTS`."""
    return batch.input_ids, batch.attention_mask, batch.completion_mask


@torch.no_grad()
def export_error(model: ServedModel, onnx: OnnxModel, batch: Batch) -> float:
    """Return the largest difference between the two, over the values' spread.

    That is their standard deviation, or what their intervals are to either side where that is more:
    of a target that nothing tells, all values are one.

    Raises:
        ExportError: it is above `PARITY_LIMIT`.
    """
    expected = model(batch.input_ids, batch.attention_mask, batch.completion_mask)
    value, lower, upper, _ = expected
    # Each target's own, of which one may be a thousandth of another.
    spread = torch.stack(
        [
            value.std(dim=0),
            (upper - lower).mean(dim=0) / 2,
            _LEAST_SPREAD * value.abs().amax(dim=0) + 1e-12,
        ]
    )
    spread = spread.amax(dim=0).numpy()
    error = max(
        float((np.abs(there - here.numpy()) / (spread if name != "ood" else 1.0)).max())
        for name, here, there in zip(OUTPUTS, expected, onnx.run(batch), strict=True)
    )
    _check_parity(error)
    return error


def _check_parity(error: float, limit: float = PARITY_LIMIT) -> None:
    if not error <= limit:
        raise ExportError(
            f"the exported model is {error:.2g} of the values' spread away from the trained one, "
            f"more than {limit:g}; it is not written"
        )
