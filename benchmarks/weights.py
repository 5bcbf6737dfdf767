"""K and V weighted by what attention does with them: a change of a key by the queries that read it, of a value by the
output projection. Both in units of what the layer adds to the residual stream.

To first order a change δk of a token's key changes a head's output by p (q·δk) W_o (v − v̄), one of its value by
p W_o δv, p being the token's attention. So keys are measured by Σ_n σ_n² E[q qᵀ], values by Σ_n W_o W_oᵀ over the
heads n that read them, σ_n² being the mean of |W_o (v − v̄)|² over the chunk's tokens. Under an MLA the latent is key
and value both, in the absorbed frame.
"""

from typing import Any

import numpy as np

from models.blocks.attention import GroupedQuery

RIDGE = 1e-2
"""Of the mean weight, added to every direction: what no query of the chunk read may be read by a question's."""


def frames(vlm: Any, moments: np.ndarray, kv: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric square roots of the features' weights, and their inverses [E, L, F, F].

    Args:
        vlm: the model.
        moments: of the scaled, un-rotated queries [E, L, N, D, D]; of an MLA absorbed.
        kv: the pages' [E, L, T, ·].
        length: valid tokens.
    """
    config = vlm.config.text
    attention = config.attention
    layers = config.num_hidden_layers
    own = [vlm.params["text"][name]["attn"] for name in config.stacks]
    out = np.concatenate([np.asarray(part["o"]["w"], np.float64) for part in own])
    out = out.reshape(layers, attention.heads, -1, out.shape[-1])
    values = np.asarray(kv.free, np.float64)[:, :, :length]
    if isinstance(attention, GroupedQuery):
        groups = attention.kv_heads
        shared = attention.heads // attention.kv_heads
        projected = (out @ out.swapaxes(-1, -2)).reshape(layers, groups, shared, *[attention.head_dim] * 2)
        values = values.reshape(*values.shape[:3], groups, -1).swapaxes(2, 3)
        spread = (_covariance(values)[:, :, :, None] * projected[None]).sum((-1, -2))
        moments = moments.reshape(*moments.shape[:2], groups, shared, *moments.shape[3:])
        keys = (moments * spread[..., None, None]).sum(3)
        blocks = [*np.moveaxis(keys, 2, 0)]
        blocks += [np.broadcast_to(block, keys[:, :, 0].shape) for block in np.moveaxis(projected.sum(2), 1, 0)]
    else:
        rank = attention.latent_dim
        up = np.concatenate([np.asarray(part["kv_b"]["w"], np.float64) for part in own])
        up = up.reshape(layers, rank, attention.heads, -1)[..., attention.nope_dim :].swapaxes(1, 2) @ out
        projected = up @ up.swapaxes(-1, -2)
        spread = (_covariance(values)[:, :, None] * projected[None]).sum((-1, -2))
        keys = (moments * spread[..., None, None]).sum(2)
        blocks = [keys[..., rank:, rank:], keys[..., :rank, :rank] + projected.sum(1)[None]]
    return _roots(blocks)


def _covariance(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(-2, keepdims=True)
    return centred.swapaxes(-1, -2) @ centred / values.shape[-2]


def _roots(blocks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    width = sum(block.shape[-1] for block in blocks)
    root = np.zeros((*blocks[0].shape[:2], width, width))
    inverse = root.copy()
    start = 0
    for block in blocks:
        size = block.shape[-1]
        here = slice(start, start + block.shape[-1])
        mean = np.trace(block, axis1=-2, axis2=-1)[..., None, None] / size
        strengths, basis = np.linalg.eigh(block + RIDGE * mean * np.eye(size))
        strengths = np.sqrt(strengths)[..., None, :]
        root[..., here, here] = (basis * strengths) @ basis.swapaxes(-1, -2)
        inverse[..., here, here] = (basis / strengths) @ basis.swapaxes(-1, -2)
        start += size
    return root, inverse
