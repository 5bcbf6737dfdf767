"""Rung 1: RoPE of every variant against float64."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamera_jax import rope
from kamera_jax.rope import RopeSpec
from tests import oracles

D = 16


def spec(pairs=8, theta=1e4, **fields):
    return RopeSpec(tuple(rope.inverse_frequencies(2 * pairs, theta).tolist()), D, **fields)


YARN = rope.spec_from_config(
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 512},
    head_dim=D,
    max_positions=4096,
)
LINEAR = rope.spec_from_config({"rope_type": "linear", "factor": 4.0}, head_dim=D, max_positions=4096)
SPECS = {
    "half": spec(),
    "interleaved-pairs": spec(layout="interleaved"),
    "partial": spec(4),
    "partial-interleaved-pairs": spec(4, layout="interleaved"),
    "mrope-contiguous": spec(sections=(2, 3, 3)),
    "mrope-interleaved": spec(sections=(4, 2, 2), section_layout="interleaved"),
    "mrope-partial-interleaved-pairs": spec(4, layout="interleaved", sections=(2, 1, 1)),
    "yarn": YARN,
    "yarn-interleaved-pairs": replace(YARN, layout="interleaved"),
    "linear": LINEAR,
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def sample(spec, tokens=5, heads=2, largest=4096, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, heads, D)).astype(np.float32)
    # Positions of a video model's time axis are fractional.
    positions = (rng.integers(0, largest * 4, (spec.axes, tokens)) / 4).astype(np.float32)
    return x, positions


rotated = jax.jit(rope.rotate, static_argnums=2)


def check(spec, x, positions):
    """f32 rounds an angle once (half an ulp of it), and what follows a few times at unit size."""
    given = rotated(jnp.asarray(x), jnp.asarray(positions), spec)
    assert given.dtype == jnp.float32
    expected = oracles.rotate_by(spec, x, positions)
    widest = np.abs(positions).max() * max(spec.inv_freq)
    bound = 2.0**-24 * (widest + 8) * 2 * np.abs(x).max() * spec.scale
    np.testing.assert_allclose(given, expected, rtol=0, atol=bound)


@every_spec
@pytest.mark.parametrize("largest", [8, 4096])
def test_rotation_equals_float64(spec, largest):
    check(spec, *sample(spec, largest=largest))


@given(
    pairs=st.integers(1, 8),
    layout=st.sampled_from(["half", "interleaved"]),
    cuts=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    theta=st.floats(1e2, 1e6),
    shape=st.sampled_from([(1, 1), (4, 3)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_random_shapes_and_positions(pairs, layout, cuts, theta, shape, seed):
    ends = None if cuts is None else [0, *sorted(round(cut * pairs) for cut in cuts), pairs]
    sections = None if ends is None else tuple(np.diff(ends).tolist())
    any_spec = spec(pairs, theta, layout=layout, sections=sections)
    check(any_spec, *sample(any_spec, *shape, seed=seed))


@every_spec
def test_tables_are_full_width_with_the_sign_in_sin(spec):
    positions = jnp.asarray(sample(spec)[1])
    cos, sin = rope.tables(spec, positions)
    assert cos.shape == sin.shape == (5, D) and cos.dtype == sin.dtype == jnp.float32
    assert (cos[:, spec.rotary_dim :] == 1).all() and (sin[:, spec.rotary_dim :] == 0).all()
    turned = np.asarray(sin[:, : spec.rotary_dim])
    first, second = np.split(turned, 2, 1) if spec.layout == "half" else (turned[:, ::2], turned[:, 1::2])
    assert (first == -second).all()


@every_spec
def test_identity_at_zero(spec):
    x, positions = sample(spec)
    unturned = np.concatenate([x[..., : spec.rotary_dim] * np.float32(spec.scale), x[..., spec.rotary_dim :]], -1)
    assert (np.asarray(rope.rotate(jnp.asarray(x), jnp.zeros_like(positions), spec)) == unturned).all()


@every_spec
def test_rotations_compose(spec):
    spec = replace(spec, scale=1.0)
    x, a = sample(spec, largest=64)
    b = jnp.asarray(sample(spec, largest=64, seed=1)[1])
    twice = rope.rotate(rope.rotate(jnp.asarray(x), jnp.asarray(a), spec), b, spec)
    np.testing.assert_allclose(twice, rope.rotate(jnp.asarray(x), a + b, spec), rtol=0, atol=4e-5)


@pytest.mark.parametrize("name", ["half", "mrope-contiguous", "mrope-interleaved"])
def test_scores_depend_on_the_distance_alone(name):
    q, positions = sample(SPECS[name], largest=64)
    k, _ = sample(SPECS[name], seed=1)

    def scores(shift):
        moved = jnp.asarray(positions + np.float32(shift))
        heads = [np.asarray(rope.rotate(jnp.asarray(x), moved, SPECS[name])) for x in (q, k)]
        return np.einsum("qhd,khd->hqk", *heads)

    np.testing.assert_allclose(scores(37.0), scores(0.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "right, wrong",
    [
        (SPECS["half"], SPECS["interleaved-pairs"]),
        (SPECS["half"], SPECS["partial"]),
        (spec(sections=(2, 3, 3)), spec(sections=(3, 3, 2))),
        (spec(sections=(4, 2, 2)), spec(sections=(4, 2, 2), section_layout="interleaved")),
        (YARN, replace(YARN, scale=1.0)),
    ],
)
def test_the_wrong_convention_fails(right, wrong):
    x, positions = sample(right, largest=64)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            rope.rotate(jnp.asarray(x), jnp.asarray(positions), right),
            oracles.rotate_by(wrong, x, positions),
            rtol=0,
            atol=0.05,
        )


def test_swapped_axes_fail():
    x, positions = sample(SPECS["mrope-contiguous"], largest=64)
    swapped = oracles.rotate_by(SPECS["mrope-contiguous"], x, positions[[0, 2, 1]])
    given = rope.rotate(jnp.asarray(x), jnp.asarray(positions), SPECS["mrope-contiguous"])
    assert np.abs(np.asarray(given) - swapped).max() > 0.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_dtype_is_kept_and_rounded_once(dtype):
    x, positions = sample(SPECS["half"])
    x = jnp.asarray(x).astype(dtype)
    given = rope.rotate(x, jnp.asarray(positions), SPECS["half"])
    assert given.dtype == dtype
    wide = rope.rotate(x.astype(jnp.float32), jnp.asarray(positions), SPECS["half"])
    assert (given == wide.astype(dtype)).all()


def test_vmap_and_jit():
    x, positions = sample(SPECS["mrope-contiguous"])
    batch = jnp.stack([x, 2 * x]), jnp.stack([positions, positions + 3])
    given = jax.jit(jax.vmap(lambda x, p: rope.rotate(x, p, SPECS["mrope-contiguous"])))(*batch)
    expected = jnp.stack([rope.rotate(*row, SPECS["mrope-contiguous"]) for row in zip(*batch, strict=True)])
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, axes", [("half", 3), ("mrope-contiguous", 1), ("mrope-interleaved", 2)])
def test_another_number_of_axes_is_refused(name, axes):
    with pytest.raises(ValueError, match=f"{axes} axes.*takes {SPECS[name].axes}"):
        rope.rotate(jnp.zeros((2, 1, D)), jnp.zeros((axes, 2)), SPECS[name])


def test_a_spec_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="rotate 32 dims, but the head has 16"):
        spec(16)
    with pytest.raises(ValueError, match="sum to 7; expected 8"):
        spec(sections=(2, 2, 3))


def plain(rotary_dim, theta):
    return np.array([theta ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)])


@pytest.mark.parametrize("rotary_dim, theta", [(2, 1e4), (16, 1e4), (128, 1e6), (64, 5e5)])
def test_inverse_frequencies_equal_float64(rotary_dim, theta):
    np.testing.assert_allclose(rope.inverse_frequencies(rotary_dim, theta), plain(rotary_dim, theta), rtol=2e-6)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("rotary_dim, theta, factor, original", [(64, 1e4, 40.0, 4096), (128, 1e6, 4.0, 32768)])
def test_yarn_frequencies_equal_float64(rotary_dim, theta, factor, original, truncate):
    # Pair i turns original * freq / 2 pi times over the original length: over 32 turns it is kept, under 1 it is
    # interpolated, and between them a line over i blends.
    frequencies = plain(rotary_dim, theta)

    def index(turns):
        return rotary_dim / 2 * math.log(original / (2 * math.pi * turns)) / math.log(theta)

    fast, slow = (math.floor(index(32)), math.ceil(index(1))) if truncate else (index(32), index(1))
    blend = np.clip((np.arange(rotary_dim // 2) - fast) / (slow - fast), 0, 1)
    expected = (1 - blend) * frequencies + blend * frequencies / factor
    given = rope.yarn_frequencies(rotary_dim, theta, factor=factor, original_length=original, truncate=truncate)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, rtol=4e-6)
    assert (given[0], given[-1]) == pytest.approx((frequencies[0], frequencies[-1] / factor), rel=4e-6)
