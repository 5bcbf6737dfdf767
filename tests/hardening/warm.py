"""What is compiled once, for all processes that try faults: no fault is to wait for it."""

import os

import tests.xla_flags  # noqa: F401
from eval.commands import compile_cache


def cached():
    """Keep what this process compiles from now on, for the workers that it starts."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := compile_cache.enable()):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
