"""Keeps training's state on disk after every epoch, so that a run that was cut off goes on.

In: tensors and numbers. Out: the same, to a run with the same settings and labels. Knows nothing of
what they mean.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from alinfik.distill.disk import new_file, remove_leftovers

State = dict[str, Any]


class Checkpoint:
    """One file beside the bundle to be.

    Args:
        out: the bundle directory that training is for.
        key: everything that decides the training. A checkpoint of another key is not read.
    """

    def __init__(self, out: Path, key: Mapping[str, object]) -> None:
        self._path = out.with_name(f".{out.name}.checkpoint")
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def load(self) -> State | None:
        """Return the state that was saved last, if it is this training's."""
        try:
            # Tensors and plain values alone: nothing in the file is executed.
            found = torch.load(self._path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, UnpicklingError):
            # There is none, or a damaged one, which is worth as much.
            return None
        return found["state"] if found["key"] == self._key else None

    def save(self, state: State) -> None:
        """Keep a state in the place of the one before it.

        Raises:
            DiskFullError: there is no room for it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(self._path) as scratch:
            torch.save({"key": self._key, "state": state}, scratch)

    def discard(self) -> None:
        """Delete what is kept: the training is over."""
        self._path.unlink(missing_ok=True)
        remove_leftovers(self._path)
