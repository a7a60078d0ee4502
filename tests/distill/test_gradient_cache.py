from pathlib import Path

import pytest
import torch

from alinfik.distill.gradient_cache import GradientCache
from alinfik.distill.losses import Parameters


def gradient() -> Parameters:
    return {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


def never() -> Parameters:
    raise AssertionError("computed again")


def test_a_gradient_is_computed_once(tmp_path: Path) -> None:
    first = GradientCache(tmp_path / "new").get({"model": "m", "target": "t"}, gradient)
    again = GradientCache(tmp_path / "new").get({"target": "t", "model": "m"}, never)
    assert first.keys() == again.keys()
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("key", [{"model": "m"}, {"model": "m", "target": "u"}])
def test_another_key_is_another_gradient(tmp_path: Path, key: dict[str, str]) -> None:
    cache = GradientCache(tmp_path)
    cache.get({"model": "m", "target": "t"}, gradient)
    assert cache.get(key, dict) == {}


def test_a_file_that_does_not_read_is_computed_again(tmp_path: Path) -> None:
    cache = GradientCache(tmp_path)
    cache.get({"model": "m"}, gradient)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert cache.get({"model": "m"}, gradient).keys() == {"a", "b"}
    assert cache.get({"model": "m"}, never).keys() == {"a", "b"}


def test_a_place_that_cannot_be_written_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert GradientCache(tmp_path / "file").get({"model": "m"}, gradient).keys() == {"a", "b"}
    assert "is not kept" in capsys.readouterr().err


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        GradientCache(tmp_path).get({"model": "m"}, never)
    assert not list(tmp_path.iterdir())
