"""What a call runs is decided by the platform it is lowered for, and where its arrays lie; kernels have gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import compiled
from pallas_kernels import chunk_attention, dispatch, relocate_patch, relocate_patch_into
from pallas_kernels.chunk_attention import api as attention
from pallas_kernels.relocate_patch import api as relocation
from pallas_kernels.relocate_patch.shapes import SHAPES
from tests import oracles
from tests.pallas_kernels.calls import Call, spec

CALL = Call(spec(128), 1, 128, 1, 16, 4)


def relocated(*arrays, **options):
    return relocate_patch(*arrays, **CALL.options, **options)


def written(*arrays, **options):
    return relocate_patch_into(*arrays, **CALL.options, **options)


def operation(name):
    """A public call as a function of arrays, and its arrays: in shapes that the TPU's kernels serve."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    operands = CALL.operands(CALL.draw())
    if name == "relocate_patch":
        return relocated, operands
    if name == "relocate_patch_into":
        return written, (*(jnp.zeros((1, 64, width), jnp.float32) for width in (128, 128)), jnp.int32(32), *operands)

    def attended(q, rot, free, u, v, **options):
        places = {"positions": jnp.tile(jnp.arange(16, dtype=jnp.float32), (2, 1, 1)), "bases": jnp.float32([7, 200])}
        frequencies = jnp.asarray(10.0 ** -np.linspace(0, 4, 64)[None], jnp.float32)
        lengths = jnp.int32([10, 16])
        given = (q, rot, free, places["positions"], frequencies, u, v)
        return chunk_attention(*given, lengths=lengths, bases=places["bases"], scale=0.1, **options)

    return attended, (normal(8, 4, 128), *(normal(2, 16, 256) for _ in "rf"), normal(2, 4, 16), normal(2, 4, 512))


OPERATIONS = ["relocate_patch", "relocate_patch_into", "chunk_attention"]


def exported(function, given, *platforms):
    return jax.export.export(jax.jit(function), platforms=platforms)(*given)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_exported_for_a_tpu_it_holds_the_kernel(name, x64):
    function, given = operation(name)
    with jax.enable_x64(x64):
        for platform, kernels in (("tpu", True), ("cpu", False), ("cuda", False)):
            assert ("tpu_custom_call" in exported(function, given, platform).mlir_module()) == kernels
        assert "tpu_custom_call" not in exported(partial(function, implementation="xla"), given, "tpu").mlir_module()


@pytest.mark.parametrize("name", OPERATIONS)
def test_exported_for_many_platforms_each_runs_its_own(name):
    function, given = operation(name)
    both = exported(function, given, "cpu", "tpu")
    assert "tpu_custom_call" in both.mlir_module()
    for ours, wanted in zip(both.call(*given), function(*given, implementation="xla"), strict=True):
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_runs_where_its_arrays_lie_and_not_on_the_default_backend(name, monkeypatch):
    """As on a TPU host that computes on its CPU; there is no TPU here, so its name alone is there."""
    function, given = operation(name)
    wanted = function(*given, implementation="xla")
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        results = [function(*given), jax.jit(function)(*given)]
    results.append(function(*jax.device_put(given, cpu)))
    for result in results:
        for ours, exact in zip(result, wanted, strict=True):
            np.testing.assert_array_equal(ours, exact)


def weighed(function, given):
    """A number that every result has a part in, as a function of the arrays that have gradients; and which they are."""
    places = [place for place, array in enumerate(given) if jnp.issubdtype(array.dtype, jnp.floating)]

    def loss(*chosen):
        arrays = list(given)
        for place, array in zip(places, chosen, strict=True):
            arrays[place] = array
        results = function(*arrays)
        return sum(jnp.sum(jnp.sin(x) * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)) for x in results)

    return loss, [given[place] for place in places]


