"""Loads a bundle's manifest and proves that the files beside it are the ones it was written with.

Comes in: a directory. Goes out: the manifest and the paths of the model and the tokenizer. Knows
nothing of ONNX or tokenizers: what is in the files is for others to read.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from google.protobuf import json_format

from alinfik.command import CommandError
from alinfik.v1 import BundleManifest

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
QUANTISED = "model.int8.onnx"
EXPLAIN = "explain.onnx"
TOKENIZER = "tokenizer.json"
QUANTILES = 101

Precision = Literal["float32", "int8"]

_WRITE_AGAIN = "copy it again from where it was written, or write it again with `alinfik-distill`"


class BundleError(CommandError):
    """A directory is no bundle, or not the bundle that its manifest says it is."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path
    manifest: BundleManifest

    @cached_property
    def id(self) -> str:
        """``BundleManifest.bundle_id``: 64 hex digits."""
        return self.manifest.bundle_id

    @cached_property
    def targets(self) -> list[str]:
        """Names of the targets, in the order of the model's columns."""
        return [target.name for target in self.manifest.targets]

    @property
    def quantised(self) -> bool:
        """Whether it has an int8 model, which ranks samples as the float32 one does."""
        return QUANTISED in self.manifest.files

    def model(self, precision: Precision) -> Path:
        """The ONNX model of a precision.

        Raises:
            BundleError: there is none.
        """
        if precision == "float32":
            return self.path / MODEL
        if not self.quantised:
            raise BundleError(
                f"{self.path} has no {QUANTISED}: in 8 bits this proxy is no quicker or ranks "
                "samples otherwise; leave --precision out"
            )
        return self.path / QUANTISED

    @property
    def explains(self) -> bool:
        """Whether it has a model of token values."""
        return EXPLAIN in self.manifest.files

    @property
    def explain(self) -> Path:
        """The ONNX model of token values."""
        return self.path / EXPLAIN

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that both sides run."""
        return self.path / TOKENIZER


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in directory ``path``: every byte of every file is hashed.

    Raises:
        BundleError: it is no bundle, its format is unknown, a file is missing, changed, unlisted
            or not to be read, or the manifest contradicts itself.
    """
    try:
        manifest = _read_manifest(path)
        _check_files(path, manifest)
        _check_id(path, manifest)
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    for fault in _contradictions(manifest):
        raise BundleError(f"{path / MANIFEST}: {fault}; {_WRITE_AGAIN}")
    return Bundle(path, manifest)


def load_bundles(paths: Sequence[Path], shadow: Path | None) -> tuple[list[Bundle], Bundle | None]:
    """The bundles in ``paths``, and the one that is to be compared with the first of them.

    Raises:
        BundleError: as ``load_bundle``; or the two are the same.
    """
    bundles = [load_bundle(path) for path in paths]
    compared = load_bundle(shadow) if shadow else None
    if compared and compared.id == bundles[0].id:
        raise BundleError(
            f"--shadow {shadow} is the first --bundle itself, with which it would be compared; "
            "give another one, or leave it out"
        )
    return bundles, compared


def bundle_id(manifest: str) -> str:
    """The id that the text of a manifest gives, by the rule in bundle.proto."""
    fields = json.loads(manifest)
    fields.pop("bundle_id", None)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_manifest(path: Path) -> BundleManifest:
    if not path.exists():
        raise BundleError(f"{path}: no such directory")
    if not path.is_dir():
        raise BundleError(f"{path} is not a bundle: a bundle is a directory, and this is a file")
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}; "
            "name the directory that `alinfik-distill train --out` wrote"
        )
    # Unknown fields are let through, so that an unknown format is reported as just that.
    manifest = BundleManifest()
    try:
        json_format.Parse(file.read_text(encoding="utf-8"), manifest, ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is not a bundle manifest: {error}; {_WRITE_AGAIN}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(
            f"{file} has format version {manifest.format_version}, and this server knows "
            f"{FORMAT_VERSION}; use the server of the same release as the `alinfik-distill` "
            "that wrote it"
        )
    return manifest


def _check_files(path: Path, manifest: BundleManifest) -> None:
    for name in (MODEL, TOKENIZER):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} lists no {name}; {_WRITE_AGAIN}")
    for name in sorted(manifest.files):
        if name in ("", ".", "..") or Path(name).name != name:
            raise BundleError(f"{path / MANIFEST} lists {name!r}, which is not a plain file name")
        _check_file(path / name, manifest.files[name].sha256, manifest.files[name].size_bytes)
    for entry in sorted(path.iterdir()):
        if entry.name not in manifest.files and entry.name != MANIFEST:
            raise BundleError(
                f"{entry} is not part of the bundle: the manifest does not list it; move it away"
            )


def _check_file(file: Path, sha256: str, size_bytes: int) -> None:
    if not file.is_file():
        raise BundleError(f"{file} is missing from the bundle; {_WRITE_AGAIN}")
    size = file.stat().st_size
    if size != size_bytes:
        raise BundleError(
            f"{file} has changed since the bundle was written "
            f"({size} bytes, the manifest says {size_bytes}); {_WRITE_AGAIN}"
        )
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise BundleError(
            f"{file} has changed since the bundle was written "
            f"(SHA-256 {found[:12]}…, the manifest says {sha256[:12]}…); {_WRITE_AGAIN}"
        )


def _check_id(path: Path, manifest: BundleManifest) -> None:
    expected = bundle_id((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest.bundle_id != expected:
        raise BundleError(
            f"{path / MANIFEST} has been edited: its bundle id is {manifest.bundle_id[:12]}…, "
            f"and its content gives {expected[:12]}…; {_WRITE_AGAIN}"
        )


def _contradictions(manifest: BundleManifest) -> list[str]:
    """What a manifest of the right form may still get wrong."""
    faults: list[str] = []
    names = [target.name for target in manifest.targets]
    if not names or len(set(names)) < len(names):
        faults.append(f"its targets must be one or more, each named once (they are {names})")
    quantiles = {f"target {t.name}": t.value_quantiles for t in manifest.targets}
    quantiles["out_of_distribution"] = manifest.out_of_distribution.score_quantiles
    for owner, values in quantiles.items():
        if len(values) != QUANTILES or list(values) != sorted(values):
            faults.append(f"{owner} must have {QUANTILES} ascending quantiles")
    encoding = manifest.encoding
    if encoding.prompt_template.count("{prompt}") != 1:
        faults.append("encoding.prompt_template must hold {prompt} once")
    if encoding.completion_template.count("{completion}") != 1:
        faults.append("encoding.completion_template must hold {completion} once")
    if encoding.token_limit <= len(encoding.prefix_ids):
        faults.append("encoding.token_limit leaves no room for text after encoding.prefix_ids")
    return faults
