"""JAX's splash attention to one part of the keys: against float64 in interpret mode, and compiled for TPUs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compiled
from pallas_kernels.flash_attention.limits import splash_refusal
from pallas_kernels.flash_attention.splash import splash_attention

CASES = {
    # tokens, slots, query heads, KV heads, width of keys, of values, causal, share of slots that are seen
    "a window with holes": (130, 300, 6, 2, 64, 64, False, 0.6),
    "a tail behind much": (17, 700, 4, 1, 128, 128, False, 0.5),
    "causality with hidden tokens": (200, 200, 4, 2, 80, 80, True, 0.8),
    "tiles of causality": (700, 700, 2, 1, 64, 64, True, 1.0),
    "a tower of 72": (150, 150, 3, 3, 72, 72, False, 0.9),
    "expanded latents": (40, 160, 2, 2, 192, 128, False, 0.7),
    "owners beside values": (40, 160, 4, 2, 64, 69, False, 0.7),
    "an empty window": (40, 160, 4, 2, 64, 64, False, 0.0),
}


def arrays(name, dtype):
    tokens, slots, heads, groups, width, values, _, share = CASES[name]
    rng = np.random.default_rng(0)
    shapes = ((tokens, heads, width), (slots, groups, width), (slots, groups, values))
    return *(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes), jnp.asarray(rng.random(slots) < share)


def in_f64(q, k, v, seen, causal, scale):
    """The definition: out and log-sum-exp, 0 and -inf where nothing is seen."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    per_group = q.shape[1] // k.shape[1]
    scores = np.einsum("tnd,snd->tns", q, np.repeat(k, per_group, 1)) * scale
    mask = np.tile(np.asarray(seen), (len(q), 1))
    if causal:
        mask &= np.tri(len(q), len(k), dtype=bool)
    weights = np.exp(np.where(mask[:, None], scores, -np.inf))
    total = weights.sum(-1)
    out = np.einsum("tns,snd->tnd", weights, np.repeat(v, per_group, 1)) / np.where(total == 0, 1, total)[..., None]
    with np.errstate(divide="ignore"):
        return out, np.log(total)


@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 2e-6), (jnp.bfloat16, 2.0**-8)])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition(name, dtype, bound):
    given = arrays(name, dtype)
    causal = CASES[name][-2]
    out, lse = splash_attention(*given, causal=causal, scale=0.11, interpret=True)
    exact, exact_lse = in_f64(*given, causal, 0.11)
    assert out.dtype == dtype and lse.dtype == jnp.float32
    seen = np.isfinite(exact_lse)
    np.testing.assert_array_equal(np.isfinite(lse), seen)
    assert not np.asarray(out, np.float64)[~seen].any()
    assert np.linalg.norm(np.asarray(out, np.float64) - exact) <= bound * np.linalg.norm(exact)
    np.testing.assert_allclose(np.asarray(lse)[seen], exact_lse[seen], rtol=bound, atol=bound)


def test_a_batch_is_each_by_itself():
    given = arrays("a window with holes", jnp.float32)
    batch = [jnp.stack([x, x[::-1]]) for x in given]
    attend = partial(splash_attention, causal=False, scale=0.11, interpret=True)
    together = jax.vmap(attend)(*batch)
    for i in range(2):
        for ours, alone in zip(together, attend(*(x[i] for x in batch)), strict=True):
            np.testing.assert_allclose(ours[i], alone, rtol=1e-6, atol=1e-6)


def test_what_it_does_not_serve_is_named():
    bf16, f16, f32 = (jnp.dtype(name) for name in ("bfloat16", "float16", "float32"))
    assert splash_refusal(128, 128, [bf16] * 3) is None and splash_refusal(64, 69, [f32] * 3) is None
    assert "not float16" in splash_refusal(128, 128, [f16])
    assert "one dtype" in splash_refusal(128, 128, [bf16, f32])
    assert "not 576 and 512" in splash_refusal(576, 512, [bf16])
    assert "multiples of 8; not 20" in splash_refusal(20, 20, [bf16])


SHAPES = {
    # tokens, slots, query heads, KV heads, width of keys, of values, causal
    "qwen2.5-vl-7b past": (1024, 32768, 28, 4, 128, 128, False),
    "qwen2.5-vl-7b present": (1024, 1024, 28, 4, 128, 128, True),
    "qwen2.5-vl-7b tail": (32, 32768, 28, 4, 128, 128, False),
    "owners": (256, 2048, 28, 4, 128, 133, False),
    "smollm2": (1024, 2048, 9, 3, 64, 64, False),
    "qwen2.5-vl tower": (1024, 1024, 16, 16, 80, 80, False),
    "siglip tower": (729, 729, 16, 16, 72, 72, False),
    "clip tower": (577, 577, 16, 16, 64, 64, False),
    "mla": (512, 2048, 16, 16, 192, 128, False),
    "head dim 256": (512, 4096, 8, 4, 256, 256, False),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("target", compiled.targets("v5e", "v6e"))
def test_it_compiles_for_tpus_and_makes_no_scores(name, target, dtype):
    tokens, slots, heads, groups, width, values, causal = SHAPES[name]
    shapes = ((tokens, heads, width), (slots, groups, width), (slots, groups, values))
    given = [*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes), jax.ShapeDtypeStruct((slots,), jnp.bool_)]
    program = compiled.compile_for(
        target, lambda *given: splash_attention(*given, causal=causal, scale=width**-0.5), *given
    )
    assert len(compiled.kernels(program)) == 1
    # A copy of the keys and one of the values, head by head, and the log-sum-exp on every lane.
    copies = sum(x.size * x.dtype.itemsize for x in given[:3]) + 2 * 4 * tokens * heads * 128
    assert compiled.temporaries(program) <= 2 * copies
