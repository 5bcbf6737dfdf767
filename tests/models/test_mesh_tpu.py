"""A model on eight TPUs, compiled without them: its forward reads chunks in place by a kernel of each device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import compiled
from kamera_jax.kv import ChunkPool, KVSpec, Segment, WindowState
from models.blocks.params import is_info
from models.blocks.sharding import param_shardings, placement_of
from models.forward import forward_of
from models.registry import ARCHITECTURES
from tests.models.wide_ports import ports

SIZES = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "max_position_embeddings": 4096}
GQA = SIZES | {"num_key_value_heads": 8, "head_dim": 128}
MLA = SIZES | {"num_key_value_heads": 16, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
TOKENS = 128
PLACES = 4
RANK = 32


def model(kind, **sizes):
    mapping, _ = ports()[kind]
    mapping = {**mapping, "text_config": mapping["text_config"] | sizes} if kind == "kimi_vl" else {**mapping, **sizes}
    port = ARCHITECTURES[kind]
    return port.config_from_hf(mapping).text, {"text": port.declaration(port.config_from_hf(mapping))["text"]}


@pytest.mark.parametrize(
    ("kind", "sizes"), [("llama", GQA), pytest.param("kimi_vl", MLA | {"v_head_dim": 128}, marks=pytest.mark.soak)]
)
def test_a_question_is_read_by_kernels_on_eight_chips(kind, sizes):
    compiled.mesh("v5e")  # sets what libtpu needs without a device
    devices = np.asarray(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices)
    names = ("model",) if kind == "llama" else ("expert", "model")
    mesh = jax.sharding.Mesh(devices if kind == "llama" else devices.reshape(2, 4), names)
    text, declared = model(kind, **sizes)
    rot, free, heads = text.attention.kv_widths
    layers = text.num_hidden_layers
    spec = KVSpec(layers, rot, free, heads, text.rope, "bfloat16", "a model")

    def struct(info, where):
        return jax.ShapeDtypeStruct(info.shape, info.dtype or "bfloat16", sharding=where)

    params = jax.tree.map(struct, declared, param_shardings(declared, mesh), is_leaf=is_info)
    placement = placement_of(spec, params["text"])
    assert placement is not None and placement.split == (kind == "llama")
    state = jax.eval_shape(lambda: spec.empty_state(TOKENS))
    own = {"rot": (TOKENS, rot), "free": (TOKENS, free), "u": (RANK, TOKENS), "v": (RANK, rot + free)}
    shapes = {name: jax.ShapeDtypeStruct((layers, PLACES, *shape), jnp.bfloat16) for name, shape in own.items()}
    pool = ChunkPool(
        **shapes,
        positions=jax.ShapeDtypeStruct((PLACES, 1, TOKENS), "float32"),
        lengths=jax.ShapeDtypeStruct((PLACES,), "int32"),
        bases=jax.ShapeDtypeStruct((PLACES,), "float32"),
        ranks=jax.ShapeDtypeStruct((layers, PLACES), "int32"),
    )
    state = WindowState(state.rot, state.free, state.positions, state.valid, (pool,))
    tokens = {"tokens": jax.ShapeDtypeStruct((16,), "int32")}
    segment = Segment(tokens, jax.ShapeDtypeStruct((1, 16), "float32"), jax.ShapeDtypeStruct((), "int32"))
    whole = NamedSharding(placement.mesh, PartitionSpec())
    given = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), segment),
        jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, placement.shardings(state)
        ),
    )
    forward = forward_of(text, placement)

    def asked(params, segment, state):
        return forward(params, segment, state, logits_at=segment.length[None] - 1)

    on = jax.sharding.use_abstract_mesh(placement.mesh.abstract_mesh)  # tells Pallas which generation it compiles for
    with compiled.uncached(), on, jax.default_matmul_precision("default"):
        program = jax.jit(asked).trace(params, *given).lower(lowering_platforms=("tpu",)).compile()
    assert "chunk_attention" in compiled.kernels(program)
    assert program.output_shardings.kv.rot.is_equivalent_to(placement.of_features(3), 3)
