"""What is kept of a training that was cut off."""

from pathlib import Path

from alinfik.distill.checkpoint import Checkpoint


def test_the_checkpoint_of_another_training_is_not_read(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    Checkpoint(out, {"seed": 1}).save({"epoch": 2})
    assert Checkpoint(out, {"seed": 1}).load() == {"epoch": 2}
    assert Checkpoint(out, {"seed": 2}).load() is None
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:99])
    assert Checkpoint(out, {"seed": 1}).load() is None, "half of one is none"
    Checkpoint(out, {"seed": 2}).discard()
    assert Checkpoint(out, {"seed": 1}).load() is None
