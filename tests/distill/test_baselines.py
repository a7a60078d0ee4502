import random
import tracemalloc

import pyarrow as pa
import pytest

from alinfik.distill import ridge
from alinfik.distill.baselines import tfidf_scores
from alinfik.distill.labels import Labels
from alinfik.distill.ranks import spearman
from alinfik.v1 import BundleManifest, Target


def labels(count: int) -> Labels:
    """Samples that are worth more the more often they say `eggs`, of thousands of other words."""
    rng = random.Random(0)
    eggs = [rng.randrange(9) for _ in range(count)]
    texts = [
        "eggs " * some + " ".join(f"w{rng.randrange(5000)}" for _ in range(6)) for some in eggs
    ]
    empty = [""] * count
    columns = dict.fromkeys(("id", "provider", "prompt", "group"), empty)
    table = pa.table(columns | {"completion": texts, "label_t": pa.array(eggs, pa.float64())})
    return Labels(BundleManifest(targets=[Target(name="t")]), "", table)


def test_words_are_fitted_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "_TRIED", 300)
    known = labels(3000)
    tracemalloc.start()
    scores = tfidf_scores(known, known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spearman(scores[:, 0], known.values[:, 0]) > 0.9
    # A number for each pair of samples would be 72 MB.
    assert peak < 72e6
