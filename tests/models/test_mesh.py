"""Models on a mesh of eight devices: what is split, how it is read, and that it computes the same."""

import pytest

from tests.eight_devices import on_eight_devices


@pytest.mark.parametrize(
    ("kind", "shape", "names"),
    [
        ("gqa", (2, 4), ("fsdp", "model")),
        ("mla", (2, 4), ("expert", "model")),
        ("mha", (4, 2), ("model", "copies")),
    ],
)
def test_a_split_model_computes_what_the_whole_one_does(kind, shape, names):
    on_eight_devices(f"""
from kamera_jax.forward import run
one = load("kamera-tiny-{kind}")
many = load("kamera-tiny-{kind}", mesh=jax.make_mesh({shape}, {names}))
assert many.fingerprint == one.fingerprint
same(many.params, one.params)
leaves = jax.tree.leaves(many.params)
split = [leaf for leaf in leaves if leaf.addressable_shards[0].data.size < leaf.size]
assert sum(leaf.size for leaf in split) > 0.6 * sum(leaf.size for leaf in leaves)
side = 280 if "{kind}" == "mha" else 56
image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
for item in ("the star stands on the first page", image):
    segments = [each.prepare(item) for each in (one, many)]
    assert segments[0].content == segments[1].content
    outs = [
        run(each.params, segment, None, segment.length[None] - 1, forward=each.forward)
        for each, segment in zip((one, many), segments, strict=True)
    ]
    for given, wanted in zip(jax.tree.leaves(outs[1]), jax.tree.leaves(outs[0]), strict=True):
        close(given, wanted)
    assert len(outs[1].logits.sharding.device_set) == 8
""")


def test_each_device_has_its_share():
    on_eight_devices("""
text = load("kamera-tiny-mla", mesh=jax.make_mesh((2, 4), ("expert", "model"))).params["text"]
shards = lambda leaf: {shard.data.shape for shard in leaf.addressable_shards}
assert text["embed"]["w"].shape == (160, 128) and shards(text["embed"]["w"]) == {(40, 128)}
assert shards(text["layers"]["attn"]["o"]["w"]) == {(3, 32, 128)}
assert shards(text["moe_layers"]["mlp"]["experts"]["up"]) == {(2, 2, 128, 16)}
assert shards(text["norm"]) == {(128,)}
ours = load("kamera-tiny-mla", mesh=jax.make_mesh((8,), ("x",)), rules={"kv_latent": "x", "embed": "x"}).params["text"]
assert ours["layers"]["attn"]["kv_a"]["w"].sharding.spec == P(None, "x", None)
assert ours["layers"]["attn"]["kv_b"]["w"].sharding.spec == P(None, "x", None)
whole = load("kamera-tiny-mla", mesh=jax.make_mesh((8,), ("x",))).params["text"]
assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole))
""")


def test_what_does_not_divide_is_not_split():
    on_eight_devices("""
from models.blocks.params import ParamInfo
from models.blocks.sharding import param_shardings
mesh = jax.make_mesh((2, 4), ("fsdp", "model"))
spec = lambda shape, axes, rules=None: param_shardings({"w": ParamInfo(shape, axes=axes)}, mesh, rules)["w"].spec
assert spec((8, 12), ("embed", "mlp")) == P("fsdp", "model")
assert spec((8, 6), ("embed", "mlp")) == P("fsdp", None)
assert spec((7, 12), ("embed", "mlp")) == P(None, "model")
heads = lambda count, axes: param_shardings({"w": ParamInfo((64, 64), axes=axes, heads=count)}, mesh)["w"].spec
assert heads(8, ("embed", "heads")) == heads(4, ("embed", "kv_heads")) == P("fsdp", "model")
assert heads(2, ("embed", "kv_heads")) == P("fsdp", None) and heads(2, ("heads", "embed")) == P(None, "fsdp")
assert spec((8, 12), ("embed", "mlp"), {"mlp": ("fsdp", "model")}) == P(None, None)
assert spec((8, 16), ("embed", "mlp"), {"mlp": ("fsdp", "model")}) == P(None, ("fsdp", "model"))
""")


def test_shards_are_read_one_by_one():
    """Each once, however many devices have it, and never a leaf at a time that is split."""
    on_eight_devices("""
from pathlib import Path
import models.registry
from models.hub import weights
read = weights._read
shapes = []
def recorded(shape, bounds, sources, dtype):
    values = read(shape, bounds, sources, dtype)
    shapes.append(values.shape)
    return values
weights._read = recorded
params = load("kamera-tiny-gqa", mesh=jax.make_mesh((2, 4), ("copies", "model"))).params
wanted = []
for leaf in jax.tree.leaves(params):
    shards = leaf.addressable_shards
    apart = {tuple(s.indices(n) for s, n in zip(shard.index, leaf.shape)): shard.data.shape for shard in shards}
    wanted += apart.values()
assert sorted(shapes) == sorted(wanted)
assert len(shapes) > len(jax.tree.leaves(params))
""")


def test_fused_and_stacked_tensors_are_split(tmp_path):
    on_eight_devices(f"""
from pathlib import Path
from safetensors.numpy import save_file
from models.blocks.sharding import param_shardings
from tests.models.hub.test_weight_table import DECLARATION, LAYOUTS, one_by_one, read
shardings = param_shardings(DECLARATION, jax.make_mesh((2, 4), ("fsdp", "model")))
folder = Path({str(tmp_path)!r})
for rows, arranged in LAYOUTS.values():
    save_file(arranged(one_by_one()), folder / "model.safetensors")
    params = read(folder, rows, shardings=shardings)
    same(params, read(folder, rows))
    assert params["attn"]["k"]["w"].addressable_shards[0].data.shape == (3, 3, 1)
    assert params["experts"]["up"].addressable_shards[0].data.shape == (3, 5, 3, 1)
""")


def test_a_mesh_that_is_none_is_refused():
    on_eight_devices("""
import pytest
for mesh in ("model", 8, jax.devices(), jax.devices()[0]):
    with pytest.raises(ValueError, match="expected a jax.sharding.Mesh, such as jax.make_mesh"):
        load("kamera-tiny-gqa", mesh=mesh)
with pytest.raises(ValueError, match="the rules name the mesh axes .'model'.; the mesh has .'x'."):
    load("kamera-tiny-gqa", mesh=jax.make_mesh((8,), ("x",)), rules={"mlp": "model"})
with pytest.raises(ValueError, match="give the mesh that the rules are about"):
    load("kamera-tiny-gqa", rules={"mlp": "model"})
""")
