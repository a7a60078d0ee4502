"""The model in 8 bits: near the exact one, and a text's value its own whatever is beside it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alinfik.distill.quantise import quantise

_WIDTH, _HIDDEN, _TARGETS = 64, 96, 3

Floats = np.ndarray


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two layers that share their input, and a narrow head: exact, and in 8 bits."""
    directory = tmp_path_factory.mktemp("quantise")
    draw = np.random.default_rng(0)

    def matrix(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)

    def rows(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width])

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["states", "left"], ["first"]),
            helper.make_node("MatMul", ["states", "right"], ["second"]),
            helper.make_node("Mul", ["first", "second"], ["both"]),
            helper.make_node("MatMul", ["both", "head"], ["value"]),
        ],
        "layers",
        [rows("states", _WIDTH)],
        [rows("value", _TARGETS)],
        [
            matrix("left", _WIDTH, _HIDDEN),
            matrix("right", _WIDTH, _HIDDEN),
            matrix("head", _HIDDEN, _TARGETS),
        ],
    )
    exact, quantised = directory / "model.onnx", directory / "model.int8.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), exact)
    quantise(exact, quantised)
    onnx.checker.check_model(onnx.load(quantised))
    return exact, quantised


def _run(model: Path, states: Floats) -> Floats:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["value"], {"states": states.astype(np.float32)})[0])


def test_it_is_near_the_exact_model(models: tuple[Path, Path]) -> None:
    """Both are rounded to about 1 in 100 of what is largest, and errors are independent."""
    states = np.random.default_rng(1).normal(size=(4, 9, _WIDTH))
    exact, rounded = (_run(model, states) for model in models)
    assert np.abs(rounded - exact).std() < 0.03 * exact.std()
    assert np.abs(rounded - exact).max() > 0


def test_weights_that_a_file_cannot_hold_stand_beside_it(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, quantised = models
    monkeypatch.setattr("alinfik.distill.quantise.LARGEST_FILE", 0)
    quantise(exact, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").exists()
    states = np.random.default_rng(5).normal(size=(2, 3, _WIDTH)).astype(np.float32)
    ours, theirs = (
        onnxruntime.InferenceSession(path).run(None, {"states": states})[0]
        for path in (tmp_path / "large.onnx", quantised)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_no_row_depends_on_another(models: tuple[Path, Path]) -> None:
    """An outlier next to a row, and padding, leave it as it was, to the last bit."""
    states = np.random.default_rng(2).normal(size=(1, 5, _WIDTH))
    alone = _run(models[1], states)
    beside = np.concatenate([states, 1e4 * states, np.zeros_like(states)])
    np.testing.assert_array_equal(_run(models[1], beside)[0], alone[0])


def test_an_outlier_costs_other_rows_nothing(models: tuple[Path, Path]) -> None:
    """One token's state a thousand times the others': these are as exact as without it."""
    states = np.random.default_rng(3).normal(size=(1, 6, _WIDTH))
    states[0, 0] *= 1000
    exact, rounded = (_run(model, states)[0, 1:] for model in models)
    assert np.abs(rounded - exact).std() < 0.03 * exact.std()


def test_products_of_the_largest_numbers_do_not_overflow(tmp_path: Path) -> None:
    """Neighbouring products are added in 16 bits by CPUs without VNNI: all at their largest."""
    ones = numpy_helper.from_array(np.ones((_WIDTH, _WIDTH), dtype=np.float32), "ones")
    states = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["rows", _WIDTH])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows", _WIDTH])
    node = helper.make_node("MatMul", ["states", "ones"], ["value"])
    graph = helper.make_graph([node], "sum", [states], [value], [ones])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model")
    quantise(tmp_path / "model", tmp_path / "quantised")
    largest = np.array([[1.0], [-1.0]]) * np.ones((1, _WIDTH))
    np.testing.assert_allclose(
        _run(tmp_path / "quantised", largest), _WIDTH * largest, rtol=1e-5, atol=1e-5
    )


def test_inputs_outputs_and_narrow_matrices_stay(models: tuple[Path, Path]) -> None:
    """What reads the file need not know which it is; a head is not rounded; nothing is dead."""
    exact, rounded = (onnx.load(model).graph for model in models)
    assert (rounded.input, rounded.output) == (exact.input, exact.output)
    names = [node.op_type for node in rounded.node]
    assert names == ["RoundRows", "RoundedProduct", "RoundedProduct", "Mul", "MatMul"]
    read = {name for node in rounded.node for name in node.input}
    assert {tensor.name for tensor in rounded.initializer} == read - {"states"} - {
        name for node in rounded.node for name in node.output
    }
