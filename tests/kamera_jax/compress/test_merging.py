"""Rows that take in others: LOOK-M's merges against float64, and what must hold of each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.kv import KV
from kamera_jax.merging import MERGES, merged, nearest

LAYERS = 2
ROWS = 16
LENGTH = 13
KEPT = np.asarray([0, 3, 7, 12, -1, -1], np.int32)
SHAPES = {"gqa": (16, 16, 2), "mha": (32, 32, 4), "mla": (8, 12, 1)}


def kv_of(rot, free, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return KV(*(jnp.asarray(rng.standard_normal((LAYERS, ROWS, width)), dtype) for width in (rot, free)))


def by_hand(kv, heads, how):
    """The formulas, token by token."""
    rows = KEPT[KEPT >= 0]
    rot, free = (np.float64(x).reshape(LAYERS, ROWS, heads, -1) for x in (kv.rot, kv.free))
    keys = np.concatenate([free, rot], -1) if rot.shape[-1] != free.shape[-1] else rot
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    gone = [token for token in range(LENGTH) if token not in rows]
    out = {"rot": rot[:, rows].copy(), "free": free[:, rows].copy()}
    for layer in range(LAYERS):
        cosine = np.einsum("thd,khd->htk", unit[layer], unit[layer, rows])
        closest = cosine.max(-1)[:, gone].mean(0)
        taken = [
            token for token, mean in zip(gone, closest, strict=True) if how != "weighted" or mean >= closest.mean()
        ]
        for head in range(heads):
            into = {row: [t for t in taken if cosine[head, t].argmax() == row] for row in range(len(rows))}
            for name, part in (("rot", rot), ("free", free)):
                if how == "values" and name == "rot":
                    continue
                for row, tokens in into.items():
                    own = part[layer, rows[row], head]
                    total = own.copy()
                    for token in tokens:
                        other = part[layer, token, head]
                        total += {
                            "average": other,
                            "weighted": cosine[head, token, row] * other,
                        }.get(how, (other + own) / 2)
                    out[name][layer, row, head] = total / (1 + len(tokens))
    return KV(*(out[name].reshape(LAYERS, len(rows), -1) for name in ("rot", "free")))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", MERGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_merges_are_their_formulas(shape, how, dtype):
    *widths, heads = SHAPES[shape]
    kv = kv_of(*widths, dtype)
    ours = merged(kv, KEPT, LENGTH, heads=heads, how=how)
    wanted = by_hand(kv, heads, how)
    for own, true, given in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), jax.tree.leaves(kv), strict=True):
        assert own.dtype == given.dtype and own.shape == (LAYERS, len(KEPT), given.shape[-1])
        np.testing.assert_allclose(np.float64(own)[:, :4], true, atol=1e-5 if dtype == "float32" else 2e-2)
        assert not np.asarray(own[:, 4:], np.float32).any()


@pytest.mark.parametrize("how", MERGES)
def test_nothing_left_out_is_nothing_changed(how):
    kv = kv_of(16, 16)
    rows = np.arange(ROWS, dtype=np.int32)
    rows[LENGTH:] = -1
    ours = merged(kv, rows, LENGTH, heads=2, how=how)
    for own, given in zip(jax.tree.leaves(ours), jax.tree.leaves(kv), strict=True):
        np.testing.assert_array_equal(own[:, :LENGTH], given[:, :LENGTH])


@pytest.mark.parametrize("how", MERGES)
def test_equal_rows_merge_to_themselves(how):
    """Each token is a copy of a kept one."""
    kept = KEPT[KEPT >= 0]
    copies = np.random.default_rng(1).integers(0, len(kept), ROWS)
    copies[kept] = np.arange(len(kept))
    kv = jax.tree.map(lambda leaf: leaf[:, kept[copies]], kv_of(16, 16))
    ours = merged(kv, KEPT, LENGTH, heads=2, how=how)
    for own, given in zip(jax.tree.leaves(ours), jax.tree.leaves(kv), strict=True):
        np.testing.assert_allclose(own[:, : len(kept)], given[:, kept], atol=1e-5)


def test_every_token_goes_to_one_row():
    """Σ (1 + n_j) is the number of tokens, and padding goes nowhere."""
    keys = jnp.asarray(np.random.default_rng(2).standard_normal((3, ROWS, 8)), jnp.float32)
    into, cosine = nearest(keys, jnp.asarray(KEPT), LENGTH)
    into = np.asarray(into)
    for head in into:
        counts = np.bincount(head, minlength=len(KEPT) + 1)[: len(KEPT)]
        assert counts[4:].sum() == 0 and (1 + counts[:4]).sum() == LENGTH
    assert (into[:, LENGTH:] == len(KEPT)).all() and (into[:, [0, 3, 7, 12]] == len(KEPT)).all()
    assert np.abs(np.asarray(cosine)).max() <= 1 + 1e-6


@pytest.mark.parametrize("how", ["average", "pivot", "values"])
def test_merging_brings_answers_nearer_where_keys_lie_in_clusters(how):
    """KL to what all rows say, of readers that look for one cluster each: it falls against the same rows unmerged."""
    clusters = 4
    each = 12
    width = 16
    rows = np.arange(0, clusters * each, each // 2, dtype=np.int32)  # as many of each
    after = []
    before = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((2, clusters, width)) * 2
        parts = [np.repeat(part, each, 0) + 0.5 * rng.standard_normal((clusters * each, width)) for part in centres]
        kv = KV(*(jnp.asarray(part[None], jnp.float32) for part in parts))
        read = partial(said, centres[0], rng.standard_normal((width, 32)))
        after.append(kl(read(kv), read(merged(kv, rows, clusters * each, heads=1, how=how))))
        before.append(kl(read(kv), read(KV(kv.rot[:, rows], kv.free[:, rows]))))
    assert np.mean(after) < 0.9 * np.mean(before)


def said(queries, vocabulary, kv):
    """Log-probabilities of what the queries read of one head."""
    keys, values = (np.float64(part)[0] for part in (kv.rot, kv.free))
    scores = queries @ keys.T / 4
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    logits = (weights / weights.sum(-1, keepdims=True)) @ values @ vocabulary
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def kl(true, other):
    return float((np.exp(true) * (true - other)).sum(-1).mean())


def test_it_goes_through_transformations():
    """By chunks at once it is what it is one by one."""
    kvs = [kv_of(16, 16, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *kvs)
    together = jax.vmap(lambda kv: merged(kv, KEPT, LENGTH, heads=2, how="pivot"))(stacked)
    for place, kv in enumerate(kvs):
        alone = merged(kv, KEPT, LENGTH, heads=2, how="pivot")
        np.testing.assert_allclose(together.rot[place], alone.rot, atol=1e-6)
        np.testing.assert_allclose(together.free[place], alone.free, atol=1e-6)
