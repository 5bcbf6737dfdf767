"""Attention by blocks: against float64, and the same as with all scores at once, under every transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks import softmax
from models.blocks.softmax import Keys, attention, grouped_attention
from tests.eight_devices import on_devices

CASES = {
    "grouped": {"heads": 6, "groups": 2},
    "one KV head": {"heads": 4, "groups": 1},
    "MHA": {"heads": 3, "groups": 3},
    "values narrower than keys": {"heads": 4, "groups": 4, "value": 3},
    "values wider than keys": {"heads": 5, "groups": 1, "value": 11},
    "behind a window with holes": {"heads": 4, "groups": 2, "slots": 301},
    "few tokens behind much": {"heads": 4, "groups": 2, "slots": 700, "tokens": 16},
    "padding": {"heads": 4, "groups": 2, "slots": 37, "length": 83},
    "a single token in padding": {"heads": 2, "groups": 1, "slots": 130, "length": 1},
    "an empty window": {"heads": 4, "groups": 2, "slots": 160, "filled": 0.0},
    "tokens that stand among the slots": {"heads": 4, "groups": 2, "slots": 300, "among": True},
    "everyone sees everyone": {"heads": 2, "groups": 2, "tokens": 145, "causal": False},
    "bidirectional with padding": {"heads": 2, "groups": 2, "tokens": 145, "length": 99, "causal": False},
    "large scores": {"heads": 4, "groups": 2, "slots": 200, "size": 5.0},
}
SCALE = 0.31


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few tokens, so that small arrays are cut into many, unevenly."""
    use_small_blocks(monkeypatch)


def use_small_blocks(monkeypatch):
    monkeypatch.setattr(softmax, "BLOCK_BYTES", 1)
    monkeypatch.setattr(softmax, "BLOCK_QUERIES", 48)
    monkeypatch.setattr(softmax, "BLOCK_KEYS", 128)


def case(seed=0, *, heads, groups, tokens=109, slots=0, value=8, length=None, filled=0.6, among=False, causal=True,
         size=1.0, dtype=np.float32):  # fmt: skip
    """Queries, parts and weights, as a decoder's forward makes them."""
    rng = np.random.default_rng(seed)
    length = tokens if length is None else length

    def array(rows, count, width):
        return jnp.asarray(size * rng.normal(size=(rows, count, width)), dtype)

    valid = np.arange(tokens) < length
    before = np.arange(1, tokens + 1, dtype=np.int32) if causal else None
    parts = [Keys(array(tokens, groups, 8), array(tokens, groups, value), jnp.asarray(valid), as_array(before))]
    if slots:
        stands = np.sort(rng.integers(1, slots, tokens)).astype(np.int32) if among else None
        seen = jnp.asarray(rng.uniform(size=slots) < filled)
        parts.insert(0, Keys(array(slots, groups, 8), array(slots, groups, value), seen, as_array(stands)))
    weights = jnp.asarray(valid * rng.uniform(size=tokens), jnp.float32)
    return array(tokens, heads, 8), parts, weights


def as_array(x):
    return None if x is None else jnp.asarray(x)


def in_f64(q, parts, weights):
    """The definition, a query and a head at a time; rows that see nothing are left zero."""
    q = np.asarray(q, np.float64)
    tokens, heads, _ = q.shape
    mask = []
    for part in parts:
        index = np.arange(len(part.seen))
        before = np.full(tokens, len(index)) if part.before is None else np.asarray(part.before)
        mask.append(np.asarray(part.seen)[None] & (index[None] < before[:, None]))
    mask = np.concatenate(mask, 1)
    k, v = (np.concatenate([np.asarray(part[i], np.float64) for part in parts]) for i in range(2))
    bias = np.concatenate([np.zeros(len(part.seen)) if part.bias is None else part.bias for part in parts])
    out = np.zeros((tokens, heads, v.shape[-1]))
    lse = np.full((tokens, heads), -np.inf)
    mass = np.zeros(len(k))
    for t, n in np.ndindex(tokens, heads):
        if not mask[t].any():
            continue
        group = n // (heads // k.shape[1])
        scores = np.where(mask[t], k[:, group] @ q[t, n] * SCALE + bias, -np.inf)
        p = np.exp(scores - scores.max())
        lse[t, n] = scores.max() + np.log(p.sum())
        p /= p.sum()
        out[t, n] = p @ v[:, group]
        mass += float(weights[t]) * p
    return out.reshape(tokens, -1), lse, mass


def error(given, expected):
    given = np.asarray(given, np.float64)
    assert given.shape == expected.shape
    return np.abs(given - expected).max() / max(np.abs(expected).max(), 1e-30)


