"""The decoder's whole forward with attention by blocks: what it gives with all scores at once, and less memory."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.kv import ChunkPool, Segment, WindowState
from kamera_jax.rope import RopeSpec, inverse_frequencies
from models.blocks import softmax
from models.blocks.attention import GroupedQuery, Latent
from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.params import init_params
from models.forward import forward

LAYERS = 2
ATTENTIONS = {
    "gqa": GroupedQuery(heads=4, kv_heads=2, head_dim=8, bias=True),
    "mqa": GroupedQuery(heads=4, kv_heads=1, head_dim=8),
    "mla": Latent(heads=3, latent_dim=12, nope_dim=8, rope_dim=8, value_dim=6),
}
TOKENS = 80
SLOTS = 208


def config_of(attention):
    rope = RopeSpec(tuple(inverse_frequencies(8, 100.0).tolist()), 8)
    return DecoderConfig(50, 24, 40, LAYERS, 1e-6, attention, rope, True)


def segment_of(rng, tokens=TOKENS, length=None, slots=None):
    inputs = {"tokens": jnp.asarray(rng.integers(0, 50, tokens), jnp.int32)}
    if slots is not None:
        inputs["slots"] = jnp.asarray(np.sort(rng.integers(1, slots, tokens)), jnp.int32)
    positions = jnp.asarray(300 + np.arange(tokens), jnp.float32)[None]
    return Segment(inputs, positions, jnp.int32(tokens if length is None else length))


def state_of(rng, config, slots=SLOTS, pools=()):
    rot, free = config.attention.kv_widths[:2]
    arrays = (jnp.asarray(rng.normal(size=(LAYERS, slots, width)), jnp.float32) for width in (rot, free))
    positions = jnp.asarray(np.arange(slots), jnp.float32)[None]
    return WindowState(*arrays, positions, jnp.asarray(rng.uniform(size=slots) < 0.7), pools)


def pool_of(rng, config, places=2, tokens=32):
    rot, free = config.attention.kv_widths[:2]
    arrays = (jnp.asarray(rng.normal(size=(LAYERS, places, tokens, width)), jnp.float32) for width in (rot, free))
    positions = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.float32), (places, 1, tokens))
    return ChunkPool(*arrays, positions, jnp.asarray([tokens, 5], jnp.int32), jnp.asarray([40.0, 9.0]))


CASES = {
    "alone": {},
    "behind a window with holes, padded": {"slots": SLOTS, "length": 61},
    "among the slots": {"slots": SLOTS, "among": True},
    "chunks in pools": {"slots": SLOTS, "pooled": True, "collect": ("queries",)},
    "absorbed": {"slots": SLOTS, "collect": ("attention_mass", "queries")},
}


def case(kind, slots=0, length=None, among=False, pooled=False, collect=("attention_mass",)):
    rng = np.random.default_rng(7)
    config = config_of(ATTENTIONS[kind])
    params = {"text": init_params(text_declaration(config), jax.random.key(0))}
    pools = (pool_of(rng, config),) if pooled else ()
    state = state_of(rng, config, slots, pools) if slots else None
    return config, params, segment_of(rng, length=length, slots=slots if among else None), state, collect


def outputs(config, params, segment, state, collect):
    run = jax.jit(partial(forward, config, logits_at=jnp.arange(TOKENS), collect=collect))
    output = run(params, segment, state)
    length = int(segment.length)
    aux = {name: value if name.endswith("_mass") else value[:, :length] for name, value in output.aux.items()}
    return {"logits": output.logits[:length], "rot": output.kv.rot, "free": output.kv.free, **aux}


@cache
def at_once(kind, name):
    """The outputs of a case with all scores at once: taken before blocks are made small."""
    return outputs(*case(kind, **CASES[name]))


def use_small_blocks(monkeypatch):
    monkeypatch.setattr(softmax, "BLOCK_BYTES", 1)
    monkeypatch.setattr(softmax, "BLOCK_QUERIES", 32)
    monkeypatch.setattr(softmax, "BLOCK_KEYS", 128)


def error(given, expected):
    given = np.asarray(given, np.float64)
    expected = np.asarray(expected, np.float64)
    assert given.shape == expected.shape
    return np.abs(given - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("name", CASES)
def test_blocks_give_what_all_scores_give(monkeypatch, kind, name):
    given = case(kind, **CASES[name])
    expected = at_once(kind, name)
    use_small_blocks(monkeypatch)
    for key, value in outputs(*given).items():
        assert error(value, expected[key]) <= 1e-5, key
    if "attention_mass" in expected:
        np.testing.assert_allclose(expected["attention_mass"].sum(-1), np.ones(LAYERS), rtol=1e-5)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("name", ["alone", "behind a window with holes, padded", "absorbed"])
def test_mass_by_owner_is_that_of_its_slots_and_tokens(monkeypatch, kind, name, blocks):
    """A slot that is nobody's counts for nobody; all else stays as it is."""
    config, params, segment, state, collect = case(kind, **CASES[name])
    expected = dict(at_once(kind, name))
    mass = expected.pop("attention_mass")
    number = np.random.default_rng(1).integers(-1, 5, mass.shape[1])
    owners = number[:, None] == np.arange(5)
    if blocks:
        use_small_blocks(monkeypatch)
    collect = tuple("owner_mass" if each == "attention_mass" else each for each in collect)
    segment = replace(segment, inputs={**segment.inputs, "owners": jnp.asarray(owners)})
    given = outputs(config, params, segment, state, collect)
    assert error(given.pop("owner_mass"), np.asarray(mass, np.float64) @ owners) <= 1e-5
    assert given.keys() == expected.keys()
    for key, value in given.items():
        assert error(value, expected[key]) <= 1e-5, key


