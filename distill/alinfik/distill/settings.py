"""How every sub-command of `alinfik-distill` reads its settings, and the words that it takes."""

from typing import Literal

from pydantic_settings import SettingsConfigDict

SETTINGS = SettingsConfigDict(
    env_prefix="ALINFIK_",
    cli_prog_name="alinfik-distill",
    cli_kebab_case=True,
    cli_avoid_json=True,
    cli_hide_none_type=True,
    protected_namespaces=(),
)

# Which way derivatives are propagated: one interface, two engines.
Mode = Literal["reverse", "forward"]

# How the losses of a sample's completion tokens make the sample's loss.
Reduction = Literal["mean", "sum"]

# What the inner product of a sample's gradient with a target's is divided by: nothing; the product
# of the two gradients' norms (their cosine); or, tensor by tensor, the norms of the two tensors.
Normalisation = Literal["none", "global", "tensor"]

# What must not be divided beside groups and near-duplicates: nothing, or a provider's rows.
SplitBy = Literal["group", "provider"]

# What a proxy may cost: see `Train`.
Size = Literal["small", "medium", "large"]
