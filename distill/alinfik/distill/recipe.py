"""How labels are made, in words that any process on any machine understands.

In: settings. Out: the language model, ready, and an engine over it. Knows nothing of data.
"""

import socket
from dataclasses import dataclass

import torch

from alinfik.distill.forward_mode import ForwardMode
from alinfik.distill.llm import LLM, ModelError, load_llm
from alinfik.distill.losses import Parameters
from alinfik.distill.reverse_mode import ReverseMode
from alinfik.distill.selection import select_parameters
from alinfik.distill.settings import Mode, Normalisation, Reduction
from alinfik.distill.values import ValueEngine

# Long enough for most instruction data, short enough for a small GPU.
_TOKEN_LIMIT = 512


@dataclass(frozen=True)
class Recipe:
    """What decides the labels, but for the data.

    Attributes:
        model: Hugging Face id, directory or `.gguf` file.
        adapter: PEFT adapter on top of it; its parameters alone count then.
        template: see `alinfik.distill.text_template`.
        token_limit: tokens a sample; None for 512 or the model's positions, whichever is less.
        dtype: of weights and gradients; see `alinfik.distill.llm.choose_dtype`.
        mode: the engine.
        normalisation: what inner products are divided by.
        reduction: how token losses make a sample's loss.
        parameters: whose gradients count; see `alinfik.distill.selection`.
        token_values: whether each token's share is kept.
        batch_tokens: tokens a batch, padding included.
    """

    model: str
    adapter: str | None
    template: str
    token_limit: int | None
    dtype: str
    mode: Mode
    normalisation: Normalisation
    reduction: Reduction
    parameters: str
    token_values: bool
    batch_tokens: int

    def load_llm(self, device: torch.device | None = None, sha256: str | None = None) -> LLM:
        """Load the language model.

        Args:
            device: where to; CUDA if there is any by default.
            sha256: the hash that its weights must have, if labels have been begun elsewhere.

        Raises:
            CommandError: it cannot be loaded, is another, or has fewer positions than
                `token_limit`.
        """
        llm = load_llm(
            self.model,
            adapter=self.adapter,
            template=self.template,
            dtype=self.dtype,
            device=device,
            attention="eager" if self.mode == "forward" else "sdpa",
        )
        positions = llm.encoding.token_limit
        if self.token_limit is not None and self.token_limit > positions:
            raise ModelError(
                f"--token-limit {self.token_limit} is more than the {positions} positions that the "
                f"model {llm.identity.name} has"
            )
        if sha256 not in (None, llm.identity.sha256):
            raise ModelError(
                f"the model {self.model} on {socket.gethostname()} has other weights than the one "
                "that the run began with; give every machine the same"
            )
        llm.encoding.token_limit = self.token_limit or min(_TOKEN_LIMIT, positions)
        return llm

    def selected(self, llm: LLM) -> list[str]:
        """Return the names of the parameters that count.

        Raises:
            ModelError: there are none.
        """
        return select_parameters(llm.model, self.parameters, llm.trainable)

    def engine(self, llm: LLM, gradients: list[Parameters]) -> ValueEngine:
        """Make the engine that values batches against targets, by their gradients."""
        if self.mode == "forward":
            return ForwardMode(llm.model, gradients, self.reduction)
        return ReverseMode(
            llm.model,
            gradients,
            normalisation=self.normalisation,
            reduction=self.reduction,
            token_values=self.token_values,
        )
