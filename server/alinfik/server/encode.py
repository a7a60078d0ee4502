"""Turns samples into token ids, exactly as ``Encoding`` in bundle.proto says.

Comes in: samples. Goes out: one row of ids each, cut to the token limit. Knows nothing of queues
and models.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from alinfik.server.bundle import Bundle, BundleError
from alinfik.v1 import Sample

# One call tokenises a whole request on all cores. Said aloud, since the library's own default is to
# fall back to one core, with a warning, in a process that has forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample as the model reads it: ``input_ids`` [T] int64, not padded."""

    input_ids: NDArray[np.int64]
    completion_start: int
    """Where the completion's tokens begin; they go to the end."""
    truncated: bool

    def __len__(self) -> int:
        """Its tokens."""
        return len(self.input_ids)


class Encoder:
    """The tokenizer of a bundle and its rule for cutting.

    Raises:
        BundleError: the bundle's tokenizer does not parse.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(bundle.tokenizer))
        except Exception as error:
            # The library raises Exception itself.
            raise BundleError(f"{bundle.tokenizer} is no tokenizer: {error}") from error
        # The rule cuts and fills; what the file says of either is meant for other readers.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.last_id = self._tokenizer.get_vocab_size(with_added_tokens=True) - 1
        encoding = bundle.manifest.encoding
        self._prompt_template = encoding.prompt_template
        self._completion_template = encoding.completion_template
        self._prefix = list(encoding.prefix_ids)
        self._suffix = list(encoding.suffix_ids)
        self._room = encoding.token_limit - len(self._prefix)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Encode a batch; thread-safe, and the GIL is released while texts are tokenised."""
        # Plain replacement: braces in a text are text, which str.format would read as fields.
        texts = [self._completion_template.replace("{completion}", s.completion) for s in samples]
        texts += [self._prompt_template.replace("{prompt}", s.prompt) for s in samples if s.prompt]
        tokens = [
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
        prompts = iter(tokens[len(samples) :])
        return [
            self._join(next(prompts) if sample.prompt else [], completion)
            for sample, completion in zip(samples, tokens, strict=False)
        ]

    def _join(self, prompt: list[int], completion: list[int]) -> Encoded:
        completion = completion + self._suffix
        room = self._room
        truncated = len(prompt) + len(completion) > room
        if truncated:
            keep = max(room // 2, room - len(completion))
            prompt = prompt[max(0, len(prompt) - keep) :]
            completion = completion[: room - len(prompt)]
        ids = np.array([*self._prefix, *prompt, *completion], dtype=np.int64)
        return Encoded(ids, len(ids) - len(completion), truncated)
