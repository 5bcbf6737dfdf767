"""Attention by the kernels that JAX keeps: the definition, derivatives, which calls they serve, and where."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compiled
from models.blocks import flash, softmax
from models.blocks.softmax import Keys, attention
from pallas_kernels import dispatch
from pallas_kernels.flash_attention.splash import splash_attention
from tests.models.blocks.test_softmax import CASES, SCALE, compare, error, in_f64
from tests.models.blocks.test_softmax import case as traced_case

SERVED = [
    *("grouped", "one KV head", "MHA", "values narrower than keys", "behind a window with holes", "padding"),
    *("few tokens behind much", "an empty window", "everyone sees everyone", "bidirectional with padding"),
]


def case(name, **options):
    """As the test of blocks has it, with causality that is known."""
    q, parts, weights = traced_case(**CASES[name] | options)
    known = [part if part.before is None else part._replace(before=np.asarray(part.before)) for part in parts]
    return q, known, weights


@pytest.fixture
def kernels(monkeypatch):
    """As on a TPU, with its kernels in interpret mode; their calls are counted by the list."""
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    called = []
    before = flash._attending

    def attending(name):
        if name != "pallas_tpu":
            return before(name)

        def counted(*arguments, **options):
            called.append(options["causal"])
            return splash_attention(*arguments, **options, interpret=True)

        return flash._part_by_part(counted)

    monkeypatch.setattr(flash, "_attending", attending)
    return called


by_kernel = partial(attention, implementation="pallas_tpu")


@pytest.mark.parametrize("name", SERVED)
def test_a_kernel_is_the_definition(kernels, name):
    q, parts, weights = case(name)
    given = jax.jit(lambda q, k, v: by_kernel(q, [
        part._replace(k=k, v=v) for part, k, v in zip(parts, k, v, strict=True)
    ], SCALE))(q, [part.k for part in parts], [part.v for part in parts])  # fmt: skip
    assert kernels == [part.before is not None for part in parts]
    exact = in_f64(q, parts, weights)
    compare(given._replace(mass=exact[2]), exact, 2e-6)


@pytest.mark.parametrize("name", ["grouped", "behind a window with holes"])
def test_in_bfloat16_it_is_as_near_as_blocks(kernels, name):
    q, parts, weights = case(name, dtype=jnp.bfloat16)
    exact = in_f64(q, parts, weights)
    given = by_kernel(q, parts, SCALE)
    assert given.out.dtype == jnp.bfloat16 and given.lse.dtype == jnp.float32
    compare(given._replace(mass=exact[2]), exact, float(jnp.finfo(jnp.bfloat16).eps))


def test_mass_by_owner_goes_through_the_kernel(kernels):
    q, parts, weights = case("behind a window with holes")
    number = np.random.default_rng(4).integers(-1, 3, sum(len(part.seen) for part in parts))
    owners = number[:, None] == np.arange(3)
    ends = np.cumsum([len(part.seen) for part in parts])
    owned = [
        part._replace(owners=jnp.asarray(each)) for part, each in zip(parts, np.split(owners, ends[:-1]), strict=True)
    ]
    out, lse, mass = in_f64(q, parts, weights)
    compare(by_kernel(q, owned, SCALE, weights), (out, lse, mass @ owners), 2e-6)
    assert kernels == [False, True]


def test_derivatives_are_those_of_blocks(kernels, monkeypatch):
    q, parts, _ = case("behind a window with holes")

    def loss(implementation, q, k, v):
        out, lse, _ = attention(q, [
            part._replace(k=k, v=v) for part, k, v in zip(parts, k, v, strict=True)
        ], SCALE, implementation=implementation)  # fmt: skip
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(lse))

    arrays = (q, [part.k for part in parts], [part.v for part in parts])
    wanted = jax.grad(partial(loss, "xla"), (0, 1, 2))(*arrays)
    ours = jax.jit(jax.grad(partial(loss, "pallas_tpu"), (0, 1, 2)))(*arrays)
    assert kernels
    for given, right in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert error(given, np.asarray(right, np.float64)) <= 1e-5


def test_a_batch_is_each_by_itself(kernels):
    given = [case("behind a window with holes", seed=seed) for seed in range(2)]
    before = [part.before for part in given[0][1]]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[
        (q, [(part.k, part.v, part.seen) for part in parts]) for q, parts, _ in given
    ])  # fmt: skip

    def attend(q, arrays):
        return by_kernel(q, [Keys(*each, count) for each, count in zip(arrays, before, strict=True)], SCALE)

    together = jax.vmap(attend)(*batch)
    for i, (q, parts, weights) in enumerate(given):
        exact = in_f64(q, parts, weights)
        compare(together._replace(out=together.out[i], lse=together.lse[i], mass=exact[2]), exact, 2e-6)


REFUSED = {
    "not a count for each query": lambda q, parts: (q, [parts[0]._replace(before=jnp.asarray(parts[0].before))]),
    "not float16": lambda q, parts: (q.astype("float16"), [
        part._replace(k=part.k.astype("float16"), v=part.v.astype("float16")) for part in parts
    ]),
    "up to 256": lambda q, parts: (jnp.tile(q, 64), [part._replace(k=jnp.tile(part.k, 64)) for part in parts]),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_kernel_serves_is_refused_by_name_and_served_by_xla(kernels, monkeypatch, reason):
    q, parts = REFUSED[reason](*case("grouped")[:2])
    with pytest.raises(ValueError, match=reason):
        by_kernel(q, parts, SCALE)
    monkeypatch.setattr(softmax, "BLOCK_BYTES", 1)
    program = jax.jit(lambda q, k, v: attention(q, [parts[0]._replace(k=k, v=v)], SCALE))
    text = program.trace(q, parts[0].k, parts[0].v).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in text and not kernels


def test_mass_by_key_is_refused_by_name(kernels):
    q, parts, weights = case("grouped")
    with pytest.raises(ValueError, match="how much attention each key receives"):
        by_kernel(q, parts, SCALE, weights)


def lowered(platform, *, mesh=None):
    """A call of ours in bf16, lowered for a platform."""
    struct = partial(jax.ShapeDtypeStruct, sharding=mesh and jax.sharding.NamedSharding(mesh, jax.P(None, "heads")))
    q = struct((256, 8, 64), jnp.bfloat16)
    k = struct((1024, 4, 64), jnp.bfloat16)
    seen = np.ones(1024, bool)
    traced = jax.jit(lambda q, k, v: attention(q, [Keys(k, v, jnp.asarray(seen))], 0.1)).trace(q, k, k)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_that_a_program_is_lowered_for_decides(monkeypatch):
    monkeypatch.setattr(softmax, "BLOCK_BYTES", 2**16)
    assert "tpu_custom_call" in lowered("tpu")
    assert "tpu_custom_call" not in lowered("cpu") and "tpu_custom_call" not in lowered("cuda")


@pytest.mark.parametrize("target", ["v5e"])
def test_what_the_compiler_cuts_among_devices_is_by_blocks(monkeypatch, target):
    """As the heads of a model on a mesh: the compiler cannot cut a kernel, and would refuse the program."""
    monkeypatch.setattr(softmax, "BLOCK_BYTES", 2**16)
    assert "tpu_custom_call" not in lowered("tpu", mesh=compiled.mesh(target))
