"""Windows: ordered chunks behind a pinned preamble, and what moves them."""

from kamera_jax.window.changes import append, recall, reorder, replace_entry, slide, without
from kamera_jax.window.window import Mode, Window

__all__ = ["Mode", "Window", "append", "recall", "reorder", "replace_entry", "slide", "without"]
