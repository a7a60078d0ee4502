"""The labels directory: Parquet shards, and a manifest once it is complete.

    labels/
      run.json            settings, versions and fingerprint of the run that writes it
      part-00000.parquet  one row a sample, in the pool's order
      directions.safetensors  the targets' gradients in few directions, for `gradients:N`
      manifest.json       the bundle manifest as far as labelling settles it; written last

Columns: `id`, `provider`, `prompt`, `completion`, `group` (as read), `input_ids`,
`completion_start`, `truncated` (as encoded), `loss` (nats, reduced as the label is), and for every
target NAME `label_NAME` and, where token values are kept, `token_values_NAME`: one a completion
token if labels are split by loss, one a token if by position; they reduce to the label.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import json_format
from numpy.typing import NDArray

from alinfik.command import CommandError
from alinfik.distill.directions import Directions, Kernel, load_directions, save_directions
from alinfik.distill.disk import new_file, remove_leftovers
from alinfik.distill.encoding import Encoded
from alinfik.distill.samples import Row
from alinfik.distill.settings import Normalisation, Reduction
from alinfik.distill.values import TokenSplit
from alinfik.v1 import (
    LOSS_REDUCTION_MEAN,
    NORMALISATION_GLOBAL,
    NORMALISATION_NONE,
    NORMALISATION_TENSOR,
    TOKEN_SPLIT_LOSS,
    TOKEN_SPLIT_UNSPECIFIED,
    BundleManifest,
)

MANIFEST = "manifest.json"
RUN = "run.json"
DIRECTIONS = "directions.safetensors"
_NORMALISATIONS: dict[int, Normalisation] = {
    NORMALISATION_NONE: "none",
    NORMALISATION_GLOBAL: "global",
    NORMALISATION_TENSOR: "tensor",
}
_TEXT_COLUMNS = ["id", "provider", "prompt", "completion", "group"]


class LabelsError(CommandError):
    """A labels directory that is absent, incomplete, or of another run."""


def labels_schema(targets: list[str]) -> pa.Schema:
    """Return the columns of a shard, for ``targets`` in this order."""
    fields: list[pa.Field[Any]] = [pa.field(name, pa.string()) for name in _TEXT_COLUMNS]
    fields += [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("completion_start", pa.int32()),
        pa.field("truncated", pa.bool_()),
        pa.field("loss", pa.float64()),
    ]
    for name in targets:
        fields.append(pa.field(f"label_{name}", pa.float64()))
        fields.append(pa.field(f"token_values_{name}", pa.list_(pa.float32())))
    return pa.schema(fields)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    with new_file(path) as scratch:
        scratch.write_text(text)


class LabelsWriter:
    """Writes a labels directory shard by shard, taking up a run that was cut off.

    Args:
        directory: the labels directory; made if absent.
        fingerprint: everything that decides the labels. A directory begun with another one is
            refused.
        record: settings and versions, kept beside the fingerprint so that the run can be repeated.
    """

    def __init__(
        self, directory: Path, fingerprint: dict[str, object], record: dict[str, object]
    ) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        run = directory / RUN
        scratch = MANIFEST, DIRECTIONS, "part-*.parquet"
        for path in (run, *(directory / name for name in scratch)):
            remove_leftovers(path)
        if run.exists():
            _refuse_other_run(directory, json.loads(run.read_text())["fingerprint"], fingerprint)
        else:
            if any(directory.iterdir()):
                raise LabelsError(f"{directory} holds something else; give --out a new directory")
            write_atomically(run, json.dumps({"fingerprint": fingerprint, **record}, indent=2))

    def has_shard(self, number: int) -> bool:
        """Whether an earlier run has written shard ``number``."""
        return self._shard(number).exists()

    def is_finished(self) -> bool:
        """Whether an earlier run has written everything, but perhaps for directions."""
        return (self._directory / MANIFEST).exists()

    def has_directions(self) -> bool:
        """Whether an earlier run has written the targets' directions."""
        return (self._directory / DIRECTIONS).exists()

    def write_shard(self, number: int, table: pa.Table) -> None:
        """Write shard ``number``; it is there whole or not at all.

        Raises:
            DiskFullError: there is no room for it.
        """
        with new_file(self._shard(number)) as scratch:
            pq.write_table(table, scratch, compression="zstd")

    def write_directions(self, directions: Directions, targets: Sequence[str]) -> None:
        """Write the targets' directions, in this order of targets.

        Raises:
            DiskFullError: there is no room for them.
        """
        save_directions(directions, targets, self._directory / DIRECTIONS)

    def finish(self, manifest: BundleManifest) -> None:
        """Say that every shard is there."""
        text = json_format.MessageToJson(manifest, preserving_proto_field_name=True)
        write_atomically(self._directory / MANIFEST, text)

    def _shard(self, number: int) -> Path:
        return self._directory / f"part-{number:05d}.parquet"


