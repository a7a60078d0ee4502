"""Proxies distilled from the labels of `benchmarks.pool`, which benchmarks share and keep.

A proxy is trained where `runs/benchmarks/bundles` does not hold it yet: on two cores a minute for
`bag`, a few for `encoder`, ten for `layers:18` and half an hour for `gradients:30`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from alinfik.distill.bundle import MODEL, TOKENIZER, read_manifest
from alinfik.distill.commands import Train
from alinfik.distill.encoding import Encoder
from alinfik.distill.export import OnnxModel
from alinfik.distill.measure import predict
from alinfik.distill.samples import Row
from alinfik.distill.train import train
from benchmarks.pool import DATA, RUNS, labelled_pool


def trained(backbone: str, data: Path = DATA, out: Path = RUNS) -> Path:
    """Return the bundle of a proxy on this backbone."""
    bundle = out / "bundles" / backbone.replace(":", "-")
    if not bundle.exists():
        train(Train(labels=labelled_pool(data, out), out=bundle, backbone=backbone))
    return bundle


def values(bundle: Path, rows: Sequence[Row], file: str = MODEL) -> dict[str, np.ndarray]:
    """Return what a bundle's model says of rows [N], by target."""
    manifest = read_manifest(bundle)
    encoder = Encoder(Tokenizer.from_file(str(bundle / TOKENIZER)), manifest.encoding)
    found = predict(OnnxModel(bundle / file), encoder.encode(rows), manifest.encoding.pad_id)
    return {target.name: found.value[:, k] for k, target in enumerate(manifest.targets)}
