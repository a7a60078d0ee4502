from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from alinfik.server.bundle import Bundle, BundleError, load_bundle
from alinfik.server.encode import Encoder
from alinfik.v1 import Sample
from tests.tiny_bundle import expected_tokens, read_manifest

texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="{}prompt completion%s\\n", max_size=120),
    st.sampled_from(["{prompt}", "{completion}", "{0}", "", "<end>", "She sold 48 clips. " * 9]),
)


@given(texts=st.lists(st.tuples(texts, texts), min_size=1, max_size=8), limit=st.integers(2, 70))
def test_rows_are_what_the_contract_says_token_by_token(
    tiny_bundle: Path, texts: list[tuple[str, str]], limit: int
) -> None:
    manifest = read_manifest(tiny_bundle)
    manifest.encoding.token_limit = limit
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    samples = [Sample(prompt=prompt, completion=completion) for prompt, completion in texts]
    rows = Encoder(Bundle(tiny_bundle, manifest)).encode(samples)
    for sample, row in zip(samples, rows, strict=True):
        prompt, completion = expected_tokens(tokenizer, manifest.encoding, sample)
        expected = [*manifest.encoding.prefix_ids, *prompt, *completion]
        assert row.input_ids.tolist() == expected
        assert row.completion_start == len(expected) - len(completion)
        manifest.encoding.token_limit = 10_000
        whole = sum(map(len, expected_tokens(tokenizer, manifest.encoding, sample)))
        manifest.encoding.token_limit = limit
        assert row.truncated == (whole > len(prompt) + len(completion))


def test_a_large_batch_is_tokenised_a_piece_at_a_time(tiny_bundle: Path) -> None:
    encoder = Encoder(load_bundle(tiny_bundle))
    sizes = [400_000, 10, 700_000, 10, 1_500_000, 10, 10]
    samples = [Sample(prompt=f"{n}?", completion=f"{n} " * (s // 2)) for n, s in enumerate(sizes)]
    with patch.object(encoder, "_encode", wraps=encoder._encode) as piece:
        together = encoder.encode(samples)
    assert [len(call.args[0]) for call in piece.call_args_list] == [2, 2, 1, 2]
    alone = [row for sample in samples for row in encoder.encode([sample])]
    assert [row.input_ids.tolist() for row in together] == [row.input_ids.tolist() for row in alone]


def test_truncation_set_in_the_tokenizer_file_does_not_count(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sample = Sample(completion="She sold 48 clips in April")
    spoilt = Encoder(Bundle(tmp_path, read_manifest(tiny_bundle))).encode([sample])
    plain = Encoder(load_bundle(tiny_bundle)).encode([sample])
    assert spoilt[0].input_ids.tolist() == plain[0].input_ids.tolist()


def test_a_tokenizer_that_does_not_parse_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer"):
        Encoder(Bundle(tmp_path, read_manifest(tiny_bundle)))
