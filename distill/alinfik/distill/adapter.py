"""Puts a PEFT adapter (LoRA and its kin) on a language model.

In: the model and where the adapter is. Out: the names of the adapter's parameters, which are all
that training would change. Knows nothing of what they are for.
"""

from transformers import PreTrainedModel

from alinfik.command import CommandError


class AdapterError(CommandError):
    """An adapter that cannot be found, or is none of this model's."""


def load_adapter(model: PreTrainedModel, source: str) -> list[str]:
    """Load an adapter into ``model`` and return its parameters' names, in the model's order.

    Args:
        model: the language model that the adapter was made for.
        source: a Hugging Face id, or a directory with `adapter_config.json` and the weights.

    Raises:
        AdapterError: there is none, it does not fit the model, or `peft` is not installed.
    """
    try:
        # As for training, since that marks whose gradients count.
        found = model.load_adapter(source, is_trainable=True)
    except ImportError as error:
        raise AdapterError(
            "--adapter needs the package peft: pip install 'alinfik[peft]'"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"cannot load the adapter {source}: {error}. Give a Hugging Face id or a directory "
            "with adapter_config.json and weights, made for this model"
        ) from error
    if found.missing_keys or found.unexpected_keys:
        strange = sorted([*found.missing_keys, *found.unexpected_keys])
        raise AdapterError(
            f"the adapter {source} does not fit the model: {len(strange)} of its tensors have no "
            f"counterpart, such as {strange[0]}"
        )
    return [name for name, value in model.named_parameters() if value.requires_grad]
