"""The change of chunks' KV by their context: how large it is in every layer, and how many parts hold it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eval.methods.base import Batch
from kamera_jax.kv import KV


def relative(batch: Batch) -> dict[str, Float[np.ndarray, "E L"]]:
    """The change of the chunks behind the first, relative to what it is a change of, by context and layer.

    Both are Frobenius norms over the chunks' tokens and features, of what RoPE rotates (``rot``) and what it does not
    (``free``). Of keys the mean over tokens is set aside on both sides: a language model's keys have large means, which
    say nothing about the tokens.
    """
    sums: dict[str, np.ndarray] = {}
    for place in batch.reused:
        chunk = batch.chunks[place]
        for name, pair in _norms(batch.full.conditioned[place], chunk.kv, jnp.int32(chunk.length)).items():
            sums[name] = sums.get(name, 0.0) + np.asarray(pair)
    return {name: np.sqrt(change / np.maximum(whole, 1e-30)) for name, (change, whole) in sums.items()}


@jax.jit
def _norms(conditioned: KV, canonical: KV, length: jax.Array) -> dict[str, Float[Array, "2 E L"]]:
    """Squared norms of the change and of the canonical KV."""
    return {
        name: jnp.stack([_squared(ours - theirs, length, centred), _squared(theirs, length, centred)])
        for name, centred in (("rot", True), ("free", False))
        for ours, theirs in [
            (getattr(conditioned, name).astype(jnp.float32), getattr(canonical, name).astype(jnp.float32))
        ]
    }


def _squared(rows: Float[Array, "E L T F"], length: jax.Array, centred: bool) -> Float[Array, "E L"]:
    rows = _valid(rows, length)
    if centred:
        rows = _valid(rows - rows.sum(2, keepdims=True) / length.astype(jnp.float32), length)
    return jnp.square(rows).sum((2, 3))


def _valid(rows: Float[Array, "E L T F"], length: jax.Array) -> Float[Array, "E L T F"]:
    return jnp.where((jnp.arange(rows.shape[2], dtype=jnp.int32) < length)[None, None, :, None], rows, 0.0)


def counts(batch: Batch, place: int, share: float) -> dict[str, Int[np.ndarray, "E L"]]:
    """How many of a chunk's strongest components, and of its tokens, hold this share of a layer's squared change.

    Components are of keys and values together, as a patch has them. A layer that nothing changes has zeros.
    """
    chunk = batch.chunks[place]
    energies = _energies(batch.full.conditioned[place], chunk.kv, jnp.int32(chunk.length))
    size = np.asarray(jnp.square(batch.full.conditioned[place].features.astype(jnp.float32)).sum((2, 3)))
    found = {}
    for name, energy in zip(("components", "tokens"), map(np.asarray, energies), strict=True):
        within = np.cumsum(energy, axis=-1)
        reached = (within < share * within[..., -1:]).sum(-1) + 1
        found[name] = np.where(within[..., -1] > 1e-9 * size, reached, 0)
    return found


@jax.jit
def _energies(conditioned: KV, canonical: KV, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared singular values f32[E, L, m], and squared change by token f32[E, L, T], both falling."""
    change = conditioned.features.astype(jnp.float32) - canonical.features.astype(jnp.float32)
    change = _valid(change, length)
    # Not by singular values: a Gram matrix of a few hundred rows takes a tenth of the time, and half the digits do.
    gram = jnp.einsum("eltf,elsf->elts", change, change)
    values = jnp.flip(jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0), -1)
    return values, -jnp.sort(-jnp.square(change).sum(-1), axis=-1)
