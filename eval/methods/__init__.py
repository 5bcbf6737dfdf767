"""Ways to fill a window from chunks that were encoded alone, behind one interface: see `base.Method`."""

from eval.methods.base import Batch, Cost, Method
from eval.methods.names import parse, parse_all

__all__ = ["Batch", "Cost", "Method", "parse", "parse_all"]
