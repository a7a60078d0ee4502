import json
import random
from pathlib import Path

import pytest
import torch

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