def _refuse_other_run(directory: Path, theirs: dict[str, object], ours: dict[str, object]) -> None:
    ours = json.loads(json.dumps(ours))
    changed = [
        f"{name} was {theirs.get(name)!r} and is now {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if changed:
        raise LabelsError(
            f"{directory} was begun with other settings: {'; '.join(changed)}. Give the old "
            "settings to go on, or --out a new directory"
        )


@dataclass(frozen=True)
class Labels:
    """A complete labels directory.

    Attributes:
        manifest: encoding, language model, label settings and targets.
        model: the `--model` that the labels were made with.
        table: every row; see the module's list of columns.
        directions: of the targets; none where an adapter's gradients count.
    """

    manifest: BundleManifest
    model: str
    table: pa.Table
    directions: Directions = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.num_rows

    def take(self, indices: list[int]) -> "Labels":
        """Return the labels of some samples."""
        return replace(self, table=self.table.take(indices))

    @property
    def names(self) -> list[str]:
        """The targets' names, in the manifest's order: K of them."""
        return [target.name for target in self.manifest.targets]

    @property
    def rows(self) -> list[Row]:
        """Every sample as it was read."""
        return [Row(**row) for row in self.table.select(_TEXT_COLUMNS).to_pylist()]

    @property
    def samples(self) -> list[Encoded]:
        """Every sample as it was encoded."""
        columns = self.table.select(["input_ids", "completion_start", "truncated"])
        return [Encoded(**row) for row in columns.to_pylist()]

    @property
    def values(self) -> NDArray[np.float64]:
        """The labels, [N, K]."""
        return np.stack([self.table[f"label_{name}"].to_numpy() for name in self.names], axis=1)

    @property
    def reduction(self) -> Reduction:
        """How token losses make a sample's."""
        return "mean" if self.manifest.labels.loss_reduction == LOSS_REDUCTION_MEAN else "sum"

    @property
    def kernel(self) -> Kernel:
        """What they are made with."""
        normalisation = _NORMALISATIONS[self.manifest.labels.normalisation]
        return Kernel(self.directions, normalisation, self.reduction)

    @property
    def token_split(self) -> TokenSplit:
        """Over which tokens labels are split."""
        return "loss" if self.manifest.labels.token_split == TOKEN_SPLIT_LOSS else "position"

    @property
    def token_values(self) -> list[NDArray[np.float64]]:
        """Every sample's token values, N arrays [tokens, K]; none if labels are not split."""
        if self.manifest.labels.token_split == TOKEN_SPLIT_UNSPECIFIED:
            return []
        columns = [self.table[f"token_values_{name}"].to_pylist() for name in self.names]
        return [np.array(values).T for values in zip(*columns, strict=True)]


def read_labels(directory: Path) -> Labels:
    """Read a labels directory.

    Raises:
        LabelsError: it is none, the run that writes it has not finished, or shards are missing.
        DirectionsError: the targets' directions cannot be read.
    """
    if not (directory / RUN).is_file():
        raise LabelsError(f"{directory} is no labels directory: it has no {RUN}")
    if not (directory / MANIFEST).is_file():
        done = len(list(directory.glob("part-*.parquet")))
        raise LabelsError(
            f"{directory} is incomplete ({done} shards so far): run `alinfik-distill label` with "
            "the same settings again to finish it"
        )
    manifest = json_format.Parse((directory / MANIFEST).read_text(), BundleManifest())
    model = json.loads((directory / RUN).read_text())["settings"]["model"]
    try:
        shards = [pq.read_table(path) for path in sorted(directory.glob("part-*.parquet"))]
    except (OSError, pa.ArrowException) as error:
        raise LabelsError(f"{directory}: a shard cannot be read ({error})") from error
    # A run that was taken up again may have named its targets in another order.
    names = [target.name for target in manifest.targets]
    schema = labels_schema(names)
    table = pa.concat_tables(
        [schema.empty_table(), *(shard.select(schema.names) for shard in shards)]
    )
    if table.num_rows != manifest.labels.sample_count:
        raise LabelsError(
            f"{directory} should hold {manifest.labels.sample_count} labels and holds "
            f"{table.num_rows}: some part-*.parquet are missing, perhaps left out in copying"
        )
    directions = load_directions(names, directory / DIRECTIONS)
    return Labels(manifest, model, table, directions)
