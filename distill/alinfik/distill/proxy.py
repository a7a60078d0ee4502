"""The proxy: a small network that reads tokens and estimates labels.

In: token ids and masks. Out: estimates on the *fitted scale*, on which heavy-tailed labels are
tame; `alinfik.distill.calibrate` brings them back to the label's unit. Knows nothing of training.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alinfik.distill.backbones import Backbone

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
        backbone: gives states; see `alinfik.distill.backbones`.
        targets: K.
    """

    def __init__(self, backbone: Backbone, targets: int) -> None:
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        self.norm = nn.LayerNorm(width)
        self.attention = nn.Linear(width, targets)
        self.token_head = nn.Linear(width, targets)
        self.hidden = nn.Linear(3 * width + _LENGTH_FEATURES, _HIDDEN)
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
        states = self.norm(self.backbone(input_ids, attention_mask, completion_mask))
        mask = completion_mask.to(states.dtype).unsqueeze(-1)
        before = attention_mask.to(states.dtype).unsqueeze(-1) - mask
        count, count_before = mask.sum(dim=1), before.sum(dim=1)
        mean = (states * mask).sum(dim=1) / count
        mean_before = (states * before).sum(dim=1) / count_before.clamp(min=1)
        scores = self.attention(states).masked_fill(mask == 0, float("-inf"))
        attended = torch.einsum("btk,btd->bkd", scores.softmax(dim=1), states).mean(dim=1)
        lengths = torch.cat([count, count_before], dim=-1).log1p() - math.log(32)
        pooled = torch.cat([mean, attended, mean_before, lengths], dim=-1)
        hidden = nn.functional.gelu(self.hidden(self.dropout(pooled)))
        return Estimate(
            samples=self.sample_head(self.dropout(hidden)),
            tokens=self.token_head(states),
            features=mean,
            lengths=lengths,
        )
