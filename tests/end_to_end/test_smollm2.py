"""The main job on a real language model, by the commands that a user runs."""

import json
from pathlib import Path
from statistics import median

import pytest

from alinfik.client import Client, Sample
from alinfik.client.kafka import ingest, watch
from alinfik.distill.labels import Labels, read_labels
from demo.broker import start_broker
from demo.models import smollm2
from demo.programs import run, server
from demo.providers import Text, make_market

pytestmark = pytest.mark.llm

_LABELLED = 14


def samples_of(provider: str, texts: list[Text]) -> list[Sample]:
    return [
        Sample(id=f"{provider}-{n}", provider=provider, prompt=t.prompt, completion=t.completion)
        for n, t in enumerate(texts)
    ]


def write(path: Path, samples: list[Sample]) -> Path:
    fields = ("id", "provider", "prompt", "completion")
    rows = ({name: getattr(sample, name) for name in fields} for sample in samples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def labels(directory: Path) -> Labels:
    market = make_market(per_provider=_LABELLED, per_target=6)
    pool = [s for name, texts in market.providers.items() for s in samples_of(name, texts)]
    target = write(directory / "target.jsonl", samples_of("t", market.targets["arithmetic"]))
    run(
        "alinfik-distill",
        "label",
        *("--model", smollm2()),
        *("--target", f"arithmetic={target}"),
        *("--pool", write(directory / "pool.jsonl", pool)),
        *("--token-limit", "64"),
        *("--ceiling-samples", "0"),
        *("--out", directory / "labels"),
    )
    return read_labels(directory / "labels")


def test_the_gradients_of_a_real_model_rank_as_a_person_would(labels: Labels) -> None:
    by_provider: dict[str, list[float]] = {}
    for row, value in zip(labels.rows, labels.values[:, 0], strict=True):
        by_provider.setdefault(row.provider, []).append(value)
    medians = {provider: median(values) for provider, values in by_provider.items()}
    assert max(medians, key=medians.__getitem__) == "word-problems"
    assert medians["word-problems"] > 2 * medians["shuffled-docs"]


@pytest.mark.usefixtures("labels")
def test_a_text_is_worth_the_same_through_every_door(directory: Path) -> None:
    bundle = directory / "bundle"
    run(
        "alinfik-distill",
        "train",
        *("--labels", directory / "labels"),
        *("--out", bundle),
        *("--backbone", "layers:2"),
        *("--epochs", "2"),
    )
    unseen = make_market(per_provider=4, per_target=2, seed=7)
    samples = [s for name, texts in unseen.providers.items() for s in samples_of(name, texts)]
    with start_broker() as broker:
        for topic in ("samples", "valuations", "samples.dlq"):
            broker.create_topic(topic)
        flags = ("--bundle", bundle, "--kafka-bootstrap", broker.bootstrap)
        with server(directory / "server.log", *flags) as running:
            ingest(samples, bootstrap=broker.bootstrap, topic="samples")
            found = watch(
                bootstrap=broker.bootstrap,
                topic="valuations",
                from_beginning=True,
                count=len(samples),
            )
            streamed = {valuation.sample_id: valuation for valuation in found}
            with Client(running.grpc) as client:
                called = client.score(samples)
    assert len(streamed) == len(samples)
    for valuation in called:
        other = streamed[valuation.sample_id]
        assert other.bundle_id == valuation.bundle_id
        for one, two in zip(valuation.values, other.values, strict=True):
            assert one.value == pytest.approx(two.value, rel=1e-4)
            assert one.lower < one.value < one.upper
