"""The settings and arguments of a session, checked."""

from os import PathLike
from pathlib import Path
from typing import Any

from kamera_jax.arguments import check_type, whole_number
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.store import Store

MEMORY = 2**30
"""Bytes of host memory for evicted chunks by default: 1 GiB."""


def check_settings(rank: Any, memory_bytes: Any, policy: Any, store: Any) -> tuple[int | None, int | None]:
    """Raise ValueError unless these are settings of a session; its rank and its memory as Python's numbers."""
    check_type(policy, (ReusePolicy, type(None)), "policy", "kamera_jax.ReusePolicy(max_kl=0.05)")
    check_type(store, (Store, type(None)), "store", "a ChunkLibrary, or another kamera_jax.store.Store")
    memory_bytes = None if memory_bytes is None else whole_number(memory_bytes, "memory_bytes", 0)
    return None if rank is None else whole_number(rank, "rank", 1), memory_bytes


def check_key(key: Any) -> None:
    """Raise ArgumentError unless it can be a chunk's key."""
    check_type(key, str, "key", "what Session.add returned, or a chunk's key")


def folder_of(folder: Any) -> Path:
    """The folder of a saved session."""
    check_type(folder, (str, PathLike), "folder", "where the session is saved")
    return Path(folder)
