"""How the change of a chunk's KV by its context is spread: over components (low rank), and over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eval.methods.base import Batch
from eval.tasks.comparison import SHARES
from kamera_jax.kv import KV


@jax.jit
def _energies(conditioned: KV, canonical: KV, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared singular values f32[E, L, m], and squared change by token f32[E, L, T], both falling."""
    change = conditioned.features.astype(jnp.float32) - canonical.features.astype(jnp.float32)
    change = jnp.where((jnp.arange(change.shape[2], dtype=jnp.int32) < length)[None, None, :, None], change, 0.0)
    values = jnp.linalg.svd(change, compute_uv=False)
    return jnp.square(values), -jnp.sort(-jnp.square(change).sum(-1), axis=-1)


def spectra(batch: Batch) -> dict[str, Float[np.ndarray, "E L n"]]:
    """Share of every layer's squared change in the strongest `SHARES` of components, and of tokens, of chunks together.

    A layer that nothing changes, as the first, has zeros.
    """
    totals: dict[str, np.ndarray] = {}
    whole: np.ndarray | float = 0.0
    for place in batch.reused:
        chunk = batch.chunks[place]
        energies = _energies(batch.full.conditioned[place], chunk.kv, jnp.int32(chunk.length))
        for name, energy in zip(("components", "tokens"), map(np.asarray, energies), strict=True):
            most = min(chunk.length, energy.shape[-1])
            counts = [max(1, round(share * most)) for share in SHARES]
            within = np.cumsum(energy[..., :most], axis=-1)[..., [count - 1 for count in counts]]
            totals[name] = totals.get(name, 0.0) + within
        whole = whole + np.asarray(energies[1]).sum(-1)[..., None]
    floor = 1e-9 * _size(batch)
    return {name: np.where(whole > floor, total / np.maximum(whole, 1e-30), 0.0) for name, total in totals.items()}


def _size(batch: Batch) -> Float[np.ndarray, "E L 1"]:
    """Squared size of the reference's KV in every layer: rounding is small against it."""
    total = 0.0
    for place in batch.reused:
        total = total + jnp.square(batch.full.conditioned[place].features.astype(jnp.float32)).sum((2, 3))[..., None]
    return np.asarray(total)