def compare(given, exact, bound):
    out, lse, mass = exact
    rows = np.isfinite(lse).all(-1)
    assert np.isfinite(np.asarray(given.out, np.float64)).all() and np.isfinite(np.asarray(given.lse)).all()
    assert error(np.asarray(given.out)[rows], out[rows]) <= bound
    assert error(np.asarray(given.lse)[rows], lse[rows]) <= bound
    assert error(given.mass, mass) <= bound


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_definition(small_blocks, name):
    for seed in range(2):
        q, parts, weights = case(seed, **CASES[name])
        run = jax.jit(lambda *arguments: attention(*arguments[:2], SCALE, arguments[2]))
        compare(run(q, parts, weights), in_f64(q, parts, weights), 1e-5 if name == "large scores" else 2e-6)


@pytest.mark.parametrize("name", CASES)
def test_all_scores_at_once_are_the_definition(name):
    q, parts, weights = case(**CASES[name])
    run = jax.jit(lambda *arguments: attention(*arguments[:2], SCALE, arguments[2]))
    compare(run(q, parts, weights), in_f64(q, parts, weights), 1e-5 if name == "large scores" else 2e-6)


def test_without_weights_there_is_no_mass(small_blocks):
    q, parts, weights = case(**CASES["padding"])
    out, lse, mass = attention(q, parts, SCALE)
    full = attention(q, parts, SCALE, weights)
    assert mass is None
    np.testing.assert_array_equal(out, full.out)
    np.testing.assert_array_equal(lse, full.lse)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", ["grouped", "behind a window with holes", "values wider than keys", "large scores"])
def test_mass_by_owner_is_the_sum_over_its_keys(monkeypatch, name, blocks, dtype):
    q, parts, weights = case(**CASES[name], dtype=dtype)
    exact = in_f64(q, parts, weights)
    number = np.random.default_rng(4).integers(-1, 3, sum(len(part.seen) for part in parts))
    owners = number[:, None] == np.arange(3)
    ends = np.cumsum([len(part.seen) for part in parts])
    owned = [
        part._replace(owners=jnp.asarray(each)) for part, each in zip(parts, np.split(owners, ends[:-1]), strict=True)
    ]
    if blocks:
        use_small_blocks(monkeypatch)
    given = jax.jit(lambda *arguments: attention(*arguments[:2], SCALE, arguments[2]))(q, owned, weights)
    bound = float(jnp.finfo(dtype).eps) if dtype != np.float32 else 1e-5 if name == "large scores" else 2e-6
    assert given.mass.dtype == jnp.float32 and given.out.dtype == dtype
    compare(given, (*exact[:2], exact[2] @ owners), bound)


def repeated(part, times):
    """The part with each key as many times as a row says, one behind the other."""
    ends = np.concatenate([[0], np.cumsum(times)]).astype(np.int32)
    k, v, seen = (jnp.asarray(np.repeat(np.asarray(each), times, axis=0)) for each in (part.k, part.v, part.seen))
    owners = None if part.owners is None else jnp.asarray(np.repeat(np.asarray(part.owners), times, axis=0))
    return Keys(k, v, seen, None if part.before is None else jnp.asarray(ends[np.asarray(part.before)]), owners)


@pytest.mark.parametrize("by", ["key", "owner"])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", ["grouped", "MHA", "values wider than keys", "behind a window with holes",
                                  "tokens that stand among the slots", "bidirectional with padding"])  # fmt: skip
def test_a_bias_of_log_n_is_n_keys(monkeypatch, name, blocks, by):
    """A key that stands for n equal ones, by its bias, is attended to as they are, together."""
    q, parts, weights = case(**CASES[name])
    rng = np.random.default_rng(3)
    times = [rng.integers(1, 5, len(part.seen)) for part in parts]
    if by == "owner":
        parts = [part._replace(owners=jnp.asarray(rng.uniform(size=(len(part.seen), 3)) < 0.4)) for part in parts]
    several = [repeated(part, own) for part, own in zip(parts, times, strict=True)]
    out, lse, mass = in_f64(q, several, weights)
    if by == "key":
        mass = np.add.reduceat(mass, np.concatenate([[0], np.cumsum(np.concatenate(times))[:-1]]))
    else:
        mass = mass @ np.concatenate([np.asarray(part.owners) for part in several])
    biased = [
        part._replace(bias=jnp.log(jnp.asarray(own, jnp.float32))) for part, own in zip(parts, times, strict=True)
    ]
    if blocks:
        use_small_blocks(monkeypatch)
    run = jax.jit(lambda *arguments: attention(*arguments[:2], SCALE, arguments[2]))
    compare(run(q, biased, weights), (out, lse, mass), 2e-6)
    single = [part._replace(bias=jnp.zeros_like(part.bias)) for part in biased]
    with pytest.raises(AssertionError):
        compare(run(q, single, weights), (out, lse, mass), 1e-3)
    first = [biased[0], *parts[1:]]  # one part alone may have a bias
    compare(run(q, [part._replace(owners=None) for part in first], weights), in_f64(q, first, weights), 2e-6)


