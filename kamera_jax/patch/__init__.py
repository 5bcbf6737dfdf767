"""Low-rank patches: fitting, applying and counting them; `kamera_jax.patch.fitting` is where they are defined."""

from kamera_jax.patch.fitting import (
    SHARE,
    UNEVEN,
    WIDEST,
    Fitted,
    apply,
    component_bytes,
    fit,
    fit_bytes,
    fit_energy,
    fit_rank,
    limit,
    nbytes,
    quantised,
    rank_for_bytes,
    residual,
    truncate,
)

__all__ = [
    "SHARE",
    "UNEVEN",
    "WIDEST",
    "Fitted",
    "apply",
    "component_bytes",
    "fit",
    "fit_bytes",
    "fit_energy",
    "fit_rank",
    "limit",
    "nbytes",
    "quantised",
    "rank_for_bytes",
    "residual",
    "truncate",
]
