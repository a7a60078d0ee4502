"""Keeps targets' gradients on disk: a target is the same for every pool that it values.

Knows nothing of how a gradient is computed.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alinfik.distill.disk import DiskFullError, new_file
from alinfik.distill.losses import Parameters


class GradientCache:
    """A directory of gradients, each under the hash of everything that decides it.

    Args:
        directory: where they are kept; made if absent. It may be deleted at any time.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, key: Mapping[str, object], compute: Callable[[], Parameters]) -> Parameters:
        """Return the gradient for ``key``, computing and keeping it where it is not there.

        A file that does not read, as after a crash of the machine, is computed again; one that
        cannot be written is not kept.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self._directory / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            gradient = compute()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with new_file(path) as scratch:
                save_file(gradient, scratch)
        except (OSError, SafetensorError, DiskFullError) as error:
            print(
                f"a target's gradient is not kept in {self._directory} ({error}); --cache names "
                "another place",
                file=sys.stderr,
            )
        return gradient
