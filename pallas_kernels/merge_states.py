"""Merging of attention over disjoint keys."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def merge_states(
    outs: Sequence[jax.Array] | jax.Array, lses: Sequence[jax.Array] | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention over all keys from attention over disjoint parts of them (arXiv 2501.01005, section 2.2).

    Args:
        outs: each part's output [..., Dv], normalised within the part; a sequence, or stacked on a leading axis.
        lses: each part's log-sum-exp of scores, f32[...]; -inf where the part holds nothing the row sees: its output
            is then not read.

    Returns:
        ``(out, lse)`` as from one attention: out of the parts' dtype, lse f32. A row that sees nothing in any part has
        out 0 and lse -inf. f32 math; nothing is NaN, in gradients neither.

    Raises:
        ValueError: there is no part, or shapes or dtypes disagree.
    """
    outs = list(outs)
    lses = list(lses)
    if not outs or len(outs) != len(lses):
        raise ValueError(f"expected as many outputs as log-sum-exps, at least one; got {len(outs)} and {len(lses)}")
    shape = outs[0].shape
    dtype = outs[0].dtype
    for out, lse in zip(outs, lses, strict=True):
        if out.shape != shape or out.dtype != dtype or lse.shape != shape[:-1] or lse.dtype != jnp.float32:
            raise ValueError(
                f"every part needs out {dtype}{list(shape)} and lse float32{list(shape[:-1])}, as the first; got "
                f"{out.dtype}{list(out.shape)} and {lse.dtype}{list(lse.shape)}"
            )
    highest = lses[0]
    for lse in lses[1:]:
        highest = jnp.maximum(highest, lse)
    # The result does not depend on the shift, so no gradient goes through it; -inf would make it -inf - -inf.
    shift = jax.lax.stop_gradient(jnp.where(highest == -jnp.inf, 0.0, highest))
    total = jnp.zeros(shape[:-1], jnp.float32)
    weighted = jnp.zeros(shape, jnp.float32)
    for out, lse in zip(outs, lses, strict=True):
        weight = jnp.exp(lse - shift)
        total += weight
        weighted += weight[..., None] * jnp.where((lse == -jnp.inf)[..., None], 0.0, out.astype(jnp.float32))
    seen = highest != -jnp.inf
    total = jnp.where(seen, total, 1.0)
    return (weighted / total[..., None]).astype(dtype), jnp.where(seen, shift + jnp.log(total), -jnp.inf)
