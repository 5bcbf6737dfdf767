"""One key and one codec are one value, whatever was done to come to it."""

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kamera_jax as kj
from tests.kamera_jax.distance import far
from tests.kamera_jax.texts import TEXTS

CAPACITY = 128


SIZES = ({"rank": 2}, {"rank": 1000}, {"max_bytes": 3000})
PUTS = st.tuples(st.sampled_from(("blind", "patched", "stale", "coarse")), st.sampled_from(SIZES))
EDITS = st.sampled_from(("none", "reorder", "slide", "replace", "prefill"))
RUNS = st.lists(st.tuples(st.sampled_from(("rerun", "turn", "patched")), st.integers(0, 3)), min_size=1, max_size=2)


@pytest.fixture(scope="module")
def seen():
    """Of every key and codec that came about in any example, what it names."""
    return {}


@settings(max_examples=25)
@given(
    mode=st.sampled_from(("materialise", "in_place")),
    numbers=st.lists(st.integers(0, 3), min_size=2, max_size=3),
    puts=st.tuples(*[st.lists(PUTS, min_size=3, max_size=3)] * 2),
    edit=EDITS,
    runs=RUNS,
)
def test_one_key_and_codec_is_one_value(random_vlm, texts, stored, seen, mode, numbers, puts, edit, runs):
    """The same chunks with other patches, twice, and the same again behind them: no key names two values.

    Nor does any key that came about in another example.
    """
    for choices in puts:
        steps = [(name, number, size) for (name, size), number in zip(choices, numbers, strict=False)]
        steps += [(edit, numbers[0], SIZES[0]), *((name, number, SIZES[1]) for name, number in runs)]
        window = kj.Window.empty(random_vlm, CAPACITY, mode=mode)
        patches = [None] * len(texts)
        for name, number, size in steps:
            window = changed(random_vlm, window, name, number, size, texts, stored, patches)
            for entry in window.entries:
                check(seen, entry.chunk.key, entry.chunk.codec, entry.chunk.kv)
            for patch in (entry.patch for entry in window.entries if entry.patch is not None):
                u, v = patch.factors.floats(jnp.float32)
                check(seen, patch.key, patch.codec, jnp.einsum("lmt,lmf->ltf", u, v, precision="highest"))


def check(seen, key, codec, value):
    assert len(key) == 64
    first = seen.setdefault((key, codec), value)
    # The rounding of the device: sums over windows in place go in another order, and a fit is as exact as its KV.
    assert far(value, first) <= 1e-4


def changed(vlm, window, name, number, size, texts, stored, patches):
    chunk = texts[number]
    match name:
        case "coarse":
            chunk = stored[number]
        case "patched":
            patches[number] = kj.form_patch(vlm, chunk, context=window, **size)
            return kj.append(window, chunk, patches[number])
        case "stale":
            return kj.append(window, chunk, patches[number])
        case "rerun":
            patch = kj.form_patch(vlm, chunk, antecedents=[texts[number - 1]], **size)
            policy = kj.ReusePolicy(fallback="reprefill")
            return kj.append_checked(vlm, window, chunk, patch, policy)[0]
        case "turn":
            return kj.generate(vlm, window, "which page ?", max_new_tokens=2).window
        case "reorder":
            return kj.reorder(window, list(range(len(window.entries)))[::-1])
        case "slide":
            return kj.slide(window, min(1, len(window.entries)))
        case "replace":
            return kj.replace(window, len(window.entries) - 1, chunk, patches[number])
        case "prefill":
            sources = [entry.chunk for entry in window.entries[:2]]
            return kj.prefill(vlm, [*sources, TEXTS[number]], capacity=CAPACITY)
        case "none":
            return window
    return kj.append(window, chunk)


def test_the_oracle_sees_a_wrong_value():
    seen = {}
    check(seen, "0" * 64, "exact", jnp.ones(3))
    with pytest.raises(AssertionError):
        check(seen, "0" * 64, "exact", jnp.ones(3) * 1.01)
