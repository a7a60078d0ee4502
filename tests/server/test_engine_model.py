"""Which model an engine runs, and by how many workers."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from alinfik.server.bundle import BundleError
from alinfik.server.cores import usable_cores
from alinfik.server.device import find_device
from alinfik.v1 import Sample
from tests.server.engines import (
    CLIPS,
    engine_of,
    score,
    values,
)
from tests.tiny_bundle import expected_values, read_manifest, write_manifest, write_tiny_bundle


def test_workers_are_chosen_by_measurement_unless_they_are_set(tiny_bundle: Path) -> None:
    async def workers(**flags: object) -> int:
        async with engine_of(tiny_bundle, **flags) as (engine, _):
            assert engine.warm.tokens_per_second > 0
            return engine.warm.workers

    assert asyncio.run(workers(workers=3)) == 3
    assert asyncio.run(workers(workers=None, threads_per_worker=1)) == usable_cores()
    assert 1 <= asyncio.run(workers(workers=None)) <= usable_cores()


def test_two_workers_give_the_values_of_one(tiny_bundle: Path) -> None:
    samples = [Sample(id=str(n), completion="She sold clips " * (n + 1)) for n in range(40)]

    async def scored(workers: int) -> list[list[float]]:
        async with engine_of(tiny_bundle, workers=workers, batch_tokens=100) as (engine, _):
            return values(await score(engine, *samples))

    np.testing.assert_allclose(asyncio.run(scored(2)), asyncio.run(scored(1)), rtol=1e-5)


def test_a_model_that_is_no_proxy_is_refused(tmp_path: Path) -> None:
    def refusal(name: str, spoil: object) -> str:
        bundle = write_tiny_bundle(tmp_path / name)
        model = onnx.load(str(bundle / "model.onnx"))
        spoil(model)
        onnx.save(model, str(bundle / "model.onnx"))
        write_manifest(bundle, read_manifest(bundle))

        async def main() -> None:
            async with engine_of(bundle):
                pass

        with pytest.raises(BundleError) as caught:
            asyncio.run(main())
        return str(caught.value)

    assert "gives ['lower', 'upper', 'value'];" in refusal("no_ood", lambda m: m.graph.output.pop())

    def forget_tokens(model: onnx.ModelProto) -> None:
        embedding = next(one for one in model.graph.initializer if one.name == "embedding")
        some = onnx.numpy_helper.to_array(embedding)[:50]
        embedding.CopyFrom(onnx.numpy_helper.from_array(some, "embedding"))

    assert "fails on its first batch" in refusal("small", forget_tokens)

    def one_column(model: onnx.ModelProto) -> None:
        columns = next(one for one in model.graph.initializer if one.name == "columns")
        some = onnx.numpy_helper.to_array(columns)[:, :1]
        columns.CopyFrom(onnx.numpy_helper.from_array(some, "columns"))
        for output in model.graph.output[:3]:
            output.type.tensor_type.shape.dim[1].dim_value = 1

    assert "gives 1 values a sample, and the manifest has 2" in refusal("one", one_column)


def test_a_bundle_is_run_in_8_bits_where_it_can_be_and_there_is_no_gpu(tmp_path: Path) -> None:
    """The bundle's int8 model gives other values, so that one can see which one ran."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(BundleError, match=r"no model\.int8\.onnx"):
        asyncio.run(value_of_clips(bundle, precision="int8"))
    shutil.copy(other / "model.onnx", bundle / "model.int8.onnx")
    write_manifest(bundle, read_manifest(bundle))
    exact, eight_bits = (expected_values(directory, CLIPS)[0][0] for directory in (bundle, other))
    chosen = eight_bits if find_device() == "cpu" else exact
    for precision, expected in (("auto", chosen), ("int8", eight_bits), ("float32", exact)):
        found = asyncio.run(value_of_clips(bundle, precision=precision))
        assert found == pytest.approx(expected, rel=1e-4)


async def value_of_clips(bundle: Path, **flags: object) -> float:
    async with engine_of(bundle, **flags) as (engine, _):
        return values(await score(engine, CLIPS))[0][0]
