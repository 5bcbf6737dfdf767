"""Low-rank patches: fitting, applying and counting them; `kamera_jax.patch.fitting` is where they are defined."""

import warnings

from kamera_jax.patch.fitting import (
    SHARE,
    UNEVEN,
    Fitted,
    apply,
    component_bytes,
    fit,
    fit_bytes,
    fit_energy,
    fit_rank,
    fit_width,
    limit,
    nbytes,
    quantised,
    rank_for_bytes,
    residual,
    truncate,
    width_for,
)

_WIDEST = 32


def __getattr__(name: str) -> int:
    """The names of before."""
    if name == "WIDEST":
        warnings.warn("kamera_jax.patch.WIDEST: a default patch has no such bound any more", DeprecationWarning, 2)
        return _WIDEST
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "SHARE",
    "UNEVEN",
    "Fitted",
    "apply",
    "component_bytes",
    "fit",
    "fit_bytes",
    "fit_energy",
    "fit_rank",
    "fit_width",
    "limit",
    "nbytes",
    "quantised",
    "rank_for_bytes",
    "residual",
    "truncate",
    "width_for",
]
