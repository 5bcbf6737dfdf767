"""relocate_patch's Mosaic GPU kernel: interpreted against float64, compiled for an H200 without one, and its refusals.

What needs jax 0.11 (Python 3.12) is skipped before it; `.ci/newest` runs it.
"""

import functools
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from benchmarks.compiled import uncached
from pallas_kernels.dispatch import GPU_JAX
from pallas_kernels.relocate_patch import gpu, gpu_call
from pallas_kernels.relocate_patch.chunk import Cache, Chunk, Patch
from pallas_kernels.relocate_patch.shapes import SHAPES
from tests import oracles

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < GPU_JAX, reason=f"the kernel needs jax 0.11 (Python 3.12); this is {jax.__version__}"
)
needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="compiling needs the jax-cuda13-plugin package"
)


def spec(head_dim, rotary_dim=None, layout="half", sections=None):
    frequencies = 1e4 ** -(np.arange(0, 1, 2 / (rotary_dim or head_dim)))
    return SimpleNamespace(
        head_dim=head_dim,
        rotary_dim=rotary_dim or head_dim,
        layout=layout,
        inv_freq=frequencies,
        sections=sections,
        section_layout="contiguous",
        scale=1.0,
    )


def tables(spec, positions):
    """Full width, the sign in sin, (1, 0) outside the rotary dims."""
    radians = oracles.angles(positions, spec.inv_freq, spec.sections, spec.section_layout)
    cos = np.ones((len(radians), spec.head_dim))
    sin = np.zeros((len(radians), spec.head_dim))
    pairs = radians.shape[-1]
    half = spec.layout == "half"
    first, second = (
        (slice(pairs), slice(pairs, 2 * pairs)) if half else (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    )
    cos[:, first] = cos[:, second] = np.cos(radians)
    sin[:, first] = -np.sin(radians)
    sin[:, second] = np.sin(radians)
    return jnp.asarray(cos, jnp.float32), jnp.asarray(sin, jnp.float32)


# name: RoPE, layers, heads, free width, rank, tokens, length
CASES = {
    "gqa-64": (spec(64), 2, 2, 128, 32, 128, 100),
    "gqa-80": (spec(80), 1, 2, 160, 16, 64, 64),
    "gqa-80-interleaved-pairs": (spec(80, layout="interleaved"), 1, 2, 160, 8, 64, 50),
    "gqa-96-partial": (spec(96, 32), 2, 2, 192, 20, 64, 33),
    "gqa-128-mrope": (spec(128, sections=(16, 24, 24)), 2, 1, 128, 32, 64, 64),
    "gqa-128-partial-interleaved-pairs": (spec(128, 64, "interleaved"), 1, 2, 256, 16, 64, 7),
    "gqa-256": (spec(256), 1, 1, 256, 64, 64, 40),
    "gqa-256-partial": (spec(256, 16), 1, 1, 256, 16, 64, 64),
    "mla": (spec(64, layout="interleaved"), 2, 1, 512, 64, 64, 64),
    "blind": (spec(64), 2, 2, 128, None, 32, 32),
    "decoding": (spec(64), 2, 2, 128, 1, 1, 1),
}


def arrays(name, seed=0):
    """What the backend takes, and (rot, free) in float64; all that must not be read is poisoned."""
    case, layers, heads, width, rank, tokens, length = CASES[name]
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)

    rot = normal(layers, tokens, heads * case.head_dim)
    free = normal(layers, tokens, width)
    positions = rng.integers(0, 8, (3 if case.sections else 1, tokens)) / 4
    u = None
    v = None
    ranks = None
    if rank is not None:
        u = normal(layers, rank, tokens)
        v = normal(layers, rank, heads * case.head_dim + width)
        ranks = jnp.array([rank, *rng.integers(0, rank + 1, layers - 1)], jnp.int32)
    expected = oracles.relocate(case, rot, free, positions, length, *(() if u is None else (u, v, ranks)))
    past = (np.arange(tokens) >= length)[None, :, None]
    rot, free = (jnp.where(past, jnp.nan, x).astype(x.dtype) for x in (rot, free))
    if u is not None:
        unused = (np.arange(rank)[None, :] >= np.asarray(ranks)[:, None])[..., None]
        u = jnp.where(unused | past.swapaxes(1, 2), jnp.nan, u).astype(u.dtype)
        v = jnp.where(unused, jnp.inf, v).astype(v.dtype)
    cos, sin = (jnp.where(past[0], jnp.nan, table) for table in tables(case, positions))
    patch = None if rank is None else Patch(u, v, ranks)
    return Chunk(rot, free, cos, sin, patch, jnp.int32(length), case.rotary_dim, case.layout), expected


def interpreted(**fields):
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(**fields)


