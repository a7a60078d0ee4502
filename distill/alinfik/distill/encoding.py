"""Turns a sample into token ids and says which of them are the completion's.

The rule is the one written at `alinfik.v1.Encoding`; the server has its own implementation, and a
test holds the two together. Knows nothing of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from alinfik.distill.samples import Row
from alinfik.v1 import Encoding

Span = tuple[int, int]
Spans = NDArray[np.int64]

_PROMPT, _COMPLETION = "{prompt}", "{completion}"
# The encoding says which tokens are added.
_PLAIN = {"add_special_tokens": False}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample's tokens.

    Attributes:
        input_ids: prefix, prompt and completion ids, at most the token limit.
        completion_start: index of the first completion token; all after it are completion.
        truncated: the sample did not fit and lost tokens.
    """

    input_ids: list[int]
    completion_start: int
    truncated: bool

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def completion_length(self) -> int:
        """How many completion tokens there are."""
        return len(self.input_ids) - self.completion_start


class Encoder:
    """Encodes rows by an `alinfik.v1.Encoding` and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, encoding: Encoding) -> None:
        # The rule cuts and fills; what the file says of either is meant for other readers.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.encoding = encoding
        # Ids may have gaps.
        self.vocabulary: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encode rows, in their order."""
        prompts, completions = (
            [found.ids for found in self._tokenizer.encode_batch_fast(texts, **_PLAIN)]
            for texts in self._texts(rows)
        )
        return [
            self._join(prompt, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def spans(self, rows: Sequence[Row]) -> list[Spans]:
        """Say of every token of `encode`'s which characters it stands for.

        Returns:
            for each row [T, 2], where each token begins and ends in the row's prompt and completion
            put together. Tokens that stand for none of them begin and end at one place.
        """
        prompts, completions = (
            [found.offsets for found in self._tokenizer.encode_batch(texts, **_PLAIN)]
            for texts in self._texts(rows)
        )
        return [
            self._place(row, prompt, completion)
            for row, prompt, completion in zip(rows, prompts, completions, strict=True)
        ]

    def _texts(self, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
        prompt, completion = self.encoding.prompt_template, self.encoding.completion_template
        return (
            [prompt.replace(_PROMPT, row.prompt) if row.prompt else "" for row in rows],
            [completion.replace(_COMPLETION, row.completion) for row in rows],
        )

    def _join(self, prompt: list[int], completion: list[int]) -> Encoded:
        completion = completion + list(self.encoding.suffix_ids)
        kept_prompt, kept_completion = self._kept(len(prompt), len(completion))
        ids = [*self.encoding.prefix_ids, *prompt[kept_prompt]]
        return Encoded(
            input_ids=ids + completion[kept_completion],
            completion_start=len(ids),
            truncated=kept_prompt.start > 0 or kept_completion.stop < len(completion),
        )

    def _place(self, row: Row, prompt: list[Span], completion: list[Span]) -> Spans:
        encoding = self.encoding
        middle, end = len(row.prompt), len(row.prompt) + len(row.completion)
        before = len(encoding.prompt_template.partition(_PROMPT)[0])
        in_prompt = np.array(prompt, dtype=np.int64).reshape(-1, 2) - before
        before = len(encoding.completion_template.partition(_COMPLETION)[0])
        in_completion = np.array(completion, dtype=np.int64).reshape(-1, 2) - before + middle
        suffix = np.full((len(encoding.suffix_ids), 2), end)
        in_completion = np.concatenate([in_completion.clip(middle, end), suffix])
        kept_prompt, kept_completion = self._kept(len(in_prompt), len(in_completion))
        prefix = np.zeros((len(encoding.prefix_ids), 2), dtype=np.int64)
        return np.concatenate(
            [prefix, in_prompt.clip(0, middle)[kept_prompt], in_completion[kept_completion]]
        )

    def _kept(self, prompt: int, completion: int) -> tuple[slice, slice]:
        """Which of so many prompt and completion tokens fit: the last, and the first."""
        room = self.encoding.token_limit - len(self.encoding.prefix_ids)
        if prompt + completion <= room:
            return slice(0, prompt), slice(0, completion)
        of_prompt = min(prompt, max(room // 2, room - completion))
        return slice(prompt - of_prompt, prompt), slice(0, min(completion, room - of_prompt))
