import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from alinfik.command import CommandError, run
from alinfik.distill.commands import Distill, Label
from alinfik.distill.directions import DirectionsError
from alinfik.distill.label import label
from alinfik.distill.labels import LabelsError, read_labels
from alinfik.distill.settings import Mode
from tests.distill.conftest import write_rows
from tests.support import skip_or_fail


@pytest.fixture
def settings(tiny_llm: Path, pool: Path, target: Path, tmp_path: Path) -> Label:
    return Label(
        model=str(tiny_llm),
        target={"gsm8k": str(target), "again": str(target)},
        pool=[str(pool)],
        out=tmp_path / "labels",
        cache=tmp_path / "cache",
        dtype="float32",
        shard_samples=6,
    )


def refusal(settings: Label) -> str:
    with pytest.raises(CommandError) as caught:
        label(settings)
    return str(caught.value)


def test_labels_say_what_they_are(settings: Label) -> None:
    label(settings)
    labels = read_labels(settings.out)
    assert len(labels) == 20
    assert labels.names == ["gsm8k", "again"]
    assert labels.manifest.labels.unit == "1"
    assert labels.manifest.labels.parameters == "all"
    assert labels.manifest.labels.dtype == "float32"
    assert labels.manifest.labels.sample_count == 20
    assert labels.manifest.language_model.name == "tiny-llama"
    np.testing.assert_allclose(labels.values[:, 0], labels.values[:, 1], rtol=1e-5)
    assert sorted(path.name for path in settings.out.iterdir()) == [
        "directions.safetensors",
        "manifest.json",
        *(f"part-{number:05d}.parquet" for number in range(4)),
        "run.json",
    ]


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_token_values_reduce_to_the_label(settings: Label, mode: Mode) -> None:
    plain = settings.model_copy(update={"mode": mode, "normalisation": "none"})
    label(plain)
    labels = read_labels(settings.out)
    assert labels.manifest.labels.unit == "nats per unit learning rate"
    means = np.stack([values.mean(axis=0) for values in labels.token_values])
    np.testing.assert_allclose(means, labels.values, rtol=1e-4, atol=1e-6)
    lengths = [
        sample.completion_length if mode == "forward" else len(sample) for sample in labels.samples
    ]
    assert [len(values) for values in labels.token_values] == lengths


def test_labels_without_token_values_are_the_same(settings: Label, tmp_path: Path) -> None:
    label(settings)
    bare = settings.model_copy(update={"out": tmp_path / "bare", "token_values": False})
    label(bare)
    labels = read_labels(bare.out)
    assert labels.token_values == []
    np.testing.assert_allclose(labels.values, read_labels(settings.out).values, rtol=1e-4)


def test_rows_keep_the_pool_s_order_and_text(settings: Label, pool: Path) -> None:
    label(settings)
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    found = read_labels(settings.out).rows
    assert [row.id for row in found] == [row["id"] for row in rows]
    assert [row.completion for row in found] == [row["completion"] for row in rows]


def test_an_interrupted_run_goes_on_where_it_stopped(settings: Label) -> None:
    label(settings)
    whole = read_labels(settings.out)
    untouched = (settings.out / "part-00000.parquet").stat().st_mtime_ns
    (settings.out / "part-00002.parquet").unlink()
    (settings.out / ".part-00003.parquet.77").write_bytes(b"half a shard")
    (settings.out / "manifest.json").unlink()
    with pytest.raises(LabelsError, match="is incomplete"):
        read_labels(settings.out)
    label(settings)
    assert read_labels(settings.out).table.equals(whole.table)
    assert (settings.out / "part-00000.parquet").stat().st_mtime_ns == untouched
    assert not list(settings.out.glob(".*"))


def test_a_copy_without_all_shards_is_refused(settings: Label) -> None:
    label(settings)
    (settings.out / "part-00002.parquet").write_bytes(b"")
    with pytest.raises(LabelsError, match="a shard cannot be read"):
        read_labels(settings.out)
    (settings.out / "part-00002.parquet").unlink()
    with pytest.raises(LabelsError, match="should hold 20 labels and holds 14"):
        read_labels(settings.out)


