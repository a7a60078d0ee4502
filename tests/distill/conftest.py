import json
import random
from pathlib import Path

import pytest
import torch

from alinfik.distill.commands import Label, Train
from alinfik.distill.label import label
from alinfik.distill.labels import Labels, read_labels
from alinfik.distill.train import train
from tests.distill.tiny_llm import llama, write_llm

# Threads that wait for each other over matrices this small cost ten times the work where anything
# else runs.
torch.set_num_threads(1)

_PARTS = ["Ada", "buys", "12", "eggs", "and", "gives", "3", "def", "add(x):", "return", "x + 1"]


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random Llama of three layers, in float32."""
    return write_llm(tmp_path_factory.mktemp("llm") / "tiny-llama", llama(tied=True))


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Write samples of random words from three providers."""
    rng = random.Random(seed)
    rows = [
        {
            "id": f"{path.stem}-{number}",
            "provider": rng.choice(["north", "south", "west"]),
            "prompt": " ".join(rng.choices(_PARTS, k=rng.randint(0, 4))),
            "completion": " ".join(rng.choices(_PARTS, k=rng.randint(2, 14))),
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A JSONL file of 20 samples."""
    return write_rows(tmp_path / "pool.jsonl", 20)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A JSONL file of 5 samples."""
    return write_rows(tmp_path / "target.jsonl", 5, seed=1)


@pytest.fixture(scope="session")
def labels_directory(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of 120 samples for two targets, by the tiny model."""
    directory = tmp_path_factory.mktemp("labels")
    label(
        Label(
            model=str(tiny_llm),
            target={
                "gsm8k": str(write_rows(directory / "gsm8k.jsonl", 4, seed=1)),
                "mbpp": str(write_rows(directory / "mbpp.jsonl", 4, seed=2)),
            },
            pool=[str(write_rows(directory / "pool.jsonl", 120))],
            out=directory / "labels",
            cache=directory / "cache",
            dtype="float32",
        )
    )
    return directory / "labels"


@pytest.fixture(scope="session")
def labels(labels_directory: Path) -> Labels:
    """The same, read."""
    return read_labels(labels_directory)


@pytest.fixture(scope="session")
def bundle(labels_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is distilled from them by two of the model's three layers, which no test changes."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    train(Train(labels=labels_directory, out=out, backbone="layers:2", epochs=6))
    return out
