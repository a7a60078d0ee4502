"""The `alinfik-distill` command."""

import os
import warnings
from typing import NoReturn

from alinfik.command import run


def main() -> NoReturn:
    """Run `alinfik-distill`."""
    # Before transformers loads: its bars would break up ours, and fill a log that is no terminal.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # torch compiles its own decompositions for forward mode with the jit that it has deprecated.
    warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)
    from alinfik.distill.commands import Distill

    run(Distill)


if __name__ == "__main__":
    main()
