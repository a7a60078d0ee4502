"""The proxy: a small network that reads tokens and estimates labels.

In: token ids and masks. Out: estimates on the *fitted scale*, on which heavy-tailed labels are
tame; `alinfik.distill.calibrate` brings them back to the label's unit. Knows nothing of training.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel

from alinfik.distill.llm import ModelError
from alinfik.distill.selection import find_layers

# Width of the pooled features' hidden layer, and of the scalars that describe a sample's length.
_HIDDEN = 256
_LENGTH_FEATURES = 2


@dataclass(frozen=True)
class Estimate:
    """What the network says of B samples of T tokens for K targets, on the fitted scale.

    Attributes:
        samples: [B, K].
        tokens: [B, T, K], of the completion's tokens; meaningless elsewhere.
        features: [B, F], pooled; what the out-of-distribution score looks at.
        lengths: [B, 2], logarithms of the completion's and the prompt's tokens, centred.
    """

    samples: Tensor
    tokens: Tensor
    features: Tensor
    lengths: Tensor


class Proxy(nn.Module):
    """A backbone, attention pooling over the completion, and one head a target.

    Args:
        backbone: gives hidden states [B, T, D] from token ids and attention mask.
        width: D.
        targets: K.
    """

    def __init__(self, backbone: nn.Module, width: int, targets: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.LayerNorm(width)
        self.attention = nn.Linear(width, targets)
        self.token_head = nn.Linear(width, targets)
        self.hidden = nn.Linear(2 * width + _LENGTH_FEATURES, _HIDDEN)
        self.sample_head = nn.Linear(_HIDDEN, targets)
        self.dropout = nn.Dropout(0.1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Estimate:
        """Estimate labels and token values.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T].
            completion_mask: int64 [B, T], with at least one 1 a row.
        """
        states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        states = self.norm(states)
        mask = completion_mask.to(states.dtype).unsqueeze(-1)
        count = mask.sum(dim=1)
        mean = (states * mask).sum(dim=1) / count
        scores = self.attention(states).masked_fill(mask == 0, float("-inf"))
        weights = scores.softmax(dim=1)
        attended = torch.einsum("btk,btd->bkd", weights, states).mean(dim=1)
        prompt = attention_mask.sum(dim=1, keepdim=True).to(states.dtype) - count
        lengths = torch.cat([count, prompt], dim=-1).log1p() - math.log(32)
        features = torch.cat([mean, attended], dim=-1)
        hidden = nn.functional.gelu(
            self.hidden(self.dropout(torch.cat([features, lengths], dim=-1)))
        )
        return Estimate(
            samples=self.sample_head(self.dropout(hidden)),
            tokens=self.token_head(states),
            features=mean,
            lengths=lengths,
        )


def build_proxy(backbone: str, llm: str, targets: int) -> Proxy:
    """Make an untrained proxy on a trained backbone.

    Args:
        backbone: `layers:N`, the first N layers of the language model.
        llm: what to load the layers from, as `transformers` names it.
        targets: how many targets it will have.

    Raises:
        ModelError: the backbone is unknown, or the model has fewer layers.
    """
    family, _, count = backbone.partition(":")
    if family != "layers" or not count.isdigit() or int(count) < 1:
        raise ModelError(f"unknown backbone {backbone!r}; write layers:N, as in layers:6")
    model = AutoModel.from_pretrained(llm, dtype=torch.float32)
    layers = find_layers(model, model.config.num_hidden_layers)
    if int(count) > len(layers):
        raise ModelError(f"{backbone}: the model has only {len(layers)} layers")
    del layers[int(count) :]
    return Proxy(model, model.config.hidden_size, targets)