def relocated(chunk, interpret):
    return jax.jit(functools.partial(gpu.relocate_patch_gpu, interpret=interpret))(chunk)


def written(caches, place, chunk, interpret):
    into = functools.partial(gpu.relocate_patch_into_gpu, interpret=interpret)
    return jax.jit(into)(Cache(*caches), place, chunk)


def close(given, expected):
    """One rounding: each value within one bf16 ulp of the float64 one, and zero where that is."""
    for array, wanted in zip(given, expected, strict=True):
        assert array.dtype == jnp.bfloat16 and array.shape == wanted.shape
        rounded = wanted.astype(jnp.bfloat16).astype(np.float64)
        ulp = float(jnp.finfo(jnp.bfloat16).eps) * 2.0 ** np.floor(np.log2(np.maximum(np.abs(rounded), 1e-30)))
        assert (np.abs(np.asarray(array, np.float64) - rounded) <= ulp).all()


def random_caches(name, *slots):
    case, layers, heads, width, *_ = CASES[name]
    rng = np.random.default_rng(1)
    return [
        jnp.asarray(rng.standard_normal((layers, *slots, columns)), jnp.bfloat16)
        for columns in (heads * case.head_dim, width)
    ]


def kept_and_written(caches, after, expected, slots):
    """``slots`` (flat over pages) hold ``expected``; every other keeps its bits."""
    before, after = ([np.asarray(x, np.float64).reshape(len(x), -1, x.shape[-1]) for x in xs] for xs in (caches, after))
    close([jnp.asarray(x[:, slots], jnp.bfloat16) for x in after], [x[:, : len(slots)] for x in expected])
    others = np.setdiff1d(np.arange(before[0].shape[1]), slots)
    assert all((x[:, others] == y[:, others]).all() for x, y in zip(before, after, strict=True))


@needs_mosaic
@pytest.mark.parametrize("name", CASES)
def test_equals_float64_and_reads_nothing_past_length_or_rank(name):
    chunk, expected = arrays(name)
    close(relocated(chunk, interpreted()), expected)


@needs_mosaic
@pytest.mark.parametrize(
    "name, slot, slots",
    [("gqa-64", 16, 160), ("mla", 0, 64), ("gqa-128-partial-interleaved-pairs", 32, 80), ("decoding", 48, 64)],
)
def test_writes_into_a_cache_up_to_its_edge_and_leaves_the_rest(name, slot, slots):
    chunk, expected = arrays(name)
    caches = random_caches(name, slots)
    after = written(caches, jnp.int32(slot), chunk, interpreted())
    kept_and_written(caches, after, expected, slot + np.arange(int(chunk.length)))


