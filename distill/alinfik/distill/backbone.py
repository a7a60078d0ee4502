"""What every backbone is: a pretrained transformer that gives states.

In: a model. Out: its states after each third of its layers. Knows nothing of families.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# A state of zeros has no direction.
_LEAST_SQUARE = 1e-6

# Of weights that were trained already: a tenth of what fresh ones are trained at.
_RATE = 1e-4


@dataclass(frozen=True)
class Read:
    """What a backbone makes of B samples of T tokens.

    Attributes:
        states: [B, T, D].
        products: [B, T, K, P], each position's share of the products of P parameters' gradients
            with K targets'; they add up to labels' shares. None where nothing tells.
    """

    states: Tensor
    products: Tensor | None = None


class Backbone(nn.Module):
    """A pretrained transformer: its states after each third of its layers, and what it adds.

    What a gradient says of a text is not all in one depth: shallow states tell kinds of text apart,
    deeper ones what the model makes of them. Gives a `Read` for ids, attention mask and completion
    mask, int64 [B, T] each.

    Args:
        model: gives hidden states.

    Attributes:
        width: D.
        product_width: P; 0 where nothing tells of products.
        learning_rate: what its weights are trained at, if they are.
    """

    learning_rate = _RATE

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = _without_embedding_gradients(model)
        layers: int = model.config.num_hidden_layers
        self._depths = sorted({-(-layers // 3), -(-2 * layers // 3), layers})
        self.width = len(self._depths) * model.config.hidden_size
        self.product_width = 0

    def read(self, **inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return each depth's states [B, T, H], of mean square 1; and the last as they are."""
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        return [_normalised(states[depth]) for depth in self._depths], states[-1]


def _without_embedding_gradients(model: PreTrainedModel) -> PreTrainedModel:
    """A few thousand samples touch few of the tokens: the others' vectors stay where they fit."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(requires_grad=False)
    return model


def _normalised(states: Tensor) -> Tensor:
    return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + _LEAST_SQUARE)
