"""Writes and reads the bundle: the directory that carries a proxy to the server.

The layout is described at `alinfik.v1.BundleManifest`. A bundle is written under a temporary name
and renamed, and never changed afterwards.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import json_format

from alinfik.command import CommandError
from alinfik.v1 import BundleManifest, FileDigest

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
QUANTISED = "model.int8.onnx"
EXPLAIN = "explain.onnx"
TOKENIZER = "tokenizer.json"
REPORT = "report.html"
METRICS = "metrics.json"


class BundleError(CommandError):
    """A directory that is no bundle, or a place where none can be written."""


@contextmanager
def new_bundle(directory: Path) -> Generator[Path]:
    """Yield a scratch directory that becomes ``directory`` if the block ends well.

    Raises:
        BundleError: ``directory`` exists already.
    """
    refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_existing(directory: Path) -> None:
    """Raise `BundleError` where ``directory`` is there already: bundles are immutable."""
    if directory.exists():
        raise BundleError(f"{directory} exists already; give --out a new directory")


def write_manifest(directory: Path, manifest: BundleManifest) -> None:
    """Digest the files of ``directory``, name the bundle by its content, write the manifest."""
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        manifest.files[path.name].CopyFrom(FileDigest(sha256=digest, size_bytes=size))
    manifest.format_version = FORMAT_VERSION
    manifest.create_time.GetCurrentTime()
    fields = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    fields.pop("bundle_id", None)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    identity = {"bundle_id": hashlib.sha256(canonical).hexdigest()}
    (directory / MANIFEST).write_text(json.dumps(identity | fields, indent=2) + "\n")


def read_manifest(directory: Path) -> BundleManifest:
    """Read a bundle's manifest.

    Raises:
        BundleError: the directory is no bundle.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleError(f"{directory} is no bundle: it has no {MANIFEST}")
    try:
        return json_format.Parse(path.read_text(), BundleManifest())
    except json_format.ParseError as error:
        raise BundleError(f"{path} is no bundle manifest: {error}") from error
