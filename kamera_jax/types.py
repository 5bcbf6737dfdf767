"""Shared aliases. Letters in shapes: see docs/design.md, "Words"."""

from collections.abc import Callable
from typing import Any

Params = Any
"""A backbone's parameters: any pytree of arrays. Always an argument of what is jitted, never closed over."""

Stream = Callable[[str], None]
"""Called with each newly generated piece of text."""
