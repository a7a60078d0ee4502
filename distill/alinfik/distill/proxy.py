"""The proxy: a small network that reads tokens and estimates labels.

In: token ids and masks. Out: estimates on the *fitted scale*, on which heavy-tailed labels are
tame; `alinfik.distill.calibrate` brings them back to the label's unit. Knows nothing of training.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alinfik.distill.backbone import Backbone, Read
from alinfik.distill.products import Products

# Width of the pooled features' hidden layer, and of the scalars that describe a sample's length.
_HIDDEN = 256
_LENGTH_FEATURES = 2
# A root has no slope at zero, where a completion of one token is.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Pooled:
    """What B samples' states come to.

    Attributes:
        mean: of the completion's states, [B, D].
        probed: what the probe is linear in, [B, 3 D + 2]: means of completion and prompt, the
            deviation within the completion, and the lengths.
        lengths: [B, 2], logarithms of the completion's and the prompt's tokens, centred.
    """

    mean: Tensor
    probed: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Estimate:
    """What the network says of B samples of T tokens for K targets, on the fitted scale.

    Attributes:
        samples: [B, K].
        tokens: [B, T, K], of the tokens that have values, in their unit where products of
            gradients tell them; meaningless elsewhere.
        features: [B, F], what else describes a sample.
        lengths: [B, 2], logarithms of the completion's and the prompt's tokens, centred.
        labels: [B, K], in their unit, by products of gradients; None where there are none.
    """

    samples: Tensor
    tokens: Tensor
    features: Tensor
    lengths: Tensor
    labels: Tensor | None = None


class Proxy(nn.Module):
    """A backbone, a linear probe of its pooled states, and a small network that corrects it.

    Args:
        backbone: gives states; see `alinfik.distill.backbones`.
        targets: K.
    """

    def __init__(self, backbone: Backbone, targets: int) -> None:
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        self.token_head = nn.Linear(width, targets)
        self.probe = nn.Linear(3 * width + _LENGTH_FEATURES, targets)
        # Solved, not trained: see `alinfik.distill.probe`.
        self.probe.requires_grad_(requires_grad=False)
        nn.init.zeros_(self.probe.weight)
        nn.init.zeros_(self.probe.bias)
        # Set where it is trained: else it corrects nothing, at a price.
        self.correction: Correction | None = None
        # Where the backbone tells them.
        self.products: Products | None = None

    @property
    def tells_tokens(self) -> bool:
        """Whether it says token values in their unit: products do, of positions."""
        return self.products is not None and self.products.sums.split == "position"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Estimate:
        """Estimate labels and token values.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T].
            completion_mask: int64 [B, T], with at least one 1 a row.
        """
        read: Read = self.backbone(input_ids, attention_mask, completion_mask)
        pooled = self.pooled(read, attention_mask, completion_mask)
        samples = self.probe(pooled.probed)
        if self.correction is not None:
            samples = samples + self.correction(read.states, completion_mask, pooled.probed)
        rest = pooled.mean, pooled.lengths
        if self.products is None or read.products is None:
            return Estimate(samples, self.token_head(read.states), *rest)
        tokens, labels = self.products(read.products, attention_mask)
        if not self.tells_tokens:
            tokens = self.token_head(read.states)
        return Estimate(samples, tokens, *rest, labels)

    def pooled(self, read: Read, attention_mask: Tensor, completion_mask: Tensor) -> Pooled:
        """Pool states over completion and prompt."""
        states = read.states
        mask = completion_mask.to(states.dtype).unsqueeze(-1)
        before = attention_mask.to(states.dtype).unsqueeze(-1) - mask
        count, count_before = mask.sum(dim=1), before.sum(dim=1)
        mean = (states * mask).sum(dim=1) / count
        mean_before = (states * before).sum(dim=1) / count_before.clamp(min=1)
        away = (states - mean.unsqueeze(1)) * mask
        deviation = (away.square().sum(dim=1) / count + _LEAST_VARIANCE).sqrt()
        lengths = log_lengths(count, count_before)
        probed = torch.cat([mean, mean_before, deviation, lengths], dim=-1)
        return Pooled(mean=mean, probed=probed, lengths=lengths)


class Correction(nn.Module):
    """What a small network adds to a linear probe, nothing before it is trained.

    Args:
        width: D, of states.
        probed: P, of what the probe is linear in.
        targets: K.
    """

    def __init__(self, width: int, probed: int, targets: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, targets)
        self.hidden = nn.Linear(probed + width, _HIDDEN)
        self.last = nn.Linear(_HIDDEN, targets)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.dropout = nn.Dropout(0.1)

    def forward(self, states: Tensor, completion_mask: Tensor, probed: Tensor) -> Tensor:
        """Return [B, K], from trained attention to the completion's states [B, T, D]."""
        scores = self.attention(states).masked_fill(completion_mask.unsqueeze(-1) == 0, -torch.inf)
        learnt = torch.einsum("btk,btd->bkd", scores.softmax(dim=1), states).mean(dim=1)
        inputs = torch.cat([probed, learnt], dim=-1)
        hidden = nn.functional.gelu(self.hidden(self.dropout(inputs)))
        return self.last(self.dropout(hidden))


def log_lengths(completion: Tensor, prompt: Tensor) -> Tensor:
    """Return logarithms [B, 2] of the tokens [B, 1] of completion and prompt, centred."""
    return torch.cat([completion, prompt], dim=-1).log1p() - math.log(32)
