"""Sessions: a window that is kept going, the memory beside it, and both on disk."""

from kamera_jax.session.session import MEMORY, Session

__all__ = ["MEMORY", "Session"]
