"""The sub-commands of `alinfik-distill`: what each is told, and which function does it.

Torch and transformers take ten seconds to load, so they are loaded once a command runs: help and
errors of usage come at once.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_settings import BaseSettings, CliApp, CliSubCommand

from alinfik.distill.disk import cache_directory
from alinfik.distill.rows import check_fields
from alinfik.distill.settings import SETTINGS, Mode, Normalisation, Reduction, Size, SplitBy


def _check_target_names(targets: dict[str, str]) -> dict[str, str]:
    if not targets:
        raise ValueError("name at least one target, as in --target gsm8k=target.jsonl")
    for name in targets:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
            raise ValueError(
                f"the target name {name!r} should be lower-case letters, digits, '_' and '-', and "
                "start with a letter"
            )
    return targets


# OURS=THEIRS, once a column.
Fields = Annotated[dict[str, str], AfterValidator(check_fields)]


class Label(BaseSettings):
    """Value every sample of a pool against one or more targets, exactly, by the LLM's gradients.

    Interrupted, it goes on where it stopped when it is started again with the same settings.
    """

    model_config = SETTINGS

    model: str = Field(description="the LLM: a Hugging Face id, a directory, or a .gguf file")
    adapter: str | None = Field(
        default=None,
        description="PEFT adapter on top of the LLM, such as LoRA: a Hugging Face id or a "
        "directory; its parameters alone count then, as in training it",
    )
    template: str = Field(
        default="plain",
        description="how prompt and completion are laid out: `plain`, a line each; `chat`, the "
        "LLM's own chat template; or a text such as 'Q: {prompt} A: {completion}'",
    )
    target: Annotated[dict[str, str], AfterValidator(_check_target_names)] = Field(
        description="NAME=FILE, once a target: samples of what the LLM should get better at"
    )
    pool: list[str] = Field(
        min_length=1,
        description="samples to value: .jsonl and .csv, also .gz, .parquet, or hf:DATASET[:SPLIT]",
    )
    fields: Fields = Field(
        default={},
        description="OURS=THEIRS: where columns have other names than id, provider, prompt, "
        "completion and group, as in id=uid,completion=answer",
    )
    target_fields: Fields | None = Field(
        default=None,
        description="the same for targets, where their columns are not named as the pool's are; "
        "id=id says that they are named as ours",
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="`skip` leaves rows out that are no samples, and counts them by reason",
    )
    out: Path = Field(description="labels directory to write, or to go on with")
    normalisation: Normalisation = Field(
        default="tensor",
        description="what the inner product is divided by: `tensor`, each tensor's two norms; "
        "`global`, the gradients' norms, which gives their cosine; `none`, nothing: the plain "
        "kernel, in nats per unit learning rate",
    )
    loss_reduction: Reduction = Field(
        default="mean",
        description="how a sample's loss is made of its tokens' losses; `sum` where long samples "
        "should count for more",
    )
    parameters: str = Field(
        default="all",
        description="whose gradients count: `all`, `last:N` for the last N layers, or a regular "
        "expression over parameter names; fewer are quicker and rank less well",
    )
    mode: Mode = Field(
        default="reverse",
        description="`reverse` serves many targets in one pass and every normalisation, and splits "
        "labels by position; `forward` gives the plain kernel alone, and splits by loss token",
    )
    token_values: bool = Field(
        default=True,
        description="keep each token's share of the label, which distillation learns from; in "
        "reverse they cost up to a forward pass a target",
    )
    token_limit: int | None = Field(
        default=None,
        ge=8,
        description="tokens a sample, prompt included; longer samples are cut. By default 512, or "
        "as many as the LLM has positions",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description="of weights and gradients; `auto` is what the device is quick in",
    )
    cache: Path = Field(
        default_factory=lambda: cache_directory() / "gradients",
        description="directory for targets' gradients, by default alinfik/gradients of the user's "
        "cache; each takes 4 bytes a parameter, and its halves as much each for the ceiling; may "
        "be deleted",
    )
    batch_tokens: int = Field(
        default=1024,
        ge=1,
        description="tokens a batch, padding included; raise it on a GPU with memory to spare",
    )
    shard_samples: int = Field(
        default=256,
        ge=1,
        description="samples a Parquet shard: what an interruption can cost each worker",
    )

    ceiling_samples: int = Field(
        default=100,
        ge=0,
        description="samples of the pool to label by halves of each target, to see how well labels "
        "can be trusted and whether the target is large enough; 0 leaves it out",
    )

    engine: Literal["local", "ray"] = Field(
        default="local",
        description="`ray` labels on every machine of the cluster that RAY_ADDRESS names",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="copies of the LLM that label side by side; by default one a GPU, else one a "
        "machine",
    )

    @model_validator(mode="after")
    def _forward_mode_gives_no_norms(self) -> Self:
        if self.mode == "forward" and self.normalisation != "none":
            raise ValueError(
                f"--mode forward gives no gradient norms, which --normalisation "
                f"{self.normalisation} divides by; use --mode reverse or --normalisation none"
            )
        return self

    def cli_cmd(self) -> None:
        """Run the command."""
        from alinfik.distill.label import label

        label(self)


class Train(BaseSettings):
    """Distil a proxy from labels, export it, and write the bundle that the server loads."""

    model_config = SETTINGS

    labels: Path = Field(description="labels directory")
    out: Path = Field(description="bundle directory to write; must not exist")
    size: Size = Field(
        default="large",
        description="how large a proxy: `small` is --backbone bag, to value tens of thousands of "
        "samples a second; `medium` is encoder, quicker on a CPU than `large`, which is "
        "gradients:N with all layers of the LLM, agrees best with the labels, takes as long as "
        "they do and is meant for a GPU or a patient CPU (layers:N for labels by an adapter)",
    )
    backbone: (
        Annotated[
            str, StringConstraints(pattern=r"^(bag|encoder(:.+)?|(layers|gradients):[1-9]\d*)$")
        ]
        | None
    ) = Field(
        default=None,
        description="what the proxy is made of, if not what --size says: `bag`, weights of "
        "tokens and their pairs; `encoder` or encoder:MODEL, a bidirectional encoder, MiniLM by "
        "default; layers:N, the LLM's first N layers; gradients:N, all of them, and backward "
        "through the last N",
    )
    model: str | None = Field(
        default=None, description="where the LLM is now, if not where it was labelled with"
    )
    split_by: SplitBy = Field(
        default="group",
        description="what is trained on or held out as a whole: a `group` with its "
        "near-duplicates; or a `provider`, to see how the proxy does on one it does not know",
    )
    epochs: int = Field(
        default=0,
        ge=0,
        description="passes over the training samples, at most, to train an encoder or layers:N "
        "itself; none by default, since regressions on their states fit a few thousand labels as "
        "well. Train where there are tens of thousands and a GPU",
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="with --epochs: how many without a better rank correlation on validation "
        "samples to stop after",
    )
    batch_tokens: int = Field(default=1024, ge=1, description="tokens a batch, padding included")
    seed: int = Field(default=0, description="with --epochs: of initial weights, order and dropout")

    def cli_cmd(self) -> None:
        """Run the command."""
        from alinfik.distill.train import train

        train(self)


class Evaluate(BaseSettings):
    """Measure a bundle on labels that it was not distilled from; write a report to read."""

    model_config = SETTINGS

    bundle: Path = Field(description="bundle directory")
    labels: Path = Field(description="labels directory; the samples held out from it are used")
    report: Path = Field(description="HTML file to write")

    def cli_cmd(self) -> None:
        """Run the command; the metrics go to standard output as JSON."""
        from google.protobuf import json_format

        from alinfik.distill.evaluate import evaluate

        metrics = evaluate(self.bundle, self.labels, self.report)
        print(json_format.MessageToJson(metrics, preserving_proto_field_name=True))


class Explain(BaseSettings):
    """Say which tokens of a sample make its value, as JSON Lines on standard output.

    A token's `field` is `prompt` or `completion`, and `start` and `end` are its characters there. A
    start or end token, which stands for no character, has the field `added`. With labels of the
    mean loss, the sample's value is the mean of its tokens' values; of the summed loss, their sum.
    """

    model_config = SETTINGS

    bundle: Path = Field(description="bundle directory")
    samples: str = Field(
        description="samples to explain: .jsonl and .csv, also .gz, .parquet, or hf:DATASET[:SPLIT]"
    )
    fields: Fields = Field(
        default={},
        description="OURS=THEIRS: where columns have other names than id, provider, prompt, "
        "completion and group, as in id=uid,completion=answer",
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        from alinfik.distill.explain import explain

        explain(self.bundle, self.samples, self.fields)


class Distill(BaseSettings):
    """Labels text with LinFiK, distils a proxy from the labels, and says how good the proxy is.

    --config FILE.toml and ALINFIK_… in the environment set any option too; flags win over both.
    """

    model_config = SETTINGS

    label: CliSubCommand[Label]
    train: CliSubCommand[Train]
    evaluate: CliSubCommand[Evaluate]
    explain: CliSubCommand[Explain]

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        CliApp.run_subcommand(self, cli_exit_on_error=False)
