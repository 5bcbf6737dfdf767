"""Sessions: a window that is kept going, the memory beside it, and both on disk."""

from kamera_jax.session.session import Session
from kamera_jax.session.settings import MEMORY

__all__ = ["MEMORY", "Session"]
