"""Which of a model's parameters count: all, the last layers, or those that a pattern finds."""

import re
from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from alinfik.distill.llm import ModelError

# Of unused parameters; of a model that sees there are hundreds.
_NAMED = 3


def select_parameters(
    model: PreTrainedModel, selection: str, among: Collection[str] | None = None
) -> list[str]:
    """Return the names of the selected parameters, in the model's order.

    Args:
        model: any model with a list of layers.
        selection: `all`; `last:N`, the parameters of the last N layers; or a regular expression, of
            which some part of a parameter's name must match.
        among: the names to choose from, such as an adapter's; the model's by default.

    Raises:
        ModelError: nothing is selected, or the selection is malformed.
    """
    names = [name for name, _ in model.named_parameters() if among is None or name in among]
    if selection == "all":
        return names
    if selection.startswith("last:"):
        inside = _in_last_layers(model, selection)
        chosen = [name for name in names if name in inside]
    else:
        try:
            pattern = re.compile(selection)
        except re.error as error:
            raise ModelError(
                f"--parameters {selection!r} is no regular expression: {error}"
            ) from error
        chosen = [name for name in names if pattern.search(name)]
    if not chosen:
        raise ModelError(
            f"--parameters {selection!r} selects none of the {len(names)} parameters, such "
            f"as {names[len(names) // 2]}"
        )
    return chosen


def unused(names: Collection[str]) -> ModelError:
    """Return what is wrong with selected parameters that no gradient came to."""
    named = ", ".join(sorted(names)[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ModelError(
        f"the parameters {named}{more} had no part in the loss, or belong to a layer that is read "
        "and not called; narrow --parameters to leave them out"
    )


def find_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """Return the model's own list of ``count`` layers, whatever the architecture calls it.

    Raises:
        ModelError: there is no such list.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"cannot find the {count} layers of a {type(model).__name__}")


def _in_last_layers(model: PreTrainedModel, selection: str) -> set[str]:
    count = selection.removeprefix("last:")
    layers = find_layers(model, model.config.get_text_config().num_hidden_layers)
    if not count.isdigit() or not 1 <= int(count) <= len(layers):
        raise ModelError(
            f"--parameters {selection}: give a number of layers from 1 to {len(layers)}"
        )
    chosen = {id(value) for layer in layers[-int(count) :] for value in layer.parameters()}
    return {name for name, value in model.named_parameters() if id(value) in chosen}
