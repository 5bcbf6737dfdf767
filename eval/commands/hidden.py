"""Packages of this project that cannot be imported, because something else of the same name comes before them."""

import importlib.util
import os
from pathlib import Path


class HiddenPackageError(ImportError, ValueError):
    """A file or folder hides one of the project's packages."""


def check() -> None:
    """Raise HiddenPackageError unless the packages that commands use are this project's own."""
    own = Path(__file__).resolve().parents[2] / "kamera_jax" / "__init__.py"
    spec = importlib.util.find_spec("kamera_jax")
    if spec is None or os.path.realpath(spec.origin or "") != str(own):
        other = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        raise HiddenPackageError(
            f"{other or 'nothing'} is imported as kamera_jax, and not {own.parent}, beside which this command stands; "
            "rename it, or take its folder off PYTHONPATH"
        )
    from kamera_jax.moved import describe_hidden, hidden

    for name, other in hidden(("models", "pallas_kernels")).items():
        raise HiddenPackageError(describe_hidden(name, other))
