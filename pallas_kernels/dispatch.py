"""Choosing a backend: None picks the best that is built, a named one that cannot serve the call fails loudly."""

from collections.abc import Collection
from typing import Literal

Implementation = Literal["xla", "pallas_tpu", "mosaic_gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("xla", "pallas_tpu", "mosaic_gpu")


def choose(op: str, implementation: Implementation | None, built: Collection[Implementation]) -> Implementation:
    """The backend to run ``op`` with.

    Raises:
        ValueError: the name is unknown, or that backend is not built for this op.
    """
    if implementation is None:
        return "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {implementation!r} for {op}; expected None or one of {IMPLEMENTATIONS}"
        )
    if implementation not in built:
        raise ValueError(f"{op} has no {implementation!r} backend in this version; use None or one of {tuple(built)}")
    return implementation
