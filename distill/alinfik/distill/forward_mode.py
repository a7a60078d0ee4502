"""LinFiK by forward mode: the derivative of a batch's losses along the target's gradient.

All samples share one direction, the target's gradient g. The directional derivative of all the
token losses of a batch along g is one Jacobian-vector product, which costs about two further
forward passes and stores no gradient:

    d/de  loss_t(theta + e g)  at e = 0   =   <grad loss_t, g>     for every token t

(Pan et al., NAACL 2025, arXiv 2503.01052, for the kernel; Pearlmutter 1994 for the product.) It
gives no norm of a sample's gradient, so no normalisation. Knows nothing of targets' names.
"""

import torch
from torch import Tensor
from torch.func import jvp, vmap
from transformers import PreTrainedModel

from alinfik.distill.batches import Batch
from alinfik.distill.losses import Parameters, reduce_tokens, token_losses
from alinfik.distill.settings import Reduction
from alinfik.distill.values import TokenSplit, Values


class ForwardMode:
    """Values batches against K targets; token values, split by loss, come for nothing.

    Args:
        model: a causal language model with attention that forward mode can differentiate (eager).
        gradients: the K targets' gradients; only the parameters that they name count.
        reduction: how token losses make a sample's loss.
    """

    split: TokenSplit = "loss"

    def __init__(
        self, model: PreTrainedModel, gradients: list[Parameters], reduction: Reduction
    ) -> None:
        self._model = model
        self._reduction: Reduction = reduction
        weights = {name: value.detach() for name, value in model.named_parameters()}
        self._parameters = {name: weights[name] for name in gradients[0]}
        # The tangents of bfloat16 parameters are bfloat16. What rounding takes from a gradient with
        # 10^8 entries does not show in its inner products.
        self._tangents = {
            name: torch.stack([gradient[name] for gradient in gradients]).to(value)
            for name, value in self._parameters.items()
        }

    @torch.no_grad()
    def value(self, batch: Batch) -> Values:
        """Return losses, labels and token values of a batch."""
        on_device = batch.to(self._model.device)

        def losses(parameters: Parameters) -> Tensor:
            return token_losses(self._model, parameters, on_device)

        def along(tangent: Parameters) -> tuple[Tensor, Tensor]:
            primal, derivative, *_ = jvp(losses, (self._parameters,), (tangent,))
            return primal, derivative

        # The primal does not depend on the tangent, so vmap computes it once for all targets.
        primal, values = vmap(along, out_dims=(None, 0))(self._tangents)  # pyright: ignore[reportArgumentType] out_dims may be None, but is not typed so
        mask = on_device.completion_mask
        return Values(
            losses=reduce_tokens(primal, mask, self._reduction).cpu(),
            labels=reduce_tokens(values, mask, self._reduction).cpu(),
            tokens=values.cpu(),
        )
