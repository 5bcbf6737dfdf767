"""What attention reads, and what it gives."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30
"""Finite, so that a row with nothing to see (padding) stays finite too."""


class Keys(NamedTuple):
    """One part of the keys, and which queries see them.

    Attributes:
        k: rotated keys [S, G, D].
        v: values [S, G, Dv].
        seen: which keys are seen at all, bool[S].
        before: how many of the S keys, from the first on, each query sees at most, i32[T]; None for all of them. It is
            numpy's where it is known while a program is traced: kernels serve 1, 2, …, T (causality) and no others.
        owners: which of n owners each key is of, bool[S, n], where mass is asked for by owner.
        bias: what is added to the scores of each key, f32[S]: of one that stands for n equal keys log n; None for 0.
    """

    k: Float[Array, "S G D"]
    v: Float[Array, "S G Dv"]
    seen: Bool[Array, " S"]
    before: Int[Array | np.ndarray, " T"] | None = None
    owners: Bool[Array, "S n"] | None = None
    bias: Float[Array, " S"] | None = None


class AttentionOutput(NamedTuple):
    """What `attention` computes.

    Attributes:
        out: with heads concatenated [T, N*Dv], in the dtype of the values.
        lse: log-sum-exp of the scores, f32[T, N].
        mass: the attention that each key of all parts receives, f32[S], or each owner, f32[n]; None where no weights
            were given.
    """

    out: jax.Array
    lse: jax.Array
    mass: jax.Array | None