def test_labels_made_before_there_were_directions_get_them(settings: Label) -> None:
    label(settings)
    directions = read_labels(settings.out).directions
    assert directions["model.layers.0.mlp.up_proj.weight"].left.shape == (2, 48, 8)
    assert not any("embed" in name for name in directions)
    written = (settings.out / "manifest.json").stat().st_mtime_ns
    (settings.out / "directions.safetensors").unlink()
    assert not read_labels(settings.out).directions
    label(settings)
    found = read_labels(settings.out).directions
    for name, direction in directions.items():
        torch.testing.assert_close(found[name].left, direction.left)
    # All else is as it was.
    assert (settings.out / "manifest.json").stat().st_mtime_ns == written


def test_directions_that_cannot_be_read_are_refused(settings: Label) -> None:
    label(settings)
    path = settings.out / "directions.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DirectionsError, match=r"directions.safetensors cannot be read.*delete it"):
        read_labels(settings.out)


def test_a_run_that_names_its_targets_in_another_order_goes_on(
    settings: Label, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", 5, seed=7)
    settings.target["again"] = str(other)
    label(settings)
    values = read_labels(settings.out).values
    direction = read_labels(settings.out).directions["model.norm.weight"]
    (settings.out / "part-00002.parquet").unlink()
    (settings.out / "manifest.json").unlink()
    label(settings.model_copy(update={"target": dict(reversed(settings.target.items()))}))
    found = read_labels(settings.out)
    assert found.names == ["again", "gsm8k"]
    np.testing.assert_allclose(found.values, values[:, ::-1], rtol=1e-5)
    torch.testing.assert_close(found.directions["model.norm.weight"].left, direction.left.flip(0))


def test_a_file_in_the_way_is_told(settings: Label) -> None:
    settings.out.write_text("")
    assert "is no directory" in refusal(settings)


def test_a_target_s_bad_rows_are_counted_and_its_columns_may_be_others(
    settings: Label, pool: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with target.open("a") as file:
        file.write('{"id": "no completion"}\n')
    renamed = pool.read_text().replace('"completion"', '"answer"')
    pool.write_text(renamed)
    there = {"fields": {"completion": "answer"}, "target_fields": {}}
    label(settings.model_copy(update={"on_bad_row": "skip"} | there))
    told = capsys.readouterr().err
    assert told.count("skipped 1 row: no column 'completion'") == 2  # it is two targets
    assert read_labels(settings.out).manifest.targets[0].sample_count == 5


def test_a_run_killed_before_its_first_file_goes_on(settings: Label) -> None:
    settings.out.mkdir()
    (settings.out / ".run.json.77").write_text('{"finger')
    label(settings)
    assert len(read_labels(settings.out)) == 20
    assert not list(settings.out.glob(".*"))


def test_a_changed_setting_under_old_labels_is_refused(settings: Label, target: Path) -> None:
    label(settings)
    changed = settings.model_copy(update={"dtype": "float64", "token_limit": 50})
    complaint = refusal(changed)
    assert "dtype was 'float32' and is now 'float64'" in complaint
    assert "token_limit was 128 and is now 50" in complaint
    target.write_text(target.read_text().splitlines()[0])
    assert "target was" in refusal(settings)


def test_an_output_that_holds_something_else_is_refused(settings: Label) -> None:
    settings.out.mkdir()
    (settings.out / "thesis.tex").write_text("years of work")
    assert "holds something else" in refusal(settings)


def test_bad_data_shows_before_any_gradient(settings: Label, pool: Path, target: Path) -> None:
    with pool.open("a") as file:
        file.write('{"id": "x", "completion": ""}\n')
    assert f"{pool} line 21" in refusal(settings)
    pool.write_text("")
    assert "the pool is empty" in refusal(settings)
    target.write_text("")
    assert f"the target {target} is empty" in refusal(settings)
    assert not settings.out.exists()


def test_bad_rows_are_left_out_and_counted_if_told_to(
    settings: Label, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pool.open("a") as file:
        file.write('{"id": "x", "completion": ""}\n{\n')
    label(settings.model_copy(update={"on_bad_row": "skip"}))
    assert len(read_labels(settings.out)) == 20
    said = capsys.readouterr().err
    assert f"{pool} line 21" in said
    assert f"{pool} line 22" in said


def test_a_target_that_is_also_for_sale_is_told(
    settings: Label, pool: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pool.open("a") as file:
        file.write(target.read_text())
    label(settings)
    assert "5 of the pool's 25 samples are also in the target gsm8k" in capsys.readouterr().err


def test_an_unknown_model_is_named(settings: Label, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"model": str(tmp_path / "none.gguf")})
    assert f"there is no model file {tmp_path}/none.gguf" in refusal(missing)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, almost")
    broken = settings.model_copy(update={"model": str(tmp_path / "broken.gguf")})
    assert "as a GGUF language model" in refusal(broken)
    empty = settings.model_copy(update={"model": str(tmp_path)})
    assert f"cannot load the model {tmp_path}" in refusal(empty)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["label"], "--model is required"),
        (["label", "--model=m", "--target", "Big=t", "--pool=p", "--out=o"], "'Big' should be"),
        (
            ["label", "--mode=forward", "--model=m", "--target=t=t", "--pool=p", "--out=o"],
            "gives no gradient norms",
        ),
        (["train", "--labels=nowhere", "--out=b"], "nowhere is no labels directory"),
        (["evaluate", "--bundle=b", "--labels=l", "--report=r"], "b is no bundle"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(Distill, arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert message.count("\n") == 1
    assert message.startswith("alinfik-distill: ")


def test_settings_come_from_file_and_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text('[train]\nlabels = "from-file"\nout = "b"\n')
    config = ["--config", str(tmp_path / "c.toml"), "train"]
    for arguments, environment, complaint in (
        (config, "", "from-file is no labels directory"),
        (config, "from-env", "from-env is no labels directory"),
        ([*config, "--labels=from-flag"], "from-env", "from-flag is no labels directory"),
    ):
        if environment:
            monkeypatch.setenv("ALINFIK_LABELS", environment)
        with pytest.raises(SystemExit) as ended:
            run(Distill, arguments)
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        skip_or_fail("a file system can be mounted by root alone; run the tests as root")
    yield where
    # Parquet files that were read stay mapped for a while.
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def test_a_full_disk_is_told_and_costs_nothing(settings: Label, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    kept = settings.model_copy(update={"out": small_disk / "labels", "shard_samples": 5})
    kept.out.mkdir()
    ballast.write_bytes(bytes(2**20 - 12 * 1024))
    complaint = refusal(kept)
    assert "no room on the disk for" in complaint
    assert "run the same command again" in complaint
    assert not list(kept.out.glob(".*"))
    ballast.unlink()
    label(kept)
    assert len(read_labels(kept.out)) == 20


def test_a_full_cache_does_not_stop_the_run(
    settings: Label, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "ballast").write_bytes(bytes(2**20 - 8 * 1024))
    label(settings.model_copy(update={"cache": small_disk / "cache"}))
    assert len(read_labels(settings.out)) == 20
    assert "a target's gradient is not kept" in capsys.readouterr().err


def test_a_gpu_with_too_little_memory_is_told(
    settings: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("alinfik.distill.recipe.load_llm", too_large)
    assert "lower --batch-tokens, then --token-limit" in refusal(settings)


def test_more_tokens_than_the_model_has_positions_are_refused(settings: Label) -> None:
    complaint = refusal(settings.model_copy(update={"token_limit": 129}))
    assert complaint.startswith("--token-limit 129 is more than the 128 positions")
