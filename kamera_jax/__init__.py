"""kamera-jax: position-free KV chunks, relocated exactly and patched low-rank (arXiv 2606.23581).

Every operation is a function of immutable values. Letters in shapes are those of docs/design.md.
"""

from kamera_jax import exported as exported
from kamera_jax import patch, rope
from kamera_jax.chunk import Chunk, Entry, Match, Patch
from kamera_jax.compress.basis import CodecBasis
from kamera_jax.compress.compressed import Compressed
from kamera_jax.finder.finder import EmbeddingFinder, Finder, Hit
from kamera_jax.finder.heads import RetrievalHeads
from kamera_jax.guard import planning
from kamera_jax.guard.calibration import Calibration, calibrate
from kamera_jax.guard.fidelity import Fidelity, verify
from kamera_jax.guard.policy import ReusePolicy, Verdict, append_checked
from kamera_jax.guard.staleness import Staleness, staleness
from kamera_jax.inference.compress import calibrate_codec, compress
from kamera_jax.inference.encode import encode, encode_all, form_patch, form_patches, prefill
from kamera_jax.inference.generate import Generation, generate, query
from kamera_jax.inference.many import generate_many
from kamera_jax.inference.renewing import Renewed, renew
from kamera_jax.inference.sharing import share_rows
from kamera_jax.items import Audio, Video
from kamera_jax.kv import KV, ChunkPool, Factors, KVSpec, Segment, Sketch, SketchSpec, WindowState
from kamera_jax.library.library import ChunkLibrary
from kamera_jax.library.origin import Origin
from kamera_jax.moved import moved, warn_of_hidden
from kamera_jax.rope import RopeSpec
from kamera_jax.session.session import Session
from kamera_jax.session.stats import SessionStats
from kamera_jax.tiers.tiers import Tiers
from kamera_jax.window.changes import append, recall, reorder, slide
from kamera_jax.window.changes import replace_entry as replace
from kamera_jax.window.window import Window

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "KV",
    "Calibration",
    "Chunk",
    "ChunkLibrary",
    "ChunkPool",
    "CodecBasis",
    "Compressed",
    "EmbeddingFinder",
    "Entry",
    "Factors",
    "Fidelity",
    "Finder",
    "Generation",
    "Hit",
    "KVSpec",
    "Match",
    "Origin",
    "Patch",
    "Renewed",
    "RetrievalHeads",
    "ReusePolicy",
    "RopeSpec",
    "Segment",
    "Session",
    "SessionStats",
    "Sketch",
    "SketchSpec",
    "Staleness",
    "Tiers",
    "Verdict",
    "Video",
    "Window",
    "WindowState",
    "append",
    "append_checked",
    "calibrate",
    "calibrate_codec",
    "compress",
    "encode",
    "encode_all",
    "form_patch",
    "form_patches",
    "generate",
    "generate_many",
    "patch",
    "planning",
    "prefill",
    "query",
    "recall",
    "renew",
    "reorder",
    "replace",
    "rope",
    "share_rows",
    "slide",
    "staleness",
    "verify",
]

moved(
    "kamera_jax",
    {
        "answer": "kamera_jax.inference.generate",
        "calibration": "kamera_jax.guard.calibration",
        "encode": "kamera_jax.inference.encode",
        "eviction": "kamera_jax.window.eviction",
        "fidelity": "kamera_jax.guard.fidelity",
        "library.sessions": "kamera_jax.session.saved",
        "lineage": "kamera_jax.guard.staleness",
        "memory": "kamera_jax.session.memory",
        "planning": "kamera_jax.guard.planning",
        "policy": "kamera_jax.guard.policy",
        "pool": "kamera_jax.window.pool",
        "reuse": "kamera_jax.window.reuse",
        "size": "kamera_jax.patch.size",
        "stats": "kamera_jax.session.stats",
        "subspace": "kamera_jax.patch.subspace",
    },
)

warn_of_hidden(("models", "eval", "pallas_kernels"))
