"""Attention shared by the backbones: one sequence, explicit mask, f32 softmax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""Finite, so that a row with nothing to see (padding) stays finite too."""


def grouped_attention(
    q: Float[Array, "T N D"],
    k: Float[Array, "S G D"],
    v: Float[Array, "S G Dv"],
    mask: Bool[Array, "T S"],
    scale: float,
) -> tuple[Float[Array, "T N*Dv"], Float[Array, "G N//G T S"]]:
    """Grouped-query attention; MHA is G = N.

    Args:
        q: rotated queries.
        k, v: rotated keys and values.
        mask: True where a query sees a key.
        scale: factor on the scores.

    Returns:
        The output with heads concatenated, and the f32 probabilities (dead code unless used).
    """
    tokens, heads, _ = q.shape
    groups = k.shape[1]
    # Heads lead and a group's queries share one axis: plain batched matrix products, which every backend runs well.
    q = q.reshape(tokens, groups, heads // groups, -1).transpose(1, 2, 0, 3).reshape(groups, -1, q.shape[-1])
    scores = jnp.einsum("gqd,sgd->gqs", q, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(groups, -1, tokens, k.shape[0])
    probabilities = jax.nn.softmax(jnp.where(mask[None, None], scores, MASKED), axis=-1)
    weights = probabilities.astype(v.dtype).reshape(groups, -1, k.shape[0])
    out = jnp.einsum("gqs,sgd->gqd", weights, v).reshape(groups, heads // groups, tokens, -1)
    return out.transpose(2, 0, 1, 3).reshape(tokens, -1), probabilities
