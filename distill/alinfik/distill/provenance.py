"""What labels say of themselves: the manifest that bundles inherit, and the run's fingerprint.

In: the recipe, the model and the data's hashes. Knows nothing of gradients.
"""

from alinfik.distill.llm import LLM
from alinfik.distill.recipe import Recipe
from alinfik.distill.samples import Row, rows_sha256
from alinfik.v1 import (
    LOSS_REDUCTION_MEAN,
    LOSS_REDUCTION_SUM,
    NORMALISATION_GLOBAL,
    NORMALISATION_NONE,
    NORMALISATION_TENSOR,
    TOKEN_SPLIT_LOSS,
    TOKEN_SPLIT_POSITION,
    TOKEN_SPLIT_UNSPECIFIED,
    BundleManifest,
    LabelSettings,
    Target,
)

# Of the plain kernel: a loss in nats falls by this much per unit of learning rate. Divided by
# norms, the kernel has no unit.
_PLAIN_UNIT = "nats per unit learning rate"
_NO_UNIT = "1"

_REDUCTIONS = {"mean": LOSS_REDUCTION_MEAN, "sum": LOSS_REDUCTION_SUM}
_NORMALISATIONS = {
    "none": NORMALISATION_NONE,
    "global": NORMALISATION_GLOBAL,
    "tensor": NORMALISATION_TENSOR,
}
_TOKEN_SPLITS = {"forward": TOKEN_SPLIT_LOSS, "reverse": TOKEN_SPLIT_POSITION}


def manifest_of(recipe: Recipe, llm: LLM, targets: dict[str, list[Row]]) -> BundleManifest:
    """Return the bundle manifest as far as labelling settles it."""
    split = _TOKEN_SPLITS[recipe.mode] if recipe.token_values else TOKEN_SPLIT_UNSPECIFIED
    return BundleManifest(
        encoding=llm.encoding,
        language_model=llm.identity,
        labels=LabelSettings(
            loss_reduction=_REDUCTIONS[recipe.reduction],
            normalisation=_NORMALISATIONS[recipe.normalisation],
            dtype=str(llm.model.dtype).removeprefix("torch."),
            unit=_PLAIN_UNIT if recipe.normalisation == "none" else _NO_UNIT,
            parameters=recipe.parameters,
            token_split=split,
        ),
        targets=[
            Target(name=name, sha256=rows_sha256(rows), sample_count=len(rows))
            for name, rows in targets.items()
        ],
    )


def fingerprint_of(
    recipe: Recipe, manifest: BundleManifest, pool_sha256: str, shard_samples: int
) -> dict[str, object]:
    """Everything that decides the labels, by the name that a user knows it by."""
    encoding = manifest.encoding
    return {
        "model": manifest.language_model.sha256,
        "target": {target.name: target.sha256 for target in manifest.targets},
        "pool": pool_sha256,
        "normalisation": recipe.normalisation,
        "loss_reduction": recipe.reduction,
        "parameters": recipe.parameters,
        "token_values": recipe.token_values and recipe.mode,
        "template": encoding.prompt_template + encoding.completion_template,
        "dtype": manifest.labels.dtype,
        "token_limit": encoding.token_limit,
        "shard_samples": shard_samples,
    }
