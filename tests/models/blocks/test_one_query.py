"""Attention of a single query: against float64, however many devices its rows are joined on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks import softmax
from models.blocks.one_query import attention_of_one
from models.blocks.softmax import JOINED_BYTES, Keys
from models.blocks.softmax import attention as attention_of_any
from tests.eight_devices import on_devices
from tests.models.blocks.test_softmax import SCALE, case, compare, error, in_f64, repeated


def attention(q, parts, scale, weights=None, *, devices=1):
    """As other platforms than CPUs have it: there keys are joined."""
    return attention_of_one(q, parts, weights, scale, devices)


ONE = {
    "grouped": {"heads": 6, "groups": 2, "slots": 301},
    "one KV head": {"heads": 4, "groups": 1, "slots": 64},
    "MHA": {"heads": 4, "groups": 4, "slots": 33},
    "values wider than keys": {"heads": 8, "groups": 4, "slots": 20, "value": 11},
    "by itself": {"heads": 4, "groups": 2},
    "it stands among the slots": {"heads": 4, "groups": 2, "slots": 90, "among": True},
    "large scores": {"heads": 4, "groups": 2, "slots": 200, "size": 5.0},
}


@pytest.mark.parametrize("name", ONE)
def test_equals_float64(name):
    q, parts, weights = case(**ONE[name], tokens=1)
    groups = ONE[name]["groups"]
    exact = in_f64(q, parts, weights)
    for devices in {1, groups // 2 or 1, groups}:
        given = jax.jit(partial(attention, scale=SCALE, weights=weights, devices=devices))(q, parts)
        compare(given, exact, 1e-5 if name == "large scores" else 2e-6)


def test_a_bias_of_log_n_is_n_keys():
    q, parts, weights = case(**ONE["grouped"], tokens=1)
    times = [np.random.default_rng(3).integers(1, 5, len(part.seen)) for part in parts]
    several = [repeated(part, own) for part, own in zip(parts, times, strict=True)]
    biased = [
        part._replace(bias=jnp.log(jnp.asarray(own, jnp.float32))) for part, own in zip(parts, times, strict=True)
    ]
    out, lse, _ = attention(q, biased, SCALE)
    exact = in_f64(q, several, weights)
    assert error(out, exact[0]) <= 2e-6 and error(lse, exact[1]) <= 2e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_f32(dtype):
    q, parts, weights = case(**ONE["grouped"], tokens=1, dtype=dtype)
    given = attention(q, parts, SCALE, weights)
    assert given.out.dtype == dtype and given.lse.dtype == given.mass.dtype == jnp.float32
    compare(given, in_f64(q, parts, weights), float(jnp.finfo(dtype).eps))


def test_what_is_not_seen_may_be_anything_but_a_value():
    """Keys of slots that are not written may hold NaN, as all other forms allow it."""
    q, parts, weights = case(**ONE["grouped"], tokens=1)
    hidden = ~np.asarray(parts[0].seen)
    spoiled = parts[0]._replace(k=jnp.where(hidden[:, None, None], jnp.nan, parts[0].k))
    compare(attention(q, [spoiled, parts[1]], SCALE, weights), in_f64(q, parts, weights), 2e-6)


def test_gradients_and_batches():
    given = [case(seed, **ONE["grouped"], tokens=1) for seed in range(2)]

    def by_itself(k, rest):
        q, parts, _ = rest
        return jnp.square(attention(q, [parts[0]._replace(k=k), parts[1]], SCALE).out).sum()

    def by_two(k, rest):  # the same query twice
        q, parts, _ = rest
        twice = [parts[0]._replace(k=k), parts[1]._replace(before=None)]
        return jnp.square(attention_of_any(jnp.concatenate([q, q]), twice, SCALE).out[0]).sum()

    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
    together = jax.vmap(jax.grad(by_itself))(batch[1][0].k, batch)
    for i, each in enumerate(given):
        wanted = jax.grad(by_two)(each[1][0].k, each)
        assert error(together[i], np.asarray(wanted, np.float64)) <= 1e-5


@pytest.mark.parametrize("most", [JOINED_BYTES, 1000])
def test_what_is_lowered_for_a_cpu_joins_few_keys(most, monkeypatch):
    """And gives what more queries give, to the bit."""
    monkeypatch.setattr(softmax, "JOINED_BYTES", most)
    q, parts, weights = case(**ONE["grouped"], tokens=1)
    compare(attention_of_any(q, parts, SCALE, weights), in_f64(q, parts, weights), 2e-6)
    for platform, joined in {"cpu": most == JOINED_BYTES, "cuda": False}.items():
        program = jax.jit(partial(attention_of_any, scale=SCALE)).trace(q, parts).lower(lowering_platforms=(platform,))
        text = program.as_text()
        assert (f"tensor<{sum(len(part.seen) for part in parts)}x2x" in text) == joined


def split_over_devices():
    """Rows that are joined on each device alone need nothing of the others."""
    q, parts, weights = case(**ONE["MHA"], tokens=1)
    mesh = jax.make_mesh((2,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.P(None, "heads"))
    placed = [Keys(*(jax.device_put(x, split) for x in part[:2]), *part[2:]) for part in parts]
    run = jax.jit(partial(attention, scale=SCALE, devices=2), out_shardings=split)
    compiled = run.lower(jax.device_put(q, split), placed).compile()
    text = compiled.as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
    exact = in_f64(q, parts, weights)
    out, lse, _ = compiled(jax.device_put(q, split), placed)
    assert error(out, exact[0]) <= 2e-6 and error(lse, exact[1]) <= 2e-6


def test_split_over_devices_they_say_nothing_to_each_other():
    """See `split_over_devices`; devices of their own, in a process."""
    program = "import tests.models.blocks.test_one_query as t\nt.split_over_devices()"
    on_devices(2, program)
