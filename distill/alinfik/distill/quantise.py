"""Makes `model.int8.onnx` of `model.onnx`: the transformer's products of matrices in integers.

Every row of activations, which is one token's, is rounded to 8 bits by its own largest number as it
comes; every column of a matrix is rounded once. So a text's value does not depend on what else is
in its batch, as it would with one scale for a whole tensor, which is what plain dynamic
quantisation takes; nobody could be billed by that. And an outlier in one token's state costs no
other token's precision.

Matrices have 7 bits: where a CPU lacks VNNI, ONNX Runtime adds neighbouring products in 16 bits,
and two of 8 bits by 8 may pass these. With 7 they cannot, and the products are the same on every
CPU.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

# Rank correlation with `model.onnx` below which the quantised model does not ship.
AGREEMENT_LIMIT = 0.995

# Bytes of weights beyond which they are not part of the ONNX file, as in torch's exporter.
LARGEST_FILE = 3 << 29

# Heads are narrow: rounding them costs precision and saves nothing.
_NARROWEST = 64
_LARGEST_WEIGHT = 63
_LEAST_SCALE = 1e-12

_MATRIX = 2

Floats = NDArray[np.float64]

_DOMAIN = "alinfik"
_RUNTIME_DOMAIN = "com.microsoft"
_OPSETS = f'["" : 20, "{_RUNTIME_DOMAIN}" : 1]'

# In: activations [..., K]. Out: the same, each row over its scale, as uint8 about 128; and the
# scales [..., 1].
_ROUND_ROWS = f"""
<opset_import: {_OPSETS}, domain: "{_DOMAIN}">
RoundRows (rows) => (rounded, scale)
{{
    last = Constant <value_ints = [-1]> ()
    largest_integer = Constant <value_float = 127.0> ()
    least_scale = Constant <value_float = {_LEAST_SCALE}> ()
    one = Constant <value_float = 1.0> ()
    middle = Constant <value = uint8 {{128}}> ()
    sizes = Abs (rows)
    largest = ReduceMax (sizes, last)
    exact_scale = Div (largest, largest_integer)
    scale = Max (exact_scale, least_scale)
    scaled = Div (rows, scale)
    rounded = QuantizeLinear (scaled, one, middle)
}}
"""

# In: what `RoundRows` gives, a matrix [K, N] as int8 and the scales of its columns [N]. Out: the
# product [..., N], float32.
_ROUNDED_PRODUCT = f"""
<opset_import: {_OPSETS}, domain: "{_DOMAIN}">
RoundedProduct (rounded, scale, matrix, matrix_scale) => (product)
{{
    one = Constant <value_float = 1.0> ()
    middle = Constant <value = uint8 {{128}}> ()
    unscaled = {_RUNTIME_DOMAIN}.MatMulIntegerToFloat (rounded, matrix, one, matrix_scale, middle)
    product = Mul (unscaled, scale)
}}
"""


def quantise(model: Path, quantised: Path) -> None:
    """Write ``quantised`` from ``model``, both ONNX files.

    In: the file that `export_onnx` writes. Out: the same inputs and outputs, with products of
    integers in the place of every `MatMul` of a transformer by a matrix that is not narrow. Past
    1.5 GiB its weights are in a file of their own, `….data`.
    """
    whole = onnx.load(model)
    graph = whole.graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if _is_wide(tensor)}
    nodes: list[onnx.NodeProto] = []
    rounded: set[str] = set()
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in matrices:
            nodes.append(node)
            continue
        rows, matrix = node.input
        if rows not in rounded:
            nodes.append(helper.make_node("RoundRows", [rows], _rounded(rows), domain=_DOMAIN))
        if matrix not in rounded:
            graph.initializer.extend(_round_columns(matrices[matrix]))
        rounded |= {rows, matrix}
        operands = [*_rounded(rows), *_rounded(matrix)]
        nodes.append(helper.make_node("RoundedProduct", operands, node.output, domain=_DOMAIN))
    read = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    whole.functions.extend(parser.parse_function(text) for text in (_ROUND_ROWS, _ROUNDED_PRODUCT))
    for domain in (_DOMAIN, _RUNTIME_DOMAIN):
        whole.opset_import.append(helper.make_opsetid(domain, 1))
    # A file of protobuf ends at 2 GiB: weights of more stand in one beside it.
    beside = sum(len(tensor.raw_data) for tensor in tensors) > LARGEST_FILE
    location = f"{quantised.name}.data" if beside else None
    onnx.save(whole, quantised, save_as_external_data=beside, location=location)


def _is_wide(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) == _MATRIX and min(tensor.dims) >= _NARROWEST


def _rounded(name: str) -> list[str]:
    """Names of what stands for a tensor: integers, and their scale."""
    return [f"{name}_rounded", f"{name}_scale"]


def _round_columns(matrix: onnx.TensorProto) -> list[onnx.TensorProto]:
    """Return a matrix [K, N] as int8, and its columns' scales [N]."""
    exact: Floats = numpy_helper.to_array(matrix).astype(np.float64)
    scale = np.maximum(np.abs(exact).max(axis=0) / _LARGEST_WEIGHT, _LEAST_SCALE)
    integers, scales = _rounded(matrix.name)
    return [
        numpy_helper.from_array(np.rint(exact / scale).astype(np.int8), integers),
        numpy_helper.from_array(scale.astype(np.float32), scales),
    ]
