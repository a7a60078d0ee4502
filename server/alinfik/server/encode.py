"""Turns samples into token ids, exactly as ``Encoding`` in bundle.proto says.

Comes in: samples. Goes out: one row of ids each, cut to the token limit, and where in the sample
each token stands. Knows nothing of queues and models.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from alinfik.server.bundle import Bundle, BundleError
from alinfik.v1 import Sample

# One call tokenises a whole request on all cores. Said aloud, since the library's own default is to
# fall back to one core, with a warning, in a process that has forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# Of text that is tokenised at a time. Until it is cut, a byte may take some 400 in memory.
_PIECE_BYTES = 1024 * 1024


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


Field = Literal["prompt", "completion", "added"]


class Place(NamedTuple):
    """The characters [start, end) of a sample's field that a token stands for."""

    field: Field
    """``added`` where it stands for none: a start or end token, or one of the template's."""
    start: int
    end: int


_ADDED = Place("added", 0, 0)


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
        """Encode a batch; thread-safe, and the GIL is released while texts are tokenised.

        Rows are cut as soon as a MiB of text is tokenised, so that tokens past the limit are not
        held for all of a large batch.
        """
        return [row for some in _pieces(samples) for row in self._encode(some)]

    def _encode(self, samples: Sequence[Sample]) -> list[Encoded]:
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

    def places(self, sample: Sample) -> list[Place]:
        """Which characters each token of ``encode``'s stands for."""
        prompt_text = self._prompt_template.replace("{prompt}", sample.prompt)
        completion_text = self._completion_template.replace("{completion}", sample.completion)
        prompt, completion = self._tokenizer.encode_batch(
            [prompt_text if sample.prompt else "", completion_text], add_special_tokens=False
        )
        before = self._prompt_template.index("{prompt}")
        in_prompt = [_place("prompt", span, before, sample.prompt) for span in prompt.offsets]
        before = self._completion_template.index("{completion}")
        in_completion = [
            _place("completion", span, before, sample.completion) for span in completion.offsets
        ]
        in_completion += [_ADDED] * len(self._suffix)
        kept_prompt, kept_completion = self._kept(len(in_prompt), len(in_completion))
        return [
            *[_ADDED] * len(self._prefix),
            *in_prompt[kept_prompt],
            *in_completion[kept_completion],
        ]

    def _join(self, prompt: list[int], completion: list[int]) -> Encoded:
        completion = completion + self._suffix
        kept_prompt, kept_completion = self._kept(len(prompt), len(completion))
        start = [*self._prefix, *prompt[kept_prompt]]
        ids = np.array(start + completion[kept_completion], dtype=np.int64)
        truncated = kept_prompt.start > 0 or kept_completion.stop < len(completion)
        return Encoded(ids, len(start), truncated)

    def _kept(self, prompt: int, completion: int) -> tuple[slice, slice]:
        """Which of so many prompt and completion tokens fit: the last, and the first."""
        room = self._room
        if prompt + completion <= room:
            return slice(0, prompt), slice(0, completion)
        of_prompt = min(prompt, max(room // 2, room - completion))
        return slice(prompt - of_prompt, prompt), slice(0, min(completion, room - of_prompt))


def _pieces(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """The samples in their order, some at a time: one, or so many as are no more than a MiB."""
    begin = size = 0
    for place, sample in enumerate(samples):
        size += sample.ByteSize()
        if size > _PIECE_BYTES and place > begin:
            yield samples[begin:place]
            begin, size = place, sample.ByteSize()
    yield samples[begin:]


def _place(field: Field, span: tuple[int, int], before: int, text: str) -> Place:
    """A token's place in the field, from that in the template, where ``before`` stand before it."""
    start, end = (min(max(at - before, 0), len(text)) for at in span)
    # It stands in the template alone.
    return Place(field, start, end) if start < end else _ADDED