@pytest.mark.parametrize("blocks", [False, True])
def test_gradients_go_through_a_bias(monkeypatch, blocks):
    q, parts, weights = case(**CASES["behind a window with holes"])
    times = np.random.default_rng(3).integers(1, 4, len(parts[0].seen))
    bias = jnp.log(jnp.asarray(times, jnp.float32))

    def loss(k, bias, part):
        return jnp.square(attention(q, [part._replace(k=k, bias=bias), parts[1]], SCALE).out).sum()

    several = repeated(parts[0], times)
    wanted = np.asarray(jax.jit(jax.grad(loss))(several.k, None, several), np.float64)
    wanted = np.add.reduceat(wanted, np.concatenate([[0], np.cumsum(times)[:-1]]))
    if blocks:
        use_small_blocks(monkeypatch)
    assert error(jax.jit(jax.grad(loss))(parts[0].k, bias, parts[0]), wanted) <= 1e-5


def test_a_part_without_keys_is_nothing(small_blocks):
    q, parts, weights = case(**CASES["grouped"])
    none = Keys(parts[0].k[:0], parts[0].v[:0], parts[0].seen[:0])
    for given, expected in zip(
        attention(q, [none, *parts], SCALE, weights), attention(q, parts, SCALE, weights), strict=True
    ):
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_f32(monkeypatch, dtype):
    """As near to float64 as all scores at once: what is rounded is the weights and the output."""
    q, parts, weights = case(**CASES["behind a window with holes"], dtype=dtype)
    exact = in_f64(q, parts, weights)
    plain = attention(q, parts, SCALE, weights)
    use_small_blocks(monkeypatch)
    blocks = attention(q, parts, SCALE, weights)
    assert blocks.out.dtype == dtype and blocks.lse.dtype == blocks.mass.dtype == jnp.float32
    eps = float(jnp.finfo(dtype).eps)
    compare(blocks, exact, eps)
    norms = [np.linalg.norm(np.asarray(each.out, np.float64) - exact[0]) for each in (blocks, plain)]
    assert norms[0] <= 1.1 * norms[1]


def test_scores_beyond_float16_stay_finite(small_blocks):
    q, parts, weights = case(**CASES["grouped"], size=200.0, dtype=np.float16)
    assert (
        float(jnp.abs(jnp.einsum("tnd,snd->tns", *(x.astype(jnp.float32) for x in (q[:, :2], parts[0].k)))).max())
        > 65504
    )
    compare(attention(q, parts, SCALE, weights), in_f64(q, parts, weights), 2.0**-9)


def gradients(q, parts, weights):
    """Of a function of all outputs, by queries, keys and values."""
    rng = np.random.default_rng(3)
    width = q.shape[1] * parts[0].v.shape[-1]
    targets = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((len(q), width), q.shape[:2])]
    slots = sum(len(part.seen) for part in parts)
    targets.append(jnp.asarray(rng.normal(size=slots), jnp.float32))
    rows = weights > 0

    def loss(q, kv):
        held = [part._replace(k=k, v=v) for part, (k, v) in zip(parts, kv, strict=True)]
        out, lse, mass = attention(q, held, SCALE, weights)
        seen = [jnp.where(rows[:, None], x * target, 0.0) for x, target in zip((out, lse), targets, strict=False)]
        return seen[0].sum() + seen[1].sum() + (mass * targets[2]).sum()

    arguments = (q, [(part.k, part.v) for part in parts])
    return loss, arguments


@pytest.mark.parametrize("name", ["grouped", "padding", "tokens that stand among the slots", "an empty window"])
def test_gradients_are_those_of_all_scores_at_once(monkeypatch, name):
    loss, arguments = gradients(*case(**CASES[name]))
    tangents = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), arguments)

    def derivatives():
        return jax.jit(lambda *given: (jax.grad(loss, (0, 1))(*given), jax.jvp(loss, given, tangents)[1]))(*arguments)

    plain, slope = derivatives()
    use_small_blocks(monkeypatch)
    blocks, slope_of_blocks = derivatives()
    for given, expected in zip(jax.tree.leaves(blocks), jax.tree.leaves(plain), strict=True):
        assert error(given, np.asarray(expected, np.float64)) <= 1e-5
    assert float(slope_of_blocks) == pytest.approx(float(slope), rel=1e-4)


