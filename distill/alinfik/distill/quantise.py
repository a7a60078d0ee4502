"""Makes `model.int8.onnx` of `model.onnx`: the backbone's matrices in 8 bits.

Weights and activations are both rounded in blocks of a row, each by its own largest number. One
scale for a whole tensor, as plain dynamic quantisation has it, is half again as quick; but outliers
in a language model's states then take the other numbers' precision, and the value of a text depends
on what else is in its batch, which nobody could be billed by.
"""

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rank correlation with `model.onnx` below which the quantised model does not ship.
AGREEMENT_LIMIT = 0.995

_BLOCK = 128
# Heads are narrow: rounding them costs precision and saves nothing.
_NARROWEST = 64
# Products of 8-bit numbers, where the CPU has instructions for them.
_INT8_PRODUCTS = 4


def quantise(model: Path, quantised: Path) -> None:
    """Write ``quantised`` from ``model``, both ONNX files.

    In: the file that `export_onnx` writes. Out: the same inputs and outputs, with `MatMulNBits` of
    ONNX Runtime's own operators in the place of `MatMul`.
    """
    # Here, since it takes a second to load.
    from onnxruntime.quantization import matmul_nbits_quantizer

    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.ERROR)
    graph = onnx.load(model)
    # Shapes that the exporter noted before it transposed the weights.
    del graph.graph.value_info[:]
    shapes = {weights.name: tuple(weights.dims) for weights in graph.graph.initializer}
    narrow = [
        node.name
        for node in graph.graph.node
        if node.op_type == "MatMul" and min(shapes.get(node.input[1], (0,))) < _NARROWEST
    ]
    # It has no types.
    quantizer = cast("Any", matmul_nbits_quantizer).MatMulNBitsQuantizer(
        graph,
        bits=8,
        block_size=_BLOCK,
        is_symmetric=True,
        accuracy_level=_INT8_PRODUCTS,
        nodes_to_exclude=narrow,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(quantised))
