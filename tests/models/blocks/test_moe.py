"""The experts against a dense float64 loop, and the router against a restatement by sorting."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks import int8, moe
from models.blocks.moe import Experts, mixture, route
from models.blocks.params import init_params, is_info, stacked

WIDTH = 24
INNER = 10


def weights(rng, count, width=WIDTH, inner=INNER):
    shapes = {"gate": (count, width, inner), "up": (count, width, inner), "down": (count, inner, width)}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def by_loop(experts, x, chosen, given):
    """Each token through its experts, one at a time, in f64."""
    experts = {k: np.float64(v) for k, v in experts.items()}
    x = np.float64(x)
    given = np.float64(given)
    out = np.zeros_like(x)
    for t, k in np.ndindex(chosen.shape):
        gate, up, down = (experts[name][chosen[t, k]] for name in ("gate", "up", "down"))
        gated = x[t] @ gate
        out[t] += given[t, k] * ((gated / (1 + np.exp(-gated)) * (x[t] @ up)) @ down)
    return out


def dense(experts, x, chosen, given):
    """Every token through every expert: the same function, whose gradients jax gives by the product rule alone."""
    share = (jax.nn.one_hot(chosen, experts["gate"].shape[0]) * given[..., None]).sum(1)
    hidden = jax.nn.silu(jnp.einsum("te,xei->txi", x, experts["gate"])) * jnp.einsum("te,xei->txi", x, experts["up"])
    return jnp.einsum("txi,xie,tx->te", hidden, experts["down"], share)


def case(name):
    """Experts, x, chosen and weights of T tokens."""
    tokens, count, per_token, kind = CASES[name]
    rng = np.random.default_rng(sorted(CASES).index(name))
    pool = {"random": np.arange(count), "few": np.array([1, count - 1]), "one": np.array([count // 2])}[kind]
    chosen = np.stack([rng.permutation(pool)[:per_token] for _ in range(tokens)]).astype(np.int32)
    x = rng.normal(size=(tokens, WIDTH)).astype(np.float32)
    return weights(rng, count), x, chosen, rng.uniform(0.1, 1, chosen.shape).astype(np.float32)


CASES = {
    "one token": (1, 8, 2, "random"),
    "k = 1": (17, 5, 1, "random"),
    "every expert": (9, 4, 4, "random"),
    "empty experts": (30, 9, 2, "few"),
    "all to one": (70, 6, 1, "one"),
    "many": (130, 3, 2, "random"),
    "more experts than rows": (3, 64, 2, "random"),
}
"""Tokens, experts, experts per token, and which of them are chosen from."""


def assert_close(given, expected, bound=1e-5):
    given = np.asarray(given)
    expected = np.asarray(expected)
    assert given.shape == expected.shape
    error = np.abs(given - expected).max() / np.abs(expected).max()
    assert error <= bound, error


@pytest.mark.parametrize("name", CASES)
def test_grouped_product_equals_a_loop_in_f64(name):
    given = jax.jit(moe._routed)(*case(name))
    assert given.dtype == jnp.float32
    assert_close(given, by_loop(*case(name)))


@pytest.mark.parametrize("name", ["k = 1", "empty experts", "many"])
def test_the_path_of_other_platforms_is_the_same_function(name, monkeypatch):
    def default_only(*arguments, default, **platforms):
        return default(*arguments)

    blocks = jax.jit(moe._by_expert)(*case(name))
    monkeypatch.setattr(jax.lax, "platform_dependent", default_only)
    # A function of its own: jit would give back the program of the other path.
    ragged = jax.jit(lambda *arguments: moe._by_expert(*arguments))
    assert "ragged_dot" in str(ragged.trace(*case(name)).jaxpr)
    assert_close(ragged(*case(name)), by_loop(*case(name)))
    assert_close(blocks, ragged(*case(name)))


def test_blocks_stay_small_against_what_an_expert_gets():
    for rows, count in ((1, 64), (512, 8), (4096, 8), (2**20, 8), (24576, 64)):
        size = moe._block(rows, count)
        assert 8 <= size <= 512 and (size == 8 or size * 2 * count <= rows)


def test_a_batch_equals_its_sequences(tokens=33):
    rng = np.random.default_rng(0)
    experts = weights(rng, 6)
    x = rng.normal(size=(5, tokens, WIDTH)).astype(np.float32)
    chosen = np.argsort(rng.random((5, tokens, 6)))[..., :2].astype(np.int32)
    given = rng.uniform(size=chosen.shape).astype(np.float32)
    x, chosen, given = map(jnp.asarray, (x, chosen, given))
    batch = jax.jit(jax.vmap(moe._routed, in_axes=(None, 0, 0, 0)))(experts, x, chosen, given)
    one = jax.jit(moe._routed)
    assert_close(batch, np.stack([one(experts, *sequence) for sequence in zip(x, chosen, given, strict=True)]))
    # What the sequences have in common need not be batched, and batches nest.
    same = jax.jit(jax.vmap(lambda x: moe._routed(experts, x, chosen[0], given[0])))(x)
    assert_close(same, np.stack([one(experts, sequence, chosen[0], given[0]) for sequence in x]))
    nested = jax.jit(jax.vmap(jax.vmap(moe._routed, in_axes=(None, 0, 0, 0)), in_axes=(None, 0, 0, 0)))
    pairs = jax.tree.map(lambda leaf: leaf[:4].reshape(2, 2, *leaf.shape[1:]), (x, chosen, given))
    assert_close(nested(experts, *pairs).reshape(4, tokens, WIDTH), batch[:4])


@pytest.mark.parametrize("name", ["k = 1", "every expert", "empty experts", "more experts than rows"])
def test_gradients_equal_those_of_the_dense_sum(name):
    experts, x, chosen, given = case(name)
    towards = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def loss(function):
        return lambda experts, x, given: (function(experts, x, chosen, given) * towards).sum()

    chosen = jnp.asarray(chosen)
    ours = jax.jit(jax.grad(loss(moe._routed), argnums=(0, 1, 2)))(experts, x, given)
    exact = jax.jit(jax.grad(loss(dense), argnums=(0, 1, 2)))(experts, x, given)
    jax.tree.map(assert_close, ours, exact)
    # An expert that nothing is sent to learns nothing.
    idle = np.setdiff1d(np.arange(len(experts["gate"])), chosen)
    assert not np.asarray(ours[0]["down"])[idle].any()


SINGLE = {"k = 1": (5, 1), "two of many": (64, 2), "every expert": (4, 4)}
"""Experts, and experts per token."""


def single(name):
    """Experts, x, chosen and weights of one token; experts that it does not reach are NaN."""
    count, per_token = SINGLE[name]
    rng = np.random.default_rng(count)
    experts = weights(rng, count)
    chosen = rng.permutation(count)[None, :per_token].astype(np.int32)
    idle = np.setdiff1d(np.arange(count), chosen)
    for leaf in experts.values():
        leaf[idle] = np.nan
    x = rng.normal(size=(1, WIDTH)).astype(np.float32)
    return experts, x, chosen, rng.uniform(0.1, 1, chosen.shape).astype(np.float32)


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_token_reads_no_expert_but_its_own(name):
    given = jax.jit(moe._routed_one)(*single(name))
    assert given.dtype == jnp.float32
    assert_close(given, by_loop(*single(name)))
    experts, x, chosen, share = single(name)
    stored = {name: int8.stored("text/moe_layers/mlp/experts", jnp.asarray(leaf)) for name, leaf in experts.items()}
    restored = {name: np.asarray(int8.floats(weight)) for name, weight in stored.items()}
    assert_close(jax.jit(moe._routed_one)(stored, x, chosen, share), by_loop(restored, x, chosen, share))


def test_single_tokens_of_a_batch_are_sent_together():
    experts, x, chosen, given = map(lambda leaf: jax.tree.map(jnp.asarray, leaf), case("k = 1"))
    batch = jax.vmap(moe._routed_one, in_axes=(None, 0, 0, 0))
    apart = (x[:, None], chosen[:, None], given[:, None])
    assert_close(jax.jit(batch)(experts, *apart)[:, 0], by_loop(*case("k = 1")))
    assert str(jax.make_jaxpr(batch)(experts, *apart)).count("argsort") == 1


def test_gradients_of_a_single_token_are_those_of_the_grouped_product():
    experts, x, chosen, given = case("one token")
    towards = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def loss(function):
        return lambda experts, x, given: (function(experts, x, jnp.asarray(chosen), given) * towards).sum()

    ours = jax.jit(jax.grad(loss(moe._routed_one), argnums=(0, 1, 2)))(experts, x, given)
    exact = jax.jit(jax.grad(loss(dense), argnums=(0, 1, 2)))(experts, x, given)
    jax.tree.map(assert_close, ours, exact)


def test_experts_that_lie_on_several_devices_are_not_read_one_by_one():
    config = Experts(6, 2, INNER)
    layer = parameters(config)
    layer["router"]["bias"] = np.zeros(6, np.float32)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, WIDTH)), jnp.float32)
    outputs = []
    for spread in (False, True):
        run = partial(mixture, config, layer, spread=spread)
        assert ("argsort" in str(jax.make_jaxpr(run)(x))) == spread
        outputs.append(run(x)[0])
    assert_close(*outputs)


def routed_by_sorting(config, router, x):
    """Experts in order of their number, their weights, and the margin, in f64."""
    logits = np.float64(x) @ np.float64(router["w"])
    if config.scoring == "softmax":
        choice = scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
        choice = scores + np.float64(router["bias"])
    experts = []
    given = []
    margin = []
    for row, own in zip(choice, scores, strict=True):
        groups = np.split(np.arange(config.count), config.groups)
        rated = sorted(groups, key=lambda group: -np.sort(row[group])[-2:].sum()) if config.groups > 1 else groups
        rating = [np.sort(row[group])[-2:].sum() for group in rated]
        lead = np.inf
        if config.groups_per_token < config.groups:
            lead = rating[config.groups_per_token - 1] - rating[config.groups_per_token]
        allowed = np.concatenate(rated[: config.groups_per_token])
        ranked = sorted(allowed, key=lambda expert: -row[expert])
        if config.per_token < len(ranked):
            lead = min(lead, row[ranked[config.per_token - 1]] - row[ranked[config.per_token]])
        best = np.sort(ranked[: config.per_token])
        total = own[best].sum() if config.normalise else 1.0
        experts.append(best)
        given.append(config.scale * own[best] / total)
        margin.append(lead)
    return np.array(experts), np.array(given), np.array(margin)


ROUTERS = {
    "one group": Experts(8, 2, INNER),
    "best of all": Experts(5, 5, INNER, scale=2.5),
    "2 of 4 groups": Experts(16, 4, INNER, groups=4, groups_per_token=2, scale=2.446),
    "2 of 4 groups of two, all of them": Experts(8, 4, INNER, groups=4, groups_per_token=2),
    "1 of 2 groups": Experts(12, 3, INNER, groups=2, groups_per_token=1, normalise=False),
    "every group": Experts(12, 3, INNER, groups=3, groups_per_token=3),
}
SOFTMAX = {
    "softmax": Experts(9, 3, INNER, scoring="softmax"),
    "softmax, best of all": Experts(5, 5, INNER, scoring="softmax"),
    "softmax, as they are": Experts(8, 1, INNER, normalise=False, scoring="softmax"),
}


@pytest.mark.parametrize("name", [*ROUTERS, *SOFTMAX])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_routing_equals_a_restatement_by_sorting(name, dtype):
    config = (ROUTERS | SOFTMAX)[name]
    rng = np.random.default_rng(len(name))
    x = jnp.asarray(rng.normal(size=(200, WIDTH)), dtype)
    router = {"w": jnp.asarray(rng.normal(size=(WIDTH, config.count)) * 0.3, dtype)}
    if config.scoring == "sigmoid":
        router["bias"] = jnp.asarray(rng.normal(size=config.count) * 0.2, jnp.float32)
    assert router.keys() == config.declaration(WIDTH)["router"].keys()
    routing = jax.jit(route, static_argnums=0)(config, router, x)
    experts, given, margin = routed_by_sorting(config, router, x)
    order = np.argsort(routing.experts, axis=-1)
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(routing.experts), order, -1), experts)
    # Scores are of order 1 and in f32 whatever x is.
    assert_close(np.take_along_axis(np.asarray(routing.weights), order, -1), given, 1e-6)
    np.testing.assert_array_equal(np.isinf(routing.margin), np.isinf(margin))
    finite = np.isfinite(margin)
    np.testing.assert_allclose(np.asarray(routing.margin)[finite], margin[finite], atol=1e-6)


def test_the_best_expert_comes_first():
    config = Experts(8, 3, INNER)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, WIDTH)), jnp.float32)
    router = parameters(config)["router"] | {"bias": np.zeros(8, np.float32)}
    routing = jax.jit(route, static_argnums=0)(config, router, x)
    assert (np.diff(routing.weights, axis=-1) <= 0).all()  # without a bias they are in the order of the choice
    np.testing.assert_allclose(routing.weights.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_choice_changes_only_if_scores_change_by_the_margin(name):
    """Half of it, or with groups, which are rated by the sum of two, a quarter: then it may, and short of it never."""
    config = ROUTERS[name]
    rng = np.random.default_rng(3)
    x = jnp.eye(WIDTH, dtype=jnp.float32)
    # One token a row of the router, so that a row can be moved by itself; logits by which scores change as wanted.
    scores = rng.uniform(0.2, 0.8, (WIDTH, config.count))
    routed = jax.jit(route, static_argnums=0)
    before = routed(config, as_router(scores), x)
    if not np.isfinite(before.margin).all():
        assert np.isinf(before.margin).all() and len({tuple(sorted(row)) for row in before.experts.tolist()}) == 1
        return
    share = 4 if config.groups > 1 else 2
    step = np.asarray(before.margin, np.float64)[:, None] / share
    for _ in range(20):
        moved = scores + rng.choice([-1.0, 1.0], scores.shape) * step * 0.99
        after = routed(config, as_router(moved), x)
        np.testing.assert_array_equal(np.sort(after.experts), np.sort(before.experts))
    if config.groups == 1:
        worst = np.where(jax.nn.one_hot(before.experts, config.count).sum(1) > 0, -1.0, 1.0)
        after = routed(config, as_router(scores + worst * step * 1.01), x)
        assert (np.sort(after.experts) != np.sort(before.experts)).any(-1).all()


def parameters(config):
    """Random ones of a layer, made without compiling for every shape."""
    rng = np.random.default_rng(1)
    declared = config.declaration(WIDTH)
    return jax.tree.map(lambda info: rng.normal(size=info.shape).astype(np.float32) * 0.2, declared, is_leaf=is_info)


def as_router(scores):
    return {
        "w": jnp.asarray(np.log(scores / (1 - scores)), jnp.float32),
        "bias": jnp.zeros(scores.shape[1], jnp.float32),
    }


def test_the_bias_is_f32_in_a_bf16_model():
    router = {"router": Experts(6, 2, INNER).declaration(WIDTH)["router"]}
    for declaration, shape in ((router, (6,)), (stacked(3, router), (3, 6))):
        layer = init_params(declaration, jax.random.key(1), jnp.bfloat16)["router"]
        assert layer["bias"].dtype == jnp.float32 and layer["bias"].shape == shape
        assert layer["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("shared", [0, 7])
def test_shared_experts_see_every_token(shared):
    config = Experts(6, 2, INNER, shared_size=shared, scale=2.0)
    layer = parameters(config)
    assert ("shared" in layer) == bool(shared)
    x = np.random.default_rng(4).normal(size=(11, WIDTH)).astype(np.float32)
    out, routing = jax.jit(mixture, static_argnums=0)(config, layer, jnp.asarray(x))
    expected = by_loop(layer["experts"], x, np.asarray(routing.experts), np.asarray(routing.weights))
    if shared:
        one = {name: np.asarray(layer["shared"][name]["w"])[None] for name in ("gate", "up", "down")}
        expected += by_loop(one, x, np.zeros((11, 1), int), np.ones((11, 1)))
    assert_close(out, expected)


def test_bf16_is_rounded_once_after_the_sum():
    """Products accumulate in f32 and a token's experts are summed in it: what is left is the rounding of the hidden."""
    experts, x, chosen, given = case("many")
    low = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (experts, x))
    exact = by_loop(jax.tree.map(np.float32, low[0]), np.float32(low[1]), chosen, given)
    out = jax.jit(moe._routed)(*low, chosen, given)
    assert out.dtype == jnp.bfloat16
    error = np.linalg.norm(np.float64(out) - exact) / np.linalg.norm(exact)
    # gate, up, their product twice and the sum: each at most half an ulp, 2 ** -9, and by chance 0.6 of that.
    assert error <= 5**0.5 * 2**-9, error