def test_a_batch_is_each_by_itself(small_blocks):
    given = [case(seed, **CASES["padding"] | {"length": 30 + 40 * seed}) for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
    run = jax.jit(jax.vmap(lambda q, parts, weights: attention(q, parts, SCALE, weights)))
    together = run(*batch)
    for i, each in enumerate(given):
        compare(jax.tree.map(lambda x, i=i: x[i], together), in_f64(*each), 2e-6)


def split_heads(monkeypatch):
    """By hand with `jax.shard_map`, whose scans must not lose what varies over the mesh, and by the compiler."""
    use_small_blocks(monkeypatch)
    given = case(**CASES["behind a window with holes"])
    expected = attention(*given[:2], SCALE, given[2])
    mesh = jax.make_mesh((2,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = jax.sharding.PartitionSpec(None, "heads")
    whole = jax.sharding.PartitionSpec()
    parts = [Keys(heads, heads, whole, None if part.before is None else whole) for part in given[1]]
    specs = (heads, parts, whole)

    def summed(q, parts, weights):
        out, lse, mass = attention(q, parts, SCALE, weights)
        return out, lse, jax.lax.psum(mass, "heads")

    split = jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=(heads, heads, whole)))
    leaves, tree = jax.tree.flatten(given)
    shardings = [jax.sharding.NamedSharding(mesh, spec) for spec in tree.flatten_up_to(specs)]
    placed = tree.unflatten([jax.device_put(*each) for each in zip(leaves, shardings, strict=True)])
    compiler = jax.jit(lambda q, parts, weights: attention(q, parts, SCALE, weights))
    for results in (split(*given), compiler(*placed)):
        for each, wanted in zip(results, expected, strict=True):
            assert error(each, np.asarray(wanted, np.float64)) <= 2e-6


def test_heads_split_over_devices():
    """See `split_heads`; devices of their own, in a process."""
    program = "import pytest, tests.models.blocks.test_softmax as t\nt.split_heads(pytest.MonkeyPatch())"
    on_devices(2, program)


@pytest.mark.parametrize("blocks", [False, True])
def test_with_64_bits_the_types_stay(monkeypatch, blocks):
    if blocks:
        use_small_blocks(monkeypatch)
    q, parts, weights = case(**CASES["tokens that stand among the slots"])
    expected = attention(q, parts, SCALE, weights)
    with jax.enable_x64(True):
        given = attention(q, parts, SCALE, weights)
    for each, wanted in zip(given, expected, strict=True):
        assert each.dtype == wanted.dtype
        np.testing.assert_allclose(each, wanted, rtol=1e-6, atol=1e-6)


def scores_made(tokens, slots, heads=8, **options):
    """The largest array of a jitted attention's program, in f32 numbers a query, head and key."""
    q, parts, weights = case(heads=heads, groups=2, tokens=tokens, slots=slots, **options)
    program = jax.jit(lambda q, parts, w: attention(q, parts, SCALE, w)).lower(q, parts, weights).compile()
    return program.memory_analysis().temp_size_in_bytes / (4 * heads * tokens * (tokens + slots))


def test_no_array_of_all_scores_is_made():
    """Where all scores take 75 MB, blocks, the copies of keys by block and the outputs take less than a third."""
    assert scores_made(1024, 1280) <= 1 / 3
    assert scores_made(64, 1280) >= 1  # few scores, all at once


def test_gradients_keep_no_scores():
    q, parts, weights = case(heads=8, groups=2, tokens=1024, slots=1280)
    loss, arguments = gradients(q, parts, weights)
    program = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 4 * 8 * 1024 * 2304


@pytest.mark.parametrize("tokens", [1, 16, 128])
def test_small_calls_take_the_plain_form(tokens):
    """Bit for bit what `grouped_attention` gives."""
    q, parts, _ = case(heads=4, groups=2, tokens=tokens, slots=512)
    index = np.arange(512 + tokens)
    mask = np.concatenate([np.asarray(part.seen) for part in parts])[None] & (
        index < 512 + 1 + np.arange(tokens)[:, None]
    )
    k, v = (jnp.concatenate([part[i] for part in parts]) for i in range(2))
    expected = jax.jit(partial(grouped_attention, scale=SCALE))(q, k, v, jnp.asarray(mask))
    given = jax.jit(lambda q, parts: attention(q, parts, SCALE))(q, parts)
    np.testing.assert_array_equal(given.out, expected.out)
    np.testing.assert_array_equal(given.lse, expected.lse)


BLOCKS = [(1024, 256, 16, 256), (577, 256, 16, 208), (2304, 512, 128, 512), (16, 512, 128, 128), (257, 256, 16, 144)]


@pytest.mark.parametrize("count, most, multiple, size", BLOCKS)
def test_blocks_are_balanced(count, most, multiple, size):
    assert softmax._balanced(count, most, multiple) == size
