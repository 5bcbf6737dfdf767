"""What rows are worth, against float64 and by what must hold of any such score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.compress import scores
from kamera_jax.kv import KV, KVSpec
from kamera_jax.rope import RopeSpec

LAYERS = 2
ROWS = 16
LENGTH = 13
INV = (1.0, 0.3, 0.1, 0.03)
ROPE = RopeSpec(INV, 8)
SPECS = {
    "gqa": KVSpec(LAYERS, 16, 16, 2, ROPE, "float32", "x"),
    "mha": KVSpec(LAYERS, 32, 32, 4, RopeSpec(INV, 8, layout="interleaved"), "float32", "x"),
    "mla": KVSpec(LAYERS, 8, 12, 1, ROPE, "float32", "x"),
}
QUERY_HEADS = 4


def kv_of(spec, dtype, seed=0):
    rng = np.random.default_rng(seed)
    rot, free = (
        jnp.asarray(rng.standard_normal((LAYERS, ROWS, width)), dtype) for width in (spec.rot_dim, spec.free_dim)
    )
    return KV(rot.at[:, LENGTH:].set(0), free.at[:, LENGTH:].set(0))


def queries_of(spec, seed=1, count=ROWS):
    width = 8 if spec.free_dim == spec.rot_dim else 20
    return jnp.asarray(np.random.default_rng(seed).standard_normal((LAYERS, count, QUERY_HEADS, width)), jnp.float32)


def positions_of(count=ROWS, start=0):
    return jnp.arange(start, start + count, dtype=jnp.float32)[None]


def true_heads(spec, kv):
    rot, free = (np.float64(x).reshape(LAYERS, ROWS, spec.heads, -1)[:, :LENGTH] for x in (kv.rot, kv.free))
    return (np.concatenate([free, rot], -1), free) if spec.rot_dim != spec.free_dim else (rot, free)


def true_turn(x, at, layout):
    """The last 8 features of heads [..., T, H, D] rotated, as complex numbers."""
    x = np.float64(x)
    still, own = np.split(x, [x.shape[-1] - 8], axis=-1)
    first, second = (own[..., :4], own[..., 4:]) if layout == "half" else (own[..., ::2], own[..., 1::2])
    turned = (first + 1j * second) * np.exp(1j * np.multiply.outer(np.float64(at), INV))[:, None, :]
    if layout == "half":
        own = np.concatenate([turned.real, turned.imag], -1)
    else:
        own = np.stack([turned.real, turned.imag], -1).reshape(own.shape)
    return np.concatenate([still, own], -1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def by_keys(name, keys, length):
    if name.startswith("knorm"):
        return norms(keys, length, name == "knorm:large")
    return {"keydiff": differences, "leverage": leverages}[name](keys, length)


differences = jax.jit(scores.key_difference)
leverages = jax.jit(scores.leverage)
norms = jax.jit(lambda keys, length, large: scores.key_norm(keys, length, large=large))


def true_by_keys(name, keys):
    """Of keys f64[T, D] of one head."""
    if name == "keydiff":
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        mean = unit.mean(0)
        return -unit @ mean / np.linalg.norm(mean)
    if name == "leverage":
        x = keys - keys.mean(0)
        second = x.T @ x
        return np.diag(
            x @ np.linalg.inv(second + scores.RIDGE * np.trace(second) / len(second) * np.eye(len(second))) @ x.T
        )
    norms = np.linalg.norm(keys, axis=1)
    return (1 if name == "knorm:large" else -1) * norms / norms.mean()


BY_KEYS = ("keydiff", "leverage", "knorm:small", "knorm:large")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BY_KEYS)
def test_scores_of_keys_are_their_formulas(spec, name, dtype):
    kv = kv_of(spec, dtype)
    keys, values = scores.heads_of(kv, spec.heads)
    true, true_values = true_heads(spec, kv)
    np.testing.assert_array_equal(values[:, :LENGTH], true_values)
    ours = np.asarray(by_keys(name, keys, LENGTH))
    assert (ours[..., LENGTH:] == -np.inf).all()
    for layer in range(LAYERS):
        for head in range(spec.heads):
            np.testing.assert_allclose(ours[layer, head, :LENGTH], true_by_keys(name, true[layer, :, head]), atol=2e-4)


@pytest.mark.parametrize("name", BY_KEYS)
def test_scores_go_with_the_rows_whatever_their_order_and_number(name):
    spec = SPECS["gqa"]
    keys, _ = scores.heads_of(kv_of(spec, "float32"), spec.heads)
    keys = keys[:, :LENGTH]
    ours = np.asarray(by_keys(name, keys, LENGTH))
    order = np.random.default_rng(2).permutation(LENGTH)
    np.testing.assert_allclose(by_keys(name, keys[:, order], LENGTH), ours[..., order], atol=1e-4)
    twice = np.asarray(by_keys(name, jnp.concatenate([keys, keys], axis=1), 2 * LENGTH))
    np.testing.assert_allclose(twice[..., :LENGTH], twice[..., LENGTH:], atol=1e-5)
    np.testing.assert_array_equal(np.argsort(twice[..., :LENGTH]), np.argsort(ours))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["max", "sum"])
def test_what_queries_read_is_softmax_over_the_chunks_rows(spec, kind, dtype):
    """The replay's largest share of each row, and the sum over the chunk's own queries, which see what is before."""
    kv = kv_of(spec, dtype)
    start = 20 if kind == "max" else 0
    queries = queries_of(spec)
    given = (queries, LENGTH, positions_of(start=start), kv, positions_of(), LENGTH)
    ours = np.asarray(scores.received(*given, spec=spec, causal=kind == "sum", how=kind))
    keys, _ = true_heads(spec, kv)
    group = QUERY_HEADS // spec.heads
    for layer in range(LAYERS):
        asked = true_turn(queries[layer, :LENGTH], np.arange(LENGTH) + start, spec.rope.layout)
        rows = true_turn(keys[layer], np.arange(LENGTH), spec.rope.layout)
        for head in range(spec.heads):
            logits = np.einsum("qnd,td->nqt", asked[:, head * group : (head + 1) * group], rows[:, head])
            if kind == "sum":
                logits[:, np.triu(np.ones((LENGTH, LENGTH), bool), 1)] = -np.inf
            shares = softmax(logits)
            wanted = shares.max((0, 1)) if kind == "max" else shares.sum((0, 1))
            np.testing.assert_allclose(ours[layer, head, :LENGTH], wanted, rtol=1e-4, atol=1e-6)
    assert (ours[..., LENGTH:] == -np.inf).all()


def test_a_row_that_stands_there_twice_is_worth_the_same_twice():
    spec = SPECS["gqa"]
    kv = jax.tree.map(lambda leaf: leaf.at[:, 5].set(leaf[:, 4]), kv_of(spec, "float32"))
    positions = positions_of().at[:, 5].set(4)
    ours = scores.received(queries_of(spec), LENGTH, positions_of(start=20), kv, positions, LENGTH, spec=spec)
    np.testing.assert_array_equal(ours[..., 4], ours[..., 5])
    chosen = scores.best(scores.one_choice(ours), np.zeros(ROWS, bool), ROWS, LENGTH)
    np.testing.assert_array_equal(chosen, np.arange(LENGTH))  # padding goes first


def test_statistics_of_one_query_at_one_offset_are_that_query(spec):
    """Without spread and with one offset: expected attention is its softmax, TriAttention its product."""
    kv = kv_of(spec, "float32")
    one = queries_of(spec, count=1)
    queries = jnp.broadcast_to(one, (LAYERS, ROWS, QUERY_HEADS, one.shape[-1]))
    given = (queries, LENGTH, kv, positions_of(), LENGTH, jnp.full((1, 1), 21.0))
    keys, values = true_heads(spec, kv)
    group = QUERY_HEADS // spec.heads
    ours = {how: np.asarray(scores.foreseen(*given, spec=spec, how=how)) for how in ("expected", "tri")}
    for layer in range(LAYERS):
        asked = true_turn(one[layer], [21], spec.rope.layout)[0].reshape(spec.heads, group, -1)
        rows = true_turn(keys[layer], np.arange(LENGTH), spec.rope.layout)
        logits = np.einsum("hgd,thd->hgt", asked, rows)
        shares = softmax(logits).mean(1) * np.linalg.norm(values[layer], axis=-1).T
        wanted = shares / shares.sum(-1, keepdims=True)
        np.testing.assert_allclose(ours["expected"][layer, :, :LENGTH], wanted, rtol=2e-4)
        standard = (logits - logits.mean(-1, keepdims=True)) / logits.std(-1, keepdims=True)
        np.testing.assert_allclose(ours["tri"][layer, :, :LENGTH], standard.mean(1), atol=2e-4)


def test_statistics_of_many_queries_are_their_formulas():
    """In float64: the mean rotation over offsets, the covariance of queries, and pairs as complex numbers."""
    spec = SPECS["gqa"]
    kv = kv_of(spec, "float32")
    queries = queries_of(spec)
    offsets = np.arange(20.0, 29.0)
    given = (queries, LENGTH, kv, positions_of(), LENGTH, jnp.asarray(offsets[None], jnp.float32))
    keys, values = true_heads(spec, kv)
    ours = {how: np.asarray(scores.foreseen(*given, spec=spec, how=how)) for how in ("expected", "tri")}
    turn = np.mean(
        [np.stack([true_turn(axis[None, None], [each], "half")[0, 0] for axis in np.eye(8)], 1) for each in offsets], 0
    )
    for layer in range(LAYERS):
        own = np.float64(queries[layer, :LENGTH])
        rows = true_turn(keys[layer], np.arange(LENGTH), "half")
        shares = np.zeros((2, 2, LENGTH))
        products = np.zeros((2, 2, LENGTH))
        for head in range(QUERY_HEADS):
            mean = own[:, head].mean(0)
            covariance = (own[:, head] - mean).T @ (own[:, head] - mean) / LENGTH
            k = rows[:, head // 2]
            logits = k @ turn @ mean + np.einsum("td,de,te->t", k @ turn, covariance, k @ turn) / 2
            shares[head // 2, head % 2] = softmax(logits)
            pairs = own[:, head, :4] + 1j * own[:, head, 4:]
            lengths = np.abs(keys[layer, :, head // 2, :4] + 1j * keys[layer, :, head // 2, 4:])
            apart = np.abs(pairs).mean(0) - np.abs(pairs.mean(0))
            product = k @ turn @ mean + lengths @ apart
            products[head // 2, head % 2] = (product - product.mean()) / product.std()
        wanted = shares.mean(1) * np.linalg.norm(values[layer], axis=-1).T
        np.testing.assert_allclose(
            ours["expected"][layer, :, :LENGTH], wanted / wanted.sum(-1, keepdims=True), rtol=1e-3
        )
        np.testing.assert_allclose(ours["tri"][layer, :, :LENGTH], products.mean(1), atol=5e-4)


def test_the_sign_of_norms_is_that_of_what_is_read():
    keys, _ = scores.heads_of(kv_of(SPECS["gqa"], "float32"), 2)
    for large in (True, False):
        read = jnp.exp(scores.key_norm(keys, LENGTH, large=large))
        assert (scores.norms_read(keys, read, LENGTH) > 0.5) == large
        assert (scores.norms_read(keys, read, LENGTH) < -0.5) != large


def test_the_best_are_kept_in_order():
    worth = np.asarray([0.1, 0.9, 0.5, 0.5, np.nan, 0.2, 5.0])
    always = np.asarray([True, False, False, False, False, False, True])
    assert scores.best(worth, always, 6, 3).tolist() == [0, 1, 2]
    assert scores.best(worth, always, 6, 5).tolist() == [0, 1, 2, 3, 5]
    assert scores.best(worth, always, 6, 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert scores.best(worth, always, 7, 1).tolist() == [0, 6]
