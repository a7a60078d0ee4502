"""What the out-of-distribution score flags, on real text."""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alinfik.distill.backbones import minilm
from alinfik.distill.batches import pad
from alinfik.distill.distil import learn_strangeness
from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.llm import load_fast_tokenizer
from alinfik.distill.samples import Row
from alinfik.distill.strangeness import Strangeness
from alinfik.v1 import Encoding

DATA = Path(__file__).parents[3] / "shared" / "data"

# The server reads English; each of these says what a sample might, in another language.
FOREIGN = [
    "Schreibe eine kurze Geschichte über einen Hund, der das Meer zum ersten Mal sieht.",
    "Combien de pommes reste-t-il si Marie en donne trois à chacun de ses quatre amis ?",
    "Escribe una función que devuelva la suma de los números pares de una lista.",
    "Il museo apre alle nove e chiude alle diciotto, tranne il lunedì, quando resta chiuso.",
    "Как приготовить борщ, если дома нет свёклы, а гости придут уже через час?",
    "Trein naar Utrecht vertrekt vandaag van spoor vijf in plaats van spoor acht.",
    "Ile godzin zajmie podróż, jeśli pociąg jedzie osiemdziesiąt kilometrów na godzinę?",
    "Bu ülkenin en uzun nehri hangisidir ve hangi denize dökülür, kısaca anlat.",
    "Η πόλη χτίστηκε πριν από δύο χιλιάδες χρόνια κοντά στη θάλασσα.",
    "昨日の会議で決まったことを三つの短い文にまとめてください。",
    "请写一个函数,返回列表中所有偶数的和,并解释它是如何工作的。",
    "اكتب فقرة قصيرة عن فوائد القراءة للأطفال في سن المدرسة.",
    "Kuinka monta omenaa jää jäljelle, jos kori putoaa ja puolet niistä vierii järveen?",
    "Kolik stojí tři lístky do kina, když studenti mají slevu dvacet procent?",
]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    if not DATA.is_dir():
        pytest.skip(f"there is no evaluation data at {DATA}")
    found: list[Row] = []
    for name in ("alpaca", "gsm8k_train", "wikitext2", "mbpp"):
        with (DATA / f"{name}.jsonl").open() as lines:
            read = [json.loads(line) for line, _ in zip(lines, range(500), strict=False)]
        found += [Row(r["id"], r["provider"], r["prompt"], r["completion"], "") for r in read]
    random.Random(0).shuffle(found)
    return found


def shuffled(text: str) -> str:
    words = text.split()
    return " ".join(random.Random(text).sample(words, len(words)))


def as_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def scores(model: Strangeness, samples: list[Encoded]) -> np.ndarray:
    batches = [pad(samples, [index], 0) for index in range(len(samples))]
    found = [model(batch.input_ids, batch.attention_mask) for batch in batches]
    return torch.cat(found).numpy()


def test_text_that_is_shuffled_foreign_or_encoded_is_flagged(rows: list[Row]) -> None:
    """At 5 % false alarms on texts that were not learnt from; only shuffled ones were shown."""
    tokenizer = load_fast_tokenizer(minilm()).backend_tokenizer
    encoding = Encoding(
        token_limit=128,
        prompt_template="{prompt}[SEP]",
        completion_template="{completion}",
        prefix_ids=[101],
        suffix_ids=[102],
        pad_id=0,
    )
    encoder = Encoder(tokenizer, encoding)
    known, unseen = rows[:1600], rows[1600:]
    model = learn_strangeness(encoder, known)
    usual = scores(model, encoder.encode(unseen))
    threshold = np.quantile(usual, 0.95)

    def flagged(change: Callable[[str], str]) -> float:
        strange = [
            replace(row, prompt=change(row.prompt), completion=change(row.completion))
            for row in unseen[:200]
        ]
        return float((scores(model, encoder.encode(strange)) > threshold).mean())

    assert flagged(shuffled) >= 0.8
    assert flagged(as_base64) >= 0.8
    foreign = [Row("", "", "", text, "") for text in FOREIGN]
    assert (scores(model, encoder.encode(foreign)) > threshold).mean() >= 0.8


def test_a_score_does_not_depend_on_its_batch(rows: list[Row]) -> None:
    tokenizer = load_fast_tokenizer(minilm()).backend_tokenizer
    encoder = Encoder(
        tokenizer, Encoding(token_limit=64, completion_template="{completion}", pad_id=0)
    )
    samples = encoder.encode([replace(row, prompt="") for row in rows[:60]])
    model = learn_strangeness(encoder, [replace(row, prompt="") for row in rows[:60]])
    together = pad(samples, list(range(60)), 0)
    found = model(together.input_ids, together.attention_mask).numpy()
    np.testing.assert_allclose(found, scores(model, samples), rtol=1e-4, atol=1e-4)
