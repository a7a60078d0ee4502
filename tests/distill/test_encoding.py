"""The encoding rule of bundle.proto, on both sides of the bundle."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from alinfik.distill.encoding import Encoded, Encoder
from alinfik.distill.samples import Row
from alinfik.server.bundle import Bundle
from alinfik.server.encode import Encoder as ServerEncoder
from alinfik.v1 import BundleManifest, Encoding, Sample

texts = st.text(max_size=60)
ids = st.lists(st.integers(0, 20), max_size=2)
encodings = st.builds(
    Encoding,
    token_limit=st.integers(4, 40),
    prompt_template=st.sampled_from(["{prompt}\n", "Q: {prompt} A:", "{prompt}"]),
    completion_template=st.sampled_from(["{completion}", " {completion}"]),
    prefix_ids=ids,
    suffix_ids=ids,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llm: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_llm / "tokenizer.json"))


def encode(tokenizer: Tokenizer, encoding: Encoding, prompt: str, completion: str) -> Encoded:
    row = Row(id="1", provider="", prompt=prompt, completion=completion, group="")
    return Encoder(tokenizer, encoding).encode([row])[0]


@given(encoding=encodings, prompt=texts, completion=texts)
def test_server_and_distiller_encode_alike(
    tokenizer: Tokenizer, tiny_llm: Path, encoding: Encoding, prompt: str, completion: str
) -> None:
    ours = encode(tokenizer, encoding, prompt, completion)
    sample = Sample(prompt=prompt, completion=completion)
    bundle = Bundle(tiny_llm, BundleManifest(encoding=encoding))
    theirs = ServerEncoder(bundle).encode([sample])[0]
    assert list(theirs.input_ids) == ours.input_ids
    assert theirs.completion_start == ours.completion_start
    assert theirs.truncated == ours.truncated


@given(encoding=encodings, prompt=texts, completion=texts)
def test_every_token_says_which_characters_it_stands_for(
    tokenizer: Tokenizer, encoding: Encoding, prompt: str, completion: str
) -> None:
    row = Row(id="1", provider="", prompt=prompt, completion=completion, group="")
    encoder = Encoder(tokenizer, encoding)
    encoded, spans = encoder.encode([row])[0], encoder.spans([row])[0]
    assert len(spans) == len(encoded)
    assert (spans[:, 0] <= spans[:, 1]).all()
    start = encoded.completion_start
    assert (spans[:start] <= len(prompt)).all()
    assert (spans[start:] >= len(prompt)).all()
    assert (spans <= len(prompt) + len(completion)).all()
    covered = {place for begin, end in spans for place in range(begin, end)}
    if not encoded.truncated:
        assert covered == set(range(len(prompt) + len(completion)))


@given(encoding=encodings, prompt=texts, completion=st.text(min_size=1, max_size=60))
def test_a_sample_keeps_to_the_limit_and_keeps_some_completion(
    tokenizer: Tokenizer, encoding: Encoding, prompt: str, completion: str
) -> None:
    encoded = encode(tokenizer, encoding, prompt, completion)
    assert len(encoded) <= encoding.token_limit
    assert encoded.completion_length >= 1
    assert encoded.input_ids[: len(encoding.prefix_ids)] == list(encoding.prefix_ids)


@given(prompt=texts, completion=texts)
def test_a_short_sample_is_whole(tokenizer: Tokenizer, prompt: str, completion: str) -> None:
    encoding = Encoding(
        token_limit=1000, prompt_template="{prompt}", completion_template="{completion}"
    )
    encoded = encode(tokenizer, encoding, prompt, completion)
    assert not encoded.truncated
    assert tokenizer.decode(encoded.input_ids) == prompt + completion


def test_braces_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    encoding = Encoding(
        token_limit=1000, prompt_template="{prompt}", completion_template="{completion}"
    )
    encoded = encode(tokenizer, encoding, "{completion} {0}", "{prompt} {")
    assert tokenizer.decode(encoded.input_ids) == "{completion} {0}{prompt} {"
