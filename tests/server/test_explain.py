import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from alinfik.server.bundle import load_bundle
from alinfik.server.encode import Encoder
from alinfik.v1 import ExplainRequest, Sample, TokenValue
from tests.server.test_service import BLANK, CLIPS, failure, fields, served
from tests.tiny_bundle import expected_token_values, write_tiny_bundle


def test_every_token_has_its_values_and_its_characters(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            request = ExplainRequest(samples=[CLIPS, Sample(id="2", completion="24 clips")])
            response = await stub.Explain(request)
        assert [one.sample_id for one in response.explanations] == ["clips", "2"]
        for sample, explained in zip(request.samples, response.explanations, strict=True):
            assert list(explained.targets) == ["gsm8k", "mbpp"]
            assert not explained.truncated
            found = [list(token.values) for token in explained.tokens]
            expected = expected_token_values(tiny_bundle, sample)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
            texts = {TokenValue.FIELD_PROMPT: sample.prompt, TokenValue.FIELD_COMPLETION: ""}
            texts[TokenValue.FIELD_COMPLETION] = sample.completion
            for field, text in texts.items():
                spans = [(t.start, t.end) for t in explained.tokens if t.field == field]
                assert "".join(text[start:end] for start, end in spans) == text

    asyncio.run(main())


@given(
    prompt=st.text(max_size=80),
    completion=st.text(min_size=1, max_size=200),
)
@settings(max_examples=60)
def test_a_token_stands_where_it_was_cut_from(
    tiny_bundle: Path, prompt: str, completion: str
) -> None:
    encoder = Encoder(load_bundle(tiny_bundle))
    sample = Sample(prompt=prompt, completion=completion)
    places = encoder.places(sample)
    row = encoder.encode([sample])[0]
    assert len(places) == len(row)
    assert places[0].field == places[-1].field == "added" or row.truncated
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    for place, token in zip(places, row.input_ids.tolist(), strict=True):
        text = {"prompt": prompt, "completion": completion, "added": ""}[place.field]
        said = tokenizer.decode([token])
        # A token may be a part of a character, which decodes to a replacement character.
        if place.field != "added" and "\ufffd" not in said and place.end - place.start == len(said):
            assert text[place.start : place.end] == said


def test_targets_can_be_chosen(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle) as (_, stub):
            request = ExplainRequest(samples=[CLIPS], targets=["mbpp"])
            (explained,) = (await stub.Explain(request)).explanations
            assert list(explained.targets) == ["mbpp"]
            expected = expected_token_values(tiny_bundle, CLIPS)[:, 1]
            found = [token.values[0] for token in explained.tokens]
            assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)

    asyncio.run(main())


def test_what_cannot_be_explained_is_refused_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tiny_bundle, max_explained_samples=2) as (_, stub):
            status = await failure(stub.Explain(ExplainRequest(samples=[CLIPS, BLANK])))
            assert fields(status) == ["samples[1].completion"]
            status = await failure(stub.Explain(ExplainRequest(samples=[CLIPS] * 3)))
            assert fields(status) == ["samples"]
            status = await failure(stub.Explain(ExplainRequest(samples=[CLIPS], targets=["x"])))
            assert status.code == grpc.StatusCode.NOT_FOUND.value[0]
        async with served(write_tiny_bundle(tmp_path / "mute", explains=False)) as (_, stub):
            status = await failure(stub.Explain(ExplainRequest(samples=[CLIPS])))
            assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
            assert "without token values" in status.message

    asyncio.run(main())
