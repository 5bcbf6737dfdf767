"""Choosing a backend: None picks the best that can serve the call, a named one that cannot says why."""

from collections.abc import Mapping
from typing import Literal

import jax

Implementation = Literal["xla", "pallas_tpu", "mosaic_gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("pallas_tpu", "mosaic_gpu", "xla")
"""Best first."""

GPU_JAX = (0, 11)
"""The first jax whose Mosaic GPU the kernels are written for."""


def platform() -> str:
    """What calls run on by default: ``"cpu"``, ``"gpu"`` or ``"tpu"``."""
    return jax.default_backend()


def unavailable(implementation: Implementation) -> str | None:
    """Why this machine or this jax cannot run the backend whatever the call, or None when it can."""
    wanted = {"pallas_tpu": "tpu", "mosaic_gpu": "gpu"}.get(implementation)
    if implementation == "mosaic_gpu" and jax.__version_info__ < GPU_JAX:
        return f"it needs jax {'.'.join(map(str, GPU_JAX))} or newer (and so Python 3.12); this is {jax.__version__}"
    if wanted is not None and platform() != wanted:
        return f"it runs on a {wanted}, and the default backend is a {platform()}"
    return None


def choose(
    op: str, implementation: Implementation | None, refusals: Mapping[Implementation, str | None]
) -> Implementation:
    """The backend to run ``op`` with.

    Args:
        op: for the message.
        implementation: None picks the best that serves the call.
        refusals: for each backend this op has, why it cannot serve this call, or None when it can; what
            `unavailable` says need not be repeated. ``"xla"`` must serve every call.

    Raises:
        ValueError: the name is unknown, the op has no such backend, or that backend cannot serve this call.
    """
    if implementation is None:
        return next(
            name for name in IMPLEMENTATIONS if name in refusals and (unavailable(name) or refusals[name]) is None
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {implementation!r} for {op}; expected None or one of {IMPLEMENTATIONS}"
        )
    if implementation not in refusals:
        raise ValueError(
            f"{op} has no {implementation!r} backend in this version; use None or one of {tuple(refusals)}"
        )
    reason = unavailable(implementation) or refusals[implementation]
    if reason is not None:
        raise ValueError(f"{op} cannot use {implementation!r}: {reason}; use None, which picks one that can")
    return implementation
