"""chunk_attention's Mosaic GPU kernel: interpreted against float64, compiled for an H200 without one, and its refusals.

What needs jax 0.11 (Python 3.12) is skipped before it; `.ci/newest` runs it.
"""

import importlib.util
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from benchmarks.compiled import hbm_bytes, uncached
from pallas_kernels.chunk_attention.api import refusals
from pallas_kernels.chunk_attention.call import Heads
from pallas_kernels.chunk_attention.gpu import chunk_attention_gpu
from pallas_kernels.chunk_attention.gpu_call import stages
from pallas_kernels.chunk_attention.limits import GPU_HEAD_DIMS
from pallas_kernels.chunk_attention.shapes import SHAPES
from pallas_kernels.dispatch import GPU_JAX
from tests.pallas_kernels.chunk_attention_cases import Case, arrays, as_call, check, layered, poisoned, run

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < GPU_JAX, reason=f"the kernel needs jax 0.11 (Python 3.12); this is {jax.__version__}"
)
needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="compiling needs the jax-cuda13-plugin package"
)

BF16 = {"dtype": "bfloat16"}
CASES = {
    "gqa-64": Case(1, 7, 2, 64, 64, tokens=128, lengths=(128, 70, 0), ranks=(4, 0, 2), **BF16),
    "gqa-128-mrope": Case(2, 2, 1, 128, 128, tokens=64, lengths=(64, 33), rank=32, sections=(16, 24, 24), **BF16),
    "mha-96-no-patch": Case(1, 1, 2, 96, 96, tokens=64, lengths=(50,), rank=0, **BF16),
    "narrower-values-yarn": Case(9, 7, 1, 128, 64, tokens=64, lengths=(1, 64), rank=17, rope_scale=1.3, **BF16),
    "all-empty": Case(1, 4, 1, 64, 64, tokens=64, lengths=(0, 0), **BF16),
}


def interpreted(**fields):
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(**fields)


def kernel(**fields):
    return jax.jit(partial(chunk_attention_gpu, interpret=interpreted(**fields)))


@needs_mosaic
@pytest.mark.parametrize("name", CASES)
def test_equals_float64_and_reads_nothing_past_length_or_rank(name):
    """In one layer of several, the others and all that must not be read being full of nan."""
    case = CASES[name]
    call = arrays(case)
    check(case, call, run(kernel(), case, layered(case, poisoned(case, call))))


@needs_mosaic
def test_no_races():
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

    case = CASES["gqa-64"]
    call = arrays(case)
    check(case, call, run(kernel(detect_races=True), case, poisoned(case, call)))
    assert not get_races().races_found


@needs_mosaic
def test_vmap():
    case = replace(CASES["gqa-64"], lengths=(128, 70), ranks=(4, 1))
    calls = [arrays(case, seed) for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(as_call(case, call) for call in calls))
    out, lse = jax.jit(jax.vmap(partial(chunk_attention_gpu, interpret=interpreted())))(batch)
    for i, call in enumerate(calls):
        check(case, call, (out[i], lse[i]))


def compiled_for_h200(call):
    config = (Path(__file__).parent / "h200.txtpb").read_text()
    device = topologies.get_topology_desc("h200", "cuda", target_config=config, topology="1x1x1").devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    call = jax.tree.map(lambda x: x.update(sharding=jax.NamedSharding(mesh, jax.P())), call)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(chunk_attention_gpu).trace(call).lower(lowering_platforms=("cuda",))
    with uncached():
        return lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})


MOVED = {
    "qwen2.5-vl-7b decode": 1.25,
    "qwen2.5-vl-7b decode, no patch": 1.05,
    "llava-1.5-7b decode": 1.25,
    "D = 64 decode": 1.25,
    "D = 96 decode": 1.45,
}
"""Most bytes moved, over the ideal: beside it the patch with zeros past its ranks, and each chunk's own output."""


@needs_mosaic
@needs_plugin
@pytest.mark.parametrize("name", MOVED)
def test_compiles_for_h200(name, capfd, monkeypatch):
    """Of a thread's registers a few go to memory, once a tile of 64 tokens."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    call = SHAPES[name].call()
    compiled = compiled_for_h200(call)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", "".join(capfd.readouterr()))
    assert spills and all(int(size) <= 256 for pair in spills for size in pair)
    ideal = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(call))
    assert hbm_bytes(compiled) <= MOVED[name] * ideal


@needs_mosaic
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name):
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU; where there is one, JAX_PLATFORMS=cuda,cpu finds it")
    if device.compute_capability != "9.0":
        pytest.skip(f"the kernel is for compute capability 9.0; this GPU's is {device.compute_capability}")
    case = CASES[name]
    call = arrays(case)
    with jax.default_device(device):
        given = jax.device_put(layered(case, poisoned(case, call)), device)
        check(case, call, run(jax.jit(chunk_attention_gpu), case, given))


HEADS = Heads(28, 4, 128, 128, latent=False)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"heads": replace(HEADS, rotated=64, value=64), "pairs": 32}, None),
        ({"rows": 64, "rank": 64}, None),
        ({"dtypes": ["bfloat16", "float32"]}, "takes arrays in bfloat16, not float32"),
        ({"heads": Heads(16, 1, 64, 512, latent=True)}, "no latents"),
        ({"heads": replace(HEADS, rotated=80)}, "heads of .64, 96, 128., and these are 80 and 128"),
        ({"pairs": 32}, "whole heads in half-split pairs, not 64 dims of 128"),
        ({"layout": "interleaved"}, "half-split pairs, .*interleaved"),
        ({"rows": 65}, "up to 64 queries of a KV head together, not 65"),
        ({"tokens": 80}, "a multiple of 64 tokens, not 80"),
        ({"rank": 65}, "up to 64 components, not 65"),
        ({"biased": True}, "adds no bias"),
    ],
)
def test_it_says_what_it_cannot_serve(changes, reason):
    call = {"heads": HEADS, "pairs": 64, "dtypes": ["bfloat16"], "rows": 7, "tokens": 512, "rank": 32, **changes}
    given = refusals(call.pop("heads"), call.pop("pairs"), call.pop("dtypes"), **call)["mosaic_gpu"]
    assert given is None if reason is None else re.search(reason, given)


def test_a_block_has_room_for_two_stages():
    for head_dim in GPU_HEAD_DIMS:
        for value in GPU_HEAD_DIMS:
            assert min(stages(head_dim, value, rank) for rank in (0, 16, 32, 64)) >= 2
