"""Ways to fill a window from chunks that were encoded alone, behind one interface: see `base.Method`.

What is named here is imported when it is first used: `eval.methods.sizes` is read without JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.methods.base import Batch, Cost, Method
    from eval.methods.names import parse, parse_all

__all__ = ["Batch", "Cost", "Method", "parse", "parse_all"]

_PLACES = {"Batch": "base", "Cost": "base", "Method": "base", "parse": "names", "parse_all": "names"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
