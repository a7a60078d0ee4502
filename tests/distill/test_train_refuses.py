"""What cannot be trained or compared, and what is said of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from alinfik.command import CommandError
from alinfik.distill.batches import pad
from alinfik.distill.commands import Label, Train
from alinfik.distill.evaluate import evaluate
from alinfik.distill.export import ExportError, OnnxModel, export_error
from alinfik.distill.label import label
from alinfik.distill.labels import Labels
from alinfik.distill.llm import ModelError
from alinfik.distill.measure import EvaluationError
from alinfik.distill.settings import Size
from alinfik.distill.splits import split
from alinfik.distill.train import TrainError, train
from tests.distill.conftest import write_rows


@pytest.mark.parametrize(("size", "family"), [("small", "bag"), ("large", "gradients:3")])
def test_what_has_only_regressions_is_not_trained_by_epochs(
    size: Size, family: str, labels_directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=f"{family} has only regressions"):
        train(Train(labels=labels_directory, out=tmp_path / "b", size=size, epochs=3))


def test_no_way_back_without_directions(labels_directory: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(labels_directory, tmp_path / "labels"))
    (other / "directions.safetensors").unlink()
    with pytest.raises(ModelError, match=r"hold no directions.*or give layers:N"):
        train(Train(labels=other, out=tmp_path / "b", backbone="gradients:2"))


def test_labels_in_another_unit_are_refused_and_of_another_pool_told(
    bundle: Path,
    labels_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = Path(shutil.copytree(labels_directory, tmp_path / "labels"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["labels"]["pool_sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    report = tmp_path / "reports" / "report.html"
    metrics = evaluate(bundle, other, report)
    assert "the labels are of another pool than the bundle's" in capsys.readouterr().err
    assert metrics.held_out_count == 120
    of_words_and_tokens = [(one.tfidf_spearman, one.token_spearman) for one in metrics.targets]
    assert of_words_and_tokens == [(0, 0), (0, 0)]
    assert "120 texts of another pool than it was distilled from" in report.read_text()
    manifest["labels"]["normalisation"] = "NORMALISATION_NONE"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EvaluationError, match="another normalisation"):
        evaluate(bundle, other, tmp_path / "report.html")


def test_a_place_that_cannot_be_written_shows_before_the_work(
    bundle: Path, labels_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "place"
    with pytest.raises(CommandError, match="is no directory that may be written to"):
        train(Train(labels=labels_directory, out=place))
    with pytest.raises(CommandError, match="is no directory that may be written to"):
        evaluate(bundle, labels_directory, place)
    with pytest.raises(CommandError, match="is no file that may be written to"):
        evaluate(bundle, labels_directory, tmp_path)


def test_an_existing_bundle_is_never_changed(bundle: Path, labels_directory: Path) -> None:
    with pytest.raises(CommandError, match="exists already"):
        train(Train(labels=labels_directory, out=bundle))


def test_a_failed_run_leaves_nothing(labels_directory: Path, tmp_path: Path) -> None:
    settings = Train(labels=labels_directory, out=tmp_path / "out" / "b", backbone="layers:9")
    with pytest.raises(ModelError, match="has only 3 layers"):
        train(settings)
    assert not list(tmp_path.iterdir())


def test_another_model_s_tokenizer_is_refused(
    labels_directory: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_llm, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TrainError, match="is not the one that the labels were made with"):
        train(Train(labels=labels_directory, out=tmp_path / "b", model=str(other)))


def test_a_proxy_can_be_held_against_providers_that_it_does_not_know(
    labels_directory: Path, labels: Labels, tmp_path: Path
) -> None:
    parts = split(labels.rows, "provider")
    rows = labels.rows
    seen = {rows[index].provider for index in parts["train"]}
    assert not seen & {rows[index].provider for index in parts["held_out"]}
    out = tmp_path / "bundle"
    settings = Train(labels=labels_directory, out=out, backbone="layers:1", epochs=1)
    with pytest.raises(CommandError, match="leaves 0 samples to"):
        train(settings.model_copy(update={"split_by": "provider"}))


def test_labels_of_other_targets_are_refused(
    bundle: Path, labels_directory: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(text.replace('"mbpp"', '"other"'))
    with pytest.raises(EvaluationError, match="is for the targets gsm8k, other and"):
        evaluate(other, labels_directory, tmp_path / "r.html")


def test_an_export_that_does_not_agree_is_refused(bundle: Path, labels: Labels) -> None:
    class Other(torch.nn.Module):
        def forward(self, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ones = torch.arange(8.0).reshape(4, 2)
            return ones, ones, ones, ones[:, 0]

    batch = pad(labels.samples, [0, 1, 2, 3], 2)
    with pytest.raises(ExportError, match="of the values' spread away"):
        export_error(Other(), OnnxModel(bundle / "model.onnx"), batch)  # type: ignore[arg-type]


def test_providers_that_share_a_text_are_named_where_they_leave_too_little(
    tiny_llm: Path, tmp_path: Path
) -> None:
    pool = write_rows(tmp_path / "pool.jsonl", 60)
    with pool.open("a") as lines:
        for provider in ("north", "south", "west"):
            shared = {"id": provider, "provider": provider, "completion": "Add 1 to 3 ."}
            lines.write(json.dumps(shared) + "\n")
    label(
        Label(
            model=str(tiny_llm),
            target={"gsm8k": str(write_rows(tmp_path / "target.jsonl", 4, seed=1))},
            pool=[str(pool)],
            out=tmp_path / "labels",
            cache=tmp_path / "cache",
        )
    )
    settings = Train(labels=tmp_path / "labels", out=tmp_path / "bundle", split_by="provider")
    with pytest.raises(TrainError, match="3 providers are 1 family, since a text of theirs"):
        train(settings)


def test_labels_of_an_adapter_say_what_layers_lack(
    labels_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = Path(shutil.copytree(labels_directory, tmp_path / "labels"))
    manifest = json.loads((labels / "manifest.json").read_text())
    manifest["language_model"]["adapter"] = "lora"
    (labels / "manifest.json").write_text(json.dumps(manifest))
    train(Train(labels=labels, out=tmp_path / "layers", backbone="layers:1"))
    assert "--model takes a directory where the two are merged" in capsys.readouterr().err
    train(Train(labels=labels, out=tmp_path / "bag", backbone="bag"))
    assert "merged" not in capsys.readouterr().err
