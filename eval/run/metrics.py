"""Accuracy, KL of the answer, the share of the KL that a method closes (η), and confidence intervals."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kamera_jax.guard.fidelity import kl


def eta(reference: Float[Array, "*B V"], method: Float[Array, "*B V"], baseline: Float[Array, "*B V"]) -> float:
    """η = 1 − mean KL(reference ‖ method) / mean KL(reference ‖ baseline); see docs/design.md, "Words"."""
    return float(1 - kl(reference, method).mean() / kl(reference, baseline).mean())


def nll(logits: Float[Array, "*B V"], tokens: np.ndarray) -> Float[Array, "*B"]:
    """Negative log-likelihood of one token in each place, in nats."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_p, jnp.asarray(tokens, jnp.int32)[..., None], axis=-1)[..., 0]


def accuracy(logits: Float[Array, "*B V"], answers: np.ndarray) -> float:
    """Share of first answer tokens that are right."""
    return float(np.mean(np.asarray(logits.argmax(-1)) == answers))


def mean_and_error(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """A mean and its standard error, values of one cluster not being independent (Liang and Zeger, 1986).

    Args:
        values: one for each sample.
        clusters: one for each sample; samples of one context have the same. The error of a single cluster is NaN.

    Raises:
        ValueError: no values, or not one cluster for each.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"a mean needs values, and a cluster for each; got {len(values)} and {len(clusters)}")
    mean = float(np.mean(values))
    sums: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(value) - mean
    if len(sums) == 1:
        return mean, math.nan
    spread = math.fsum(each * each for each in sums.values()) * len(sums) / (len(sums) - 1)
    return mean, math.sqrt(spread) / len(values)


def eta_and_error(kl: Sequence[float], baseline: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """η of samples and its standard error, that of a ratio of sums over clusters (linearised).

    Args:
        kl: of a method, for each sample.
        baseline: the KL that it is a share of.
        clusters: one for each sample; see `mean_and_error`. The error of a single cluster is NaN.

    Returns:
        Both NaN where the baseline loses nothing.

    Raises:
        ValueError: no samples, or not as many of each.
    """
    if not len(kl) or not len(kl) == len(baseline) == len(clusters):
        raise ValueError(
            f"η needs samples, each with a KL, one of the baseline and a cluster; got {len(kl)}, {len(baseline)} and "
            f"{len(clusters)}"
        )
    whole = math.fsum(baseline)
    if whole <= 0:
        return math.nan, math.nan
    share = math.fsum(kl) / whole
    sums: dict[str, float] = {}
    for ours, theirs, cluster in zip(kl, baseline, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + ours - share * theirs
    if len(sums) == 1:
        return 1 - share, math.nan
    spread = math.fsum(each * each for each in sums.values()) * len(sums) / (len(sums) - 1)
    return 1 - share, math.sqrt(spread) / whole


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided confidence interval of a share (Clopper and Pearson, 1934).

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(
            f"a share needs at least one trial and no more successes than trials; got {successes}/{trials}"
        )
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else 1 - _bisect(lambda p: binomial_tail(trials - successes, trials, p) - tail)
    high = 1.0 if successes == trials else _bisect(lambda p: binomial_tail(successes, trials, p) - tail)
    return low, high


def _bisect(falling: Callable[[float], float]) -> float:
    low = 0.0
    high = 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return middle


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """P(X ≤ successes) of a binomial variable, summed in logarithms."""
    log_p = math.log(probability)
    log_q = math.log1p(-probability)
    terms = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(successes + 1)
    ]
    highest = max(terms)
    return math.exp(highest) * math.fsum(math.exp(term - highest) for term in terms)