@needs_mosaic
@pytest.mark.parametrize("name, page", [("gqa-64", 16), ("gqa-64", 128), ("mla", 64)])
def test_writes_into_pages(name, page):
    chunk, expected = arrays(name)
    tokens = chunk.tokens
    length = int(chunk.length)
    pages = np.random.default_rng(2).permutation(tokens // page + 3)[: tokens // page]
    # A page past the end is not looked at: here it is not one.
    table = np.where(np.arange(tokens // page) * page < length, pages, 10**6)
    caches = random_caches(name, tokens // page + 3, page)
    after = written(caches, jnp.asarray(table, jnp.int32), chunk, interpreted())
    kept_and_written(caches, after, expected, (pages[:, None] * page + np.arange(page)).reshape(-1)[:length])


@needs_mosaic
def test_no_races():
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

    chunk, expected = arrays("gqa-64")
    caches = random_caches("gqa-64", 160)
    after = written(caches, jnp.int32(32), chunk, interpreted(detect_races=True))
    kept_and_written(caches, after, expected, 32 + np.arange(100))
    assert not get_races().races_found


@needs_mosaic
def test_vmap():
    rows = [arrays("gqa-64", seed) for seed in (0, 1)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(chunk for chunk, _ in rows))
    one = functools.partial(gpu.relocate_patch_gpu, interpret=interpreted())
    after = jax.jit(jax.vmap(one))(batch)
    for i, (_, expected) in enumerate(rows):
        close([x[i] for x in after], expected)


@needs_mosaic
def test_lowered_for_cuda_the_kernel_does_it_all():
    chunk, _ = arrays("mla")
    into = jax.jit(gpu.relocate_patch_into_gpu, donate_argnums=0)
    cache = Cache(*random_caches("mla", 128))
    text = into.trace(cache, jnp.int32(0), chunk).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @mosaic_gpu", text)) == 1
    assert "dot_general" not in text and "cosine" not in text


@needs_mosaic
@needs_plugin
@pytest.mark.parametrize(
    "name, page",
    [
        ("qwen2.5-vl-7b", None),
        ("qwen2.5-vl-7b long", None),
        ("qwen2.5-vl-7b blind", None),
        ("kimi-vl", None),
        ("deepseek-v3", None),
        ("phi-2", 16),
        ("phi-3.5-vision", None),
        ("moondream-2", None),
        ("paligemma-3b", 64),
    ],
)
def test_compiles_for_h200_without_spills_and_in_place(name, page, capfd, monkeypatch):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    config = (Path(__file__).parent / "h200.txtpb").read_text()
    device = topologies.get_topology_desc("h200", "cuda", target_config=config, topology="1x1x1").devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    case = SHAPES[name]
    arguments = case.into(2 * case.tokens, page=page)
    arguments = jax.tree.map(lambda x: x.update(sharding=jax.NamedSharding(mesh, jax.P())), arguments)
    into = jax.jit(gpu.relocate_patch_into_gpu, donate_argnums=0)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = into.trace(*arguments).lower(lowering_platforms=("cuda",))
    with uncached():
        compiled = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", "".join(capfd.readouterr()))
    assert spills and set(spills) == {("0", "0")}

    def size(*arrays):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))

    cache, _, chunk = arguments
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == size(cache)
    # The patch with zeros past its ranks, the tables at half width, and what the launch needs: nothing of KV size.
    assert (
        memory.temp_size_in_bytes
        <= size(chunk.patch and (chunk.patch.u, chunk.patch.v)) * 1.25 + size(chunk.cos) + 2**16
    )


@needs_mosaic
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name):
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU; where there is one, JAX_PLATFORMS=cuda,cpu finds it")
    if device.compute_capability != "9.0":
        pytest.skip(f"the kernel is for compute capability 9.0; this GPU's is {device.compute_capability}")
    chunk, expected = arrays(name)
    with jax.default_device(device):
        chunk = jax.device_put(chunk, device)
        close(relocated(chunk, False), expected)
        caches = jax.device_put(random_caches(name, 256), device)
        after = written(caches, jnp.int32(16), chunk, False)
        kept_and_written(caches, after, expected, 16 + np.arange(int(chunk.length)))


def shape(*sizes, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"rotary_dim": 64, "layout": "interleaved"}, None),
        ({"cache": shape(2, 96, 256)}, None),
        ({"cache": shape(2, 9, 32, 256)}, None),
        ({"u": None, "v": None}, None),
        ({"rot": shape(2, 128, 256, dtype="float32")}, "takes bfloat16 arrays, and these are bfloat16, float32"),
        ({"u": shape(2, 32, 128, dtype="float16")}, "takes bfloat16 arrays"),
        ({"head_dim": 72, "rotary_dim": 72}, "heads of .64, 80, 96, 128, 256., and D is 72"),
        ({"rotary_dim": 24}, "rotates 16, 32, .* not 24"),
        ({"free": shape(2, 128, 520)}, "multiples of 16, not 520"),
        ({"u": shape(2, 65, 128), "v": shape(2, 65, 512)}, "rank 1 to 64, and this one has 65"),
        ({"u": shape(2, 0, 128), "v": shape(2, 0, 512)}, "rank 1 to 64, and this one has 0"),
        ({"cache": shape(2, 9, 48, 256)}, "pages of 16, 32 or a multiple of 64 tokens, not 48"),
        ({"cache": shape(2, 56, 256)}, "caches of 64 slots or more, .* not 56"),
        ({"cache": shape(2, 100, 256)}, "in multiples of 8, not 100"),
    ],
)
def test_it_says_what_it_cannot_serve(changes, reason):
    call = {"rot": shape(2, 128, 256), "free": shape(2, 128, 256), "u": shape(2, 32, 128), "v": shape(2, 32, 512)}
    call |= {"head_dim": 128, "rotary_dim": 128, "layout": "half", "cache": None, **changes}
    table = shape(128, call["head_dim"], dtype="float32")
    patch = None if call["u"] is None else Patch(call["u"], call["v"], shape(2, dtype="int32"))
    length = shape(dtype="int32")
    chunk = Chunk(call["rot"], call["free"], table, table, patch, length, call["rotary_dim"], call["layout"])
    given = gpu.refusal(chunk, None if call["cache"] is None else Cache(call["cache"], call["free"]))
    assert given is None if reason is None else re.search(reason, given)


def test_tiles_divide_the_layers_and_fit():
    for case in SHAPES.values():
        tiles = gpu_call.choose_tiles(case.layers, case.tokens, case.rank)
        assert case.layers % tiles.groups == 0 and 2 <= tiles.stages <= 4
        stage = 2 * (gpu_call.ROWS * tiles.columns + case.rank * (gpu_call.ROWS + tiles.columns))
        assert tiles.stages * stage + 2 * gpu_call.ROWS * tiles.columns <= gpu_call.SHARED_MEMORY // 2
