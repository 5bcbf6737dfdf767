"""kamera-jax: position-free KV chunks, relocated exactly and patched low-rank (arXiv 2606.23581).

Every operation is a function of immutable values. Letters in shapes are those of docs/design.md.
"""

from kamera_jax import patch, rope
from kamera_jax.answer import Generation, generate, query
from kamera_jax.chunk import Chunk, Entry, Match, Patch
from kamera_jax.encode import encode, form_patch, prefill
from kamera_jax.kv import KV, ChunkPool, Factors, KVSpec, Segment, WindowState
from kamera_jax.rope import RopeSpec
from kamera_jax.window import Window, append, recall, reorder, slide
from kamera_jax.window import replace_entry as replace

__version__ = "0.1.0"

__all__ = [
    "KV",
    "Chunk",
    "ChunkPool",
    "Entry",
    "Factors",
    "Generation",
    "KVSpec",
    "Match",
    "Patch",
    "RopeSpec",
    "Segment",
    "Window",
    "WindowState",
    "append",
    "encode",
    "form_patch",
    "generate",
    "patch",
    "prefill",
    "query",
    "recall",
    "reorder",
    "replace",
    "rope",
    "slide",
]
