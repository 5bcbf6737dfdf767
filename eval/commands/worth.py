"""After how many reuses a patch has paid, computed from FLOPs: no clock has a part in it."""

from collections.abc import Iterable
from typing import Any

import numpy as np

import kamera_jax as kj
from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.forward import preamble_chunk
from kamera_jax.kv import bucket
from kamera_jax.patch.fitting import SHARE, component_bytes
from kamera_jax.patch.size import default_width
from kamera_jax.patch.subspace import OVERSAMPLED, SMALL, STEPS

HOW = (
    "Computed from FLOPs, behind another chunk of that length: a patch takes a\n"
    "prefill of its chunk and the fit; a reuse rotates the keys and adds the patch,\n"
    "and saves a prefill. With --measure they are timed on this machine instead."
)
"""How `computed` comes to its numbers, in lines that fit a terminal."""

_EIGEN = 9.0
"""FLOPs of the eigenvectors of a symmetric matrix of n rows, over n^3 (Golub and Van Loan, section 8.3)."""


def computed(vlm: Backbone, chunk_tokens: int) -> dict[str, Any]:
    """FLOPs of a chunk's steps behind the preamble and another chunk of its length, with a patch of the default size.

    Args:
        vlm: the model.
        chunk_tokens: of the chunk.

    Returns:
        ``tokens``, ``form_flops``, ``apply_flops``, ``reprefill_flops``, and ``break_even``: form ÷ (re-prefill −
        apply), the reuses after which a patch has paid; None where a prefill costs no more than a reuse.
    """
    before = int(preamble_chunk(vlm).length) + chunk_tokens
    forward = forward_flops(vlm, chunk_tokens, before)
    rank = default_rank(vlm.spec, chunk_tokens)
    form = forward + fit_flops(vlm.spec, chunk_tokens)
    apply = apply_flops(vlm.spec, chunk_tokens, rank)
    return {
        "tokens": chunk_tokens,
        "form_flops": form,
        "apply_flops": apply,
        "reprefill_flops": forward,
        "break_even": form / (forward - apply) if forward > apply else None,
    }


def default_rank(spec: kj.KVSpec, tokens: int) -> float:
    """Components of a layer, in the mean, of a patch of the default size."""
    one = component_bytes(tokens, spec.rot_dim + spec.free_dim, 1)
    return max(SHARE * spec.token_bytes * tokens // one, 1.0) / spec.layers


def apply_flops(spec: kj.KVSpec, tokens: int, rank: float) -> float:
    """FLOPs of writing a chunk: six for each pair of features that is rotated, the patch's product, and its sum."""
    features = spec.rot_dim + spec.free_dim
    return spec.layers * tokens * (3.0 * spec.rot_dim + 2.0 * rank * features + features)


def fit_flops(spec: kj.KVSpec, tokens: int) -> float:
    """FLOPs of the fit; see `kamera_jax.patch.subspace`: products with the change, and small decompositions."""
    features = spec.rot_dim + spec.free_dim
    least = min(tokens, features)
    count = default_width(spec.layers, bucket(tokens), features, np.dtype(spec.dtype).itemsize)
    width = count + max(OVERSAMPLED, count // 2)
    if least <= max(SMALL, 3 * width):
        return spec.layers * (4.0 * tokens * features * least + _EIGEN * least**3)

    def orthonormal(rows: int) -> float:
        return 2 * (4.0 * rows * width**2 + _EIGEN * width**3)

    products = (2 * STEPS + 2) * 2.0 * tokens * features * width
    turned = STEPS * (orthonormal(tokens) + orthonormal(features)) + orthonormal(tokens)
    within = 2.0 * width**2 * (tokens + 2 * features) + _EIGEN * width**3
    return spec.layers * (products + turned + within)


def rows(vlm: Backbone, tokens: Iterable[int]) -> list[dict[str, Any]]:
    """`computed` for the longest chunk of each padded length, in their order."""
    longest: dict[int, int] = {}
    for count in sorted(tokens):
        longest[bucket(count)] = count
    return [computed(vlm, count) for count in longest.values()]
