"""Turns a sample into token ids and says which of them are the completion's.

The rule is the one written at `alinfik.v1.Encoding`; the server has its own implementation, and a
test holds the two together. Knows nothing of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from alinfik.distill.samples import Row
from alinfik.v1 import Encoding


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
        self._tokenizer = tokenizer
        self.encoding = encoding

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encode rows, in their order."""
        encoding = self.encoding
        prompts = self._token_ids(
            [
                encoding.prompt_template.replace("{prompt}", row.prompt) if row.prompt else ""
                for row in rows
            ]
        )
        completions = self._token_ids(
            [encoding.completion_template.replace("{completion}", row.completion) for row in rows]
        )
        return [
            self._join(prompt, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _join(self, prompt: list[int], completion: list[int]) -> Encoded:
        prefix = list(self.encoding.prefix_ids)
        completion = completion + list(self.encoding.suffix_ids)
        room = self.encoding.token_limit - len(prefix)
        truncated = len(prompt) + len(completion) > room
        if truncated:
            kept = max(room // 2, room - len(completion))
            prompt = prompt[-kept:] if kept < len(prompt) else prompt
            completion = completion[: room - len(prompt)]
        return Encoded(
            input_ids=prefix + prompt + completion,
            completion_start=len(prefix) + len(prompt),
            truncated=truncated,
        )
