"""From labels to a bundle that the server loads, on a tiny random LLM."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from prometheus_client import CollectorRegistry
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from alinfik.distill.backbones import Reading, build_backbone
from alinfik.distill.bundle import read_manifest
from alinfik.distill.commands import Explain, Label, Train
from alinfik.distill.encoding import Encoder
from alinfik.distill.evaluate import evaluate
from alinfik.distill.explain import Explainer, ExplainError
from alinfik.distill.export import OnnxModel
from alinfik.distill.label import label
from alinfik.distill.labels import Labels
from alinfik.distill.llm import load_fast_tokenizer
from alinfik.distill.measure import predict
from alinfik.distill.report import write_report
from alinfik.distill.splits import split
from alinfik.distill.train import train
from alinfik.distill.training_data import training_data
from alinfik.server.batching import Priority
from alinfik.server.bundle import load_bundle
from alinfik.server.encode import Encoder as ServerEncoder
from alinfik.server.engine import Engine
from alinfik.server.metrics import Metrics as ServerMetrics
from alinfik.server.settings import ServerSettings
from alinfik.server.valuation import Estimate
from alinfik.v1 import Metrics, Sample
from tests.distill.conftest import write_rows
from tests.distill.processes import started
from tests.distill.tiny_llm import write_encoder


def test_a_bundle_holds_what_its_manifest_says(bundle: Path, labels: Labels) -> None:
    manifest = read_manifest(bundle)
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", *manifest.files}
    assert set(manifest.files) >= {
        *("model.onnx", "explain.onnx", "tokenizer.json", "metrics.json", "report.html")
    }
    assert ("model.int8.onnx" in manifest.files) == (manifest.metrics.int8_spearman >= 0.995)
    assert manifest.encoding == labels.manifest.encoding
    assert manifest.labels == labels.manifest.labels
    assert manifest.proxy.backbone == "layers:2"
    assert manifest.metrics.export_error < 1e-4
    assert manifest.metrics.held_out_count == len(split(labels.rows)["held_out"])


def test_the_proxy_learns(bundle: Path, labels: Labels) -> None:
    """On the samples it was trained on, which a random network of this size can fit."""
    training = labels.take(split(labels.rows)["train"])
    manifest = read_manifest(bundle)
    predictions = predict(
        OnnxModel(bundle / "model.onnx"), training.samples, manifest.encoding.pad_id
    )
    for column in range(2):
        correlation = np.corrcoef(predictions.value[:, column], training.values[:, column])[0, 1]
        assert correlation > 0.5


def test_intervals_hold_the_value(bundle: Path, labels: Labels) -> None:
    predictions = predict(OnnxModel(bundle / "model.onnx"), labels.samples, 2)
    assert (predictions.lower < predictions.value).all()
    assert (predictions.value < predictions.upper).all()
    assert np.isfinite(predictions.ood).all()


def test_the_server_gives_the_values_that_the_distiller_measured(
    bundle: Path, labels: Labels
) -> None:
    loaded = load_bundle(bundle)
    rows = labels.rows[:12]
    encoder = Encoder(Tokenizer.from_file(str(bundle / "tokenizer.json")), loaded.manifest.encoding)
    expected = predict(OnnxModel(bundle / "model.onnx"), encoder.encode(rows), 2)
    samples = [Sample(id=row.id, prompt=row.prompt, completion=row.completion) for row in rows]

    async def score() -> list[Estimate]:
        settings = ServerSettings(bundle=bundle)
        async with Engine(loaded, settings, ServerMetrics(CollectorRegistry())) as engine:
            scored = await engine.score(
                samples, priority=Priority.INTERACTIVE, source="grpc", wait=False
            )
        return [one for one in scored.outcomes if isinstance(one, Estimate)]

    estimates = asyncio.run(score())
    assert len(estimates) == len(rows)
    values = np.array([found.columns[0] for found in estimates])
    np.testing.assert_allclose(values, expected.value, rtol=1e-4)
    scores = [found.out_of_distribution_score for found in estimates]
    np.testing.assert_allclose(scores, expected.ood, rtol=1e-4)


def test_evaluate_agrees_with_the_bundle_s_own_metrics(
    bundle: Path, labels_directory: Path, tmp_path: Path
) -> None:
    metrics = evaluate(bundle, labels_directory, tmp_path / "report.html")
    own = json_format.Parse((bundle / "metrics.json").read_text(), Metrics())
    assert metrics.export_error == own.export_error
    assert metrics.int8_spearman == own.int8_spearman
    for measured, recorded in zip(metrics.targets, own.targets, strict=True):
        assert measured.target == recorded.target
        assert measured.spearman == pytest.approx(recorded.spearman, abs=1e-6)
        assert measured.coverage == recorded.coverage
        assert measured.token_spearman == recorded.token_spearman != 0
        assert measured.tfidf_spearman == pytest.approx(recorded.tfidf_spearman, abs=1e-6)


def test_metrics_say_how_explanations_agree_with_labels(bundle: Path, labels: Labels) -> None:
    held_out = labels.take(split(labels.rows)["held_out"])
    manifest = read_manifest(bundle)
    explained = Explainer(bundle, manifest).explain(held_out.rows)
    found = np.concatenate([one.token_values for one in explained])
    labelled = np.concatenate(held_out.token_values)
    for column, metrics in enumerate(manifest.metrics.targets):
        expected = spearmanr(found[:, column], labelled[:, column]).statistic
        assert metrics.token_spearman == pytest.approx(expected, abs=1e-3)


def test_metrics_say_how_every_provider_and_tenth_fares(bundle: Path, labels: Labels) -> None:
    held_out = labels.take(split(labels.rows)["held_out"])
    for metrics in read_manifest(bundle).metrics.targets:
        counts = [provider.held_out_count for provider in metrics.providers]
        assert sum(counts) == len(held_out)
        assert counts == sorted(counts, reverse=True)
        assert {one.provider for one in metrics.providers} == {r.provider for r in held_out.rows}
        shares = [one.coverage * one.held_out_count for one in metrics.providers]
        assert sum(shares) / sum(counts) == pytest.approx(metrics.coverage)
        assert len(metrics.tenth_coverage) == 10
        assert 0 <= metrics.top_tenth_overlap <= 1
        assert metrics.relative_width > 0


def test_the_report_stands_alone(bundle: Path) -> None:
    report = (bundle / "report.html").read_text()
    assert "Target gsm8k" in report
    assert "http" not in report.replace("http://www.w3.org", "")
    assert "<script" not in report


def test_texts_in_the_report_are_text(bundle: Path, labels: Labels, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    held_out = labels.take(split(labels.rows)["held_out"])
    column = held_out.table.schema.get_field_index("completion")
    hostile = held_out.table.set_column(
        column, "completion", [["<script>alert(1)</script>"] * len(held_out)]
    )
    predictions = predict(OnnxModel(bundle / "model.onnx"), held_out.samples, 2)
    report = tmp_path / "r.html"
    labels = Labels(held_out.manifest, "", hostile)
    for explainer in (None, Explainer(bundle, manifest)):
        write_report(report, manifest, labels, predictions, explainer)
        assert "<script" not in report.read_text()


@pytest.mark.parametrize("family", ["bag", "encoder"])
def test_every_family_goes_through_the_same_bundle(
    family: str, labels_directory: Path, labels: Labels, tmp_path: Path
) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    backbone = "bag" if family == "bag" else f"encoder:{encoder}"
    out = tmp_path / "bundle"
    epochs = 0 if family == "bag" else 4
    train(Train(labels=labels_directory, out=out, backbone=backbone, epochs=epochs))
    loaded = load_bundle(out)
    manifest = loaded.manifest
    # An encoder's directory says nothing of the machine that it is on.
    assert manifest.proxy.backbone == ("bag" if family == "bag" else "encoder:encoder")
    assert loaded.quantised == (manifest.metrics.int8_spearman >= 0.995)
    if family == "bag":
        assert manifest.encoding == labels.manifest.encoding
        assert not loaded.quantised
    else:
        assert manifest.encoding.prefix_ids != labels.manifest.encoding.prefix_ids
        assert manifest.metrics.int8_spearman > 0.9
    rows = labels.rows[:8]
    served = [
        list(one.input_ids)
        for one in ServerEncoder(loaded).encode(
            [Sample(prompt=row.prompt, completion=row.completion) for row in rows]
        )
    ]
    encoder_here = Encoder(Tokenizer.from_file(str(loaded.tokenizer)), manifest.encoding)
    assert served == [sample.input_ids for sample in encoder_here.encode(rows)]
    values = predict(OnnxModel(out / "model.onnx"), encoder_here.encode(rows), 0).value
    explained = list(Explainer(out, manifest).explain(rows))
    np.testing.assert_allclose([one.values for one in explained], values, rtol=1e-3, atol=1e-5)


def test_token_values_reduce_to_the_label_in_the_encoder_s_tokens_too(
    labels: Labels, tiny_llm: Path, tmp_path: Path
) -> None:
    tokenizer = load_fast_tokenizer(str(tiny_llm)).backend_tokenizer
    llm = Reading(tokenizer, labels.manifest.encoding)
    encoder = write_encoder(tmp_path / "encoder")
    _, reading = build_backbone(f"encoder:{encoder}", str(tiny_llm), llm, labels.kernel)
    for of in (llm, reading):
        data = training_data(labels, [str(n) for n in range(len(labels))], llm, of)
        means = [values.mean(axis=0) for values in data.token_values]
        np.testing.assert_allclose(means, data.labels, rtol=1e-4, atol=1e-6)
        assert [len(values) for values in data.token_values] == [len(s) for s in data.samples]


def test_an_explanation_names_the_characters_of_every_token(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_rows(tmp_path / "pool.jsonl", 6)
    Explain(bundle=bundle, samples=str(pool)).cli_cmd()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    assert [one["id"] for one in found] == [row["id"] for row in rows]
    for one, row in zip(found, rows, strict=True):
        named = [token for token in one["tokens"] if token["field"] != "added"]
        assert "".join(token["text"] for token in named) == row["prompt"] + row["completion"]
        for token in named:
            assert row[token["field"]][token["start"] : token["end"]] == token["text"]
        for target, value in one["values"].items():
            mean = np.mean([token["values"][target] for token in one["tokens"]])
            assert mean == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_labels_without_token_values_cannot_be_explained(
    tiny_llm: Path, target: Path, tmp_path: Path
) -> None:
    label(
        Label(
            model=str(tiny_llm),
            target={"gsm8k": str(target)},
            pool=[str(write_rows(tmp_path / "pool.jsonl", 120))],
            out=tmp_path / "labels",
            cache=tmp_path / "cache",
            dtype="float32",
            token_values=False,
            ceiling_samples=0,
        )
    )
    out = tmp_path / "bundle"
    train(Train(labels=tmp_path / "labels", out=out, backbone="layers:1", epochs=1))
    assert not (out / "explain.onnx").exists()
    with pytest.raises(ExplainError, match="--token-values false"):
        Explainer(out, read_manifest(out))


def test_the_largest_proxy_of_a_small_model_goes_back_through_all_of_it(
    labels_directory: Path, labels: Labels, tmp_path: Path
) -> None:
    train(Train(labels=labels_directory, out=tmp_path / "b", size="large"))
    manifest = read_manifest(tmp_path / "b")
    assert manifest.proxy.backbone == "gradients:3"
    # It is what labels are made of, but for the table of tokens and what rank 8 leaves out.
    for target in manifest.metrics.targets:
        assert target.spearman > 0.95
        assert target.token_spearman > 0.9
    # Token values, in the file that explains, add up to what the other one says.
    rows = labels.rows[:8]
    values = predict(OnnxModel(tmp_path / "b" / "model.onnx"), labels.samples[:8], 2).value
    told = [one.values for one in Explainer(tmp_path / "b", manifest).explain(rows)]
    np.testing.assert_allclose(np.stack(told), values, rtol=1e-4, atol=1e-5 * np.abs(values).max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_gpu_gives_the_proxy_that_a_cpu_does(
    epochs: int, labels_directory: Path, labels: Labels, tmp_path: Path
) -> None:
    settings = Train(
        labels=labels_directory, out=tmp_path / "gpu", backbone="layers:2", epochs=epochs
    )
    train(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train(settings.model_copy(update={"out": tmp_path / "cpu"}))
    ours, theirs = (
        predict(OnnxModel(tmp_path / device / "model.onnx"), labels.samples, 2).value
        for device in ("gpu", "cpu")
    )
    assert np.corrcoef(ours[:, 0], theirs[:, 0])[0, 1] > 0.9


def test_a_killed_training_goes_on_and_ends_alike(
    bundle: Path, labels_directory: Path, labels: Labels, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    settings = Train(labels=labels_directory, out=out, backbone="layers:2", epochs=6)
    arguments = [
        *("train", "--labels", str(labels_directory), "--out", str(out)),
        *("--backbone", "layers:2", "--epochs", "6"),
    ]
    checkpoint = tmp_path / ".bundle.checkpoint"
    process = started(arguments, Path(os.devnull))
    while process.is_alive() and not checkpoint.exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = torch.load(checkpoint, weights_only=True)["state"]["epoch"]
    assert kept < settings.epochs
    train(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    ours, theirs = (
        predict(OnnxModel(directory / "model.onnx"), labels.samples, 2)
        for directory in (bundle, out)
    )
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-3, atol=1e-5)