def several(state, pool, times):
    """The state, and the pool, with rows as many times as they stand for tokens, in place of a bias."""
    slots, tokens = times

    def rows(array, own, axis):
        return jnp.repeat(array, jnp.asarray(own), axis, total_repeat_length=int(own.sum()))

    again = WindowState(
        rows(state.rot, slots, 1),
        rows(state.free, slots, 1),
        rows(state.positions, slots, 1),
        rows(state.valid, slots, 0),
    )
    if pool is None:
        return again
    lengths = jnp.asarray([int(tokens[: int(length)].sum()) for length in pool.lengths], jnp.int32)
    arrays = (rows(pool.rot, tokens, 2), rows(pool.free, tokens, 2), rows(pool.positions, tokens, 2))
    return again.replace(pools=(ChunkPool(*arrays, lengths, pool.bases),))


def numbers_of_tokens():
    """How many tokens each slot, and each row of a pool, stands for."""
    rng = np.random.default_rng(5)
    return rng.integers(1, 5, SLOTS), rng.integers(1, 5, 32)


@cache
def in_full(kind, name):
    """The outputs of a case, all scores at once, with every row as many times as it stands for tokens."""
    config, params, segment, state, collect = case(kind, **CASES[name])
    slots, tokens = numbers_of_tokens()
    pool = state.pools[0] if state.pools else None
    given = outputs(config, params, segment, several(state, pool, (slots, tokens)), collect)
    if "attention_mass" in given:
        starts = np.concatenate([np.cumsum([0, *slots[:-1]]), slots.sum() + np.arange(TOKENS)])
        given["attention_mass"] = np.add.reduceat(np.asarray(given["attention_mass"], np.float64), starts, 1)
    return given


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("name", ["behind a window with holes, padded", "chunks in pools", "absorbed"])
def test_a_row_that_stands_for_several_is_several(monkeypatch, kind, name, blocks):
    config, params, segment, state, collect = case(kind, **CASES[name])
    slots, tokens = numbers_of_tokens()
    pool = state.pools[0] if state.pools else None
    expected = in_full(kind, name)
    plain = at_once(kind, name)
    bias = jnp.log(jnp.asarray(slots, jnp.float32))
    pools = () if pool is None else (pool.replace(bias=jnp.log(jnp.tile(jnp.asarray(tokens, jnp.float32), (2, 1)))),)
    if blocks:
        use_small_blocks(monkeypatch)
    given = outputs(config, params, segment, state.replace(bias=bias, pools=pools), collect)
    for key, value in given.items():
        assert error(value, expected[key]) <= 1e-5, key
    assert error(plain["logits"], expected["logits"]) > 1e-3
    context = outputs(config, params, segment, state.replace(bias=None, pools=(), valid=jnp.zeros(SLOTS, bool),
                      context=state.replace(bias=bias, pools=())), ()) if not pools else None  # fmt: skip
    if context is not None:  # a turn's own state stands behind the window's slots
        assert error(context["logits"], expected["logits"]) <= 1e-5


def test_mass_is_by_slot_or_by_owner():
    config, params, segment, state, _ = case("gqa", slots=SLOTS)
    with pytest.raises(ValueError, match="by slot or by owner, attention_mass or owner_mass; got both"):
        forward(config, params, segment, state, collect=("attention_mass", "owner_mass"))


@pytest.mark.parametrize("kind", ["gqa", "mla"])
def test_gradients_and_batches_go_through(monkeypatch, kind):
    config, params, segment, state, _ = case(kind, slots=SLOTS, length=61)

    def loss(params, state, segment):
        output = forward(config, params, segment, state, logits_at=jnp.arange(3), collect=("attention_mass",))
        return jnp.square(output.logits).sum() + jnp.square(output.aux["attention_mass"]).sum()

    def gradients():
        return jax.jit(jax.grad(lambda rot, params: loss(params, state.replace(rot=rot), segment), (0, 1)))(
            state.rot, params
        )

    segments = [segment_of(np.random.default_rng(seed), length=50 + seed) for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *segments)
    run = jax.jit(loss)
    alone = [float(run(params, state, each)) for each in segments]
    expected = gradients()
    use_small_blocks(monkeypatch)
    for given, wanted in zip(jax.tree.leaves(gradients()), jax.tree.leaves(expected), strict=True):
        assert error(given, wanted) <= 1e-4
    together = jax.jit(jax.vmap(loss, in_axes=(None, None, 0)))(params, state, batch)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("collect", [(), ("attention_mass",)])
def test_a_forward_holds_no_scores(collect):
    """1024 tokens of 8 heads behind 1280 slots have 75 MB of scores; the program's temporaries are half of that."""
    config = config_of(GroupedQuery(heads=8, kv_heads=2, head_dim=8))
    rng = np.random.default_rng(0)
    segment = segment_of(rng, 1024)
    params = {"text": init_params(text_declaration(config), jax.random.key(0))}
    run = jax.jit(partial(forward, config, collect=collect))
    program = run.lower(params, segment, state_of(rng, config, 1280)).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 4 * 8 * 1024 * 2304 / 2