def interpreted(monkeypatch):
    """As on a TPU, with its kernels in interpret mode; their calls are counted by the list that is returned."""
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    called = []
    for api, name in ((relocation, "_relocating"), (relocation, "_writing"), (attention, "_attending")):
        before = getattr(api, name)

        def backends(implementation, before=before):
            if implementation == "xla":
                return before("xla")
            called.append(implementation)
            return partial(before(implementation), interpret=True)

        monkeypatch.setattr(api, name, backends)
    return called


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_a_kernel_are_those_of_xla(name, monkeypatch):
    function, given = operation(name)
    exact, chosen = weighed(partial(function, implementation="xla"), given)
    wanted = jax.grad(exact, range(len(chosen)))(*chosen)
    directions = [jnp.cos(array) for array in chosen]
    _, along = jax.jvp(exact, chosen, directions)
    called = interpreted(monkeypatch)
    loss, _ = weighed(partial(function, implementation="pallas_tpu"), given)
    value, gradients = jax.jit(jax.value_and_grad(loss, range(len(chosen))))(*chosen)
    assert called
    np.testing.assert_allclose(value, exact(*chosen), rtol=1e-5)
    _, change = jax.jit(lambda *chosen: jax.jvp(loss, list(chosen), directions))(*chosen)
    stacked = [jnp.stack([array, array[..., ::-1]]) for array in chosen]
    many = jax.jit(jax.vmap(jax.grad(loss, range(len(chosen)))))(*stacked)
    terms = sum(np.abs(each * direction).sum() for each, direction in zip(wanted, directions, strict=True))
    assert abs(change - along) <= 1e-5 * terms
    for each, batched, right in zip(gradients, many, wanted, strict=True):
        assert each.dtype == right.dtype and np.asarray(right).any()
        assert oracles.relative(each[None], np.asarray(right, np.float64)[None]).max() <= 1e-5
        assert oracles.relative(batched[:1], np.asarray(right, np.float64)[None]).max() <= 1e-5


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_lowered_for_a_tpu(name):
    """The forward pass by the kernel, what is differentiated by XLA."""
    loss, chosen = weighed(*operation(name))
    program = jax.jit(jax.value_and_grad(loss, range(len(chosen)))).trace(*chosen)
    assert "tpu_custom_call" in program.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in program.lower(lowering_platforms=("cpu",)).as_text()


def test_compiled_for_a_tpu_the_public_call_writes_in_place():
    shape = SHAPES["qwen2.5-vl-3b"]
    cache, place, chunk = shape.into(shape.tokens)
    patch = chunk.patch

    def into(cache, place, *arrays):
        rest = {"rotary_dim": chunk.rotary_dim, "layout": chunk.layout}
        return relocate_patch_into(cache.rot, cache.free, place, *arrays[:-1], length=arrays[-1], **rest)

    given = (chunk.rot, chunk.free, chunk.cos, chunk.sin, patch.u, patch.v, patch.ranks, chunk.length)
    for function in (into, jax.vmap(into)):
        many = (cache, place, *given)
        if function is not into:
            many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), many)
        program = compiled.compile_for("v5e", function, *many, donate=(0,))
        assert compiled.kernels(program) == ["relocate_patch_into"]
        assert compiled.aliased(program) == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(many[0]))
        assert compiled.temporaries(program) == 0


def test_heads_split_over_a_mesh_by_the_public_call():
    """The types agree on every platform: each branch's results vary over the axes that an argument varies over."""
    mesh = jax.make_mesh((1,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    function, (rot, free, cos, sin, u, v, ranks) = operation("relocate_patch")
    split = P(None, None, "heads")
    specs = (split, split, P(), P(), P(), P(), P())
    apart = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=(split, split)))
    program = apart.trace(rot, free, cos, sin, u, v, ranks)
    assert "tpu_custom_call" in program.lower(lowering_platforms=("tpu",)).as_text()
    for ours, wanted in zip(
        apart(rot, free, cos, sin, u, v, ranks), function(rot, free, cos, sin, u, v, ranks), strict=True
    ):
        np.testing.assert_array_equal(ours, wanted)
