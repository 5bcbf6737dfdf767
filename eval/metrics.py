"""What is measured: accuracy, KL of the answer, and the share of the KL that a method closes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def kl(reference: Float[Array, "*B V"], method: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """KL(reference ‖ method) in nats between next-token distributions given as logits, f32, whole vocabulary."""
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(method)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def eta(reference: Float[Array, "*B V"], method: Float[Array, "*B V"], baseline: Float[Array, "*B V"]) -> float:
    """η = 1 − mean KL(reference ‖ method) / mean KL(reference ‖ baseline); see docs/design.md, "Words"."""
    return float(1 - kl(reference, method).mean() / kl(reference, baseline).mean())


def accuracy(logits: Float[Array, "*B V"], answers: np.ndarray) -> float:
    """Share of first answer tokens that are right."""
    return float(np.mean(np.asarray(logits.argmax(-1)) == answers))
