"""How far results are apart."""

import jax
import numpy as np

ROUNDING = 1e-5


def far(a, b):
    """How far two pytrees of floats are apart, relative to the second's largest value."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.abs(np.float64(x) - np.float64(y)).max() / max(np.abs(np.float64(y)).max(), 1e-9)) for x, y in pairs
    )
