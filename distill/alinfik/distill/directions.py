"""Targets' gradients, made small enough to go where a proxy goes.

The gradient of a matrix is a sum of outer products over all tokens of a target, and few directions
hold most of it: eight hold 93 to 95 % of its square for targets of 96 samples of SmolLM2-135M, and
inner products with them rank samples as those with the whole do. In: targets' gradients. Out:
their factors, which `label` keeps beside the labels and `gradients:N` reads. Knows nothing of
models.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alinfik.command import CommandError
from alinfik.distill.disk import new_file
from alinfik.distill.losses import Parameters
from alinfik.distill.settings import Normalisation, Reduction

_RANK = 8
# Randomised factors are found among so many more, and refined so often.
_SPARE = 8
_REFINED = 2

# What a file says beside the factors.
_TARGETS = "targets"


class DirectionsError(CommandError):
    """Directions that cannot be read."""


@dataclass(frozen=True)
class Direction:
    """One parameter's share of K targets' gradients: left @ right.mT of a matrix [out, in].

    Attributes:
        left: [K, out, R]; of a vector itself, [K, out, 1].
        right: [K, in, R]; of a vector a one, [K, 1, 1].
    """

    left: Tensor
    right: Tensor

    @property
    def is_vector(self) -> bool:
        """Whether the parameter is one."""
        return self.right.shape[1] == 1


Directions = Mapping[str, Direction]


@dataclass(frozen=True)
class Kernel:
    """What labels are made with.

    Attributes:
        directions: of the targets; none where labels were made without keeping them.
        normalisation: what inner products are divided by.
        reduction: how token losses make a sample's loss.
    """

    directions: Directions
    normalisation: Normalisation
    reduction: Reduction


@torch.no_grad()
def factorised(
    gradients: Sequence[Parameters], normalisation: Normalisation, left_out: Collection[str] = ()
) -> dict[str, Direction]:
    """Factorise K targets' gradients, divided as in labels by their norms or their tensors' norms.

    Args:
        gradients: each by parameter; vectors, matrices, and others, which are left out.
        normalisation: of the labels.
        left_out: names of more parameters to leave out, such as a table of tokens.
    """
    found: dict[str, Direction] = {}
    squares = torch.zeros(len(gradients))
    for name, first in gradients[0].items():
        stacked = torch.stack([gradient[name].float() for gradient in gradients])
        of_tensor = stacked.flatten(1).square().sum(dim=1)
        squares += of_tensor.cpu()
        if name in left_out or first.dim() not in (1, 2):
            continue
        if normalisation == "tensor":
            stacked *= _reciprocal_roots(of_tensor).reshape(-1, *[1] * first.dim())
        found[name] = _factorised(stacked)
    if normalisation == "global":
        scale = _reciprocal_roots(squares).reshape(-1, 1, 1)
        found = {
            name: Direction(one.left * scale.to(one.left), one.right) for name, one in found.items()
        }
    return found


def _reciprocal_roots(squares: Tensor) -> Tensor:
    return squares.rsqrt().nan_to_num(posinf=0.0)


def _factorised(gradients: Tensor) -> Direction:
    if gradients.dim() == 2:
        one = torch.ones(len(gradients), 1, 1, device=gradients.device)
        return Direction(gradients.unsqueeze(-1), one)
    least = min(gradients.shape[1:])
    rank = min(_RANK, least)
    # The same factors whenever they are found.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(gradients, min(rank + _SPARE, least), niter=_REFINED)
    return Direction((left * sizes.unsqueeze(1))[..., :rank], right[..., :rank])


def save_directions(directions: Directions, targets: Sequence[str], path: Path) -> None:
    """Write directions of ``targets``, in this order; the file is there whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, direction in directions.items():
        tensors[f"{name}/left"] = direction.left.contiguous().cpu()
        tensors[f"{name}/right"] = direction.right.contiguous().cpu()
    with new_file(path) as scratch:
        save_file(tensors, scratch, {_TARGETS: json.dumps(list(targets))})


def load_directions(targets: Sequence[str], path: Path) -> dict[str, Direction]:
    """Read directions of ``targets``, in this order; none where there is no such file.

    Raises:
        DirectionsError: the file cannot be read, or is of other targets.
    """
    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as file:
            theirs: list[str] = json.loads(file.metadata()[_TARGETS])
            order = [theirs.index(target) for target in targets]
            keys: list[str] = file.keys()
            tensors: dict[str, Tensor] = {key: file.get_tensor(key)[order] for key in keys}
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DirectionsError(
            f"{path} cannot be read ({error}); delete it, and run `alinfik-distill label` with the "
            "same settings again to make it anew"
        ) from error
    names = [key.removesuffix("/left") for key in tensors if key.endswith("/left")]
    return {name: Direction(tensors[f"{name}/left"], tensors[f"{name}/right"]) for name in names}
