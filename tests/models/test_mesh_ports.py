"""Every port on eight devices gives the logits and the KV of one, images included."""

import pytest

from models.hub.thinkers import alone
from models.registry import ARCHITECTURES
from tests.eight_devices import on_eight_devices
from tests.models import tiny_omni
from tests.models.wide_ports import ports

CHECK = """
from pathlib import Path
from kamera_jax.forward import run
from tests.models.wide_ports import ports, write

def forward(vlm, item):
    segment = vlm.prepare(item)
    return run(vlm.params, segment, None, forward=vlm.forward, last=True)

def outputs(name, item, meshes, **options):
    one = load(name)
    wanted = forward(one, item)
    for shape, names in meshes:
        many = load(name, mesh=jax.make_mesh(shape, names), **options)
        assert many.fingerprint == one.fingerprint
        given = forward(many, item)
        close(given.logits, wanted.logits)
        close(given.kv.rot, wanted.kv.rot)
        close(given.kv.free, wanted.kv.free)
        placed(given.kv, many.placement)
        yield many, given

def item_of(kind):
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    return "the star is on the first page" if ports()[kind][1] is None else ["the first page shows", image, "a star"]

def check(folder, kind, meshes):
    for many, given in outputs(write(Path(folder) / kind, kind), item_of(kind), meshes):
        devices = dict(many.placement.mesh.shape)
        assert many.placement.parts == devices.get("model", 1), many
        assert many.placement.split == (many.placement.parts > 1 and kind != "kimi_vl"), many
        leaves = jax.tree.leaves(many.params["text"])
        split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
        if many.placement.parts > 1:
            assert sum(leaf.size for leaf in split) > 0.9 * sum(leaf.size for leaf in leaves)
"""
KINDS = sorted(ports())
EVERY_RUN = ("qwen2_5_vl", "kimi_vl", "deepseek_vl", "llava", "internvl", "smolvlm", "qwen3_vl_moe", "llama")
WIDE = [((2, 4), ("expert", "model"))]
OTHERS = [
    ((8,), ("model",)),
    ((4, 2), ("data", "model")),
    ((8, 1), ("expert", "model")),
    ((2, 2, 2), ("fsdp", "expert", "model")),
]


def test_every_port_is_here():
    others = {"kamera_smol_vl", *map(alone, tiny_omni.CONFIGS)}
    assert {*KINDS, *others} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "kinds",
    [EVERY_RUN[:4], EVERY_RUN[4:], pytest.param([k for k in KINDS if k not in EVERY_RUN], marks=pytest.mark.soak)],
    ids=["first", "others", "rest"],
)
def test_heads_and_experts_are_split(tmp_path, kinds):
    """Over four devices heads, over two experts: one process for several ports."""
    on_eight_devices(f"""{CHECK}
for kind in {list(kinds)}:
    check({str(tmp_path)!r}, kind, {WIDE})
""")


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_on_one_to_eight_devices_of_a_sequence(tmp_path, kind):
    on_eight_devices(f"{CHECK}\ncheck({str(tmp_path)!r}, {kind!r}, {OTHERS})\n")


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", pytest.param("kimi_vl", marks=pytest.mark.soak)])
def test_sequences_over_one_axis_and_heads_over_the_other(tmp_path, kind):
    """A batch by `jax.vmap`, each device with its own sequences and its own heads of them."""
    on_eight_devices(f"""{CHECK}
from functools import partial
folder = write(Path({str(tmp_path)!r}) / "model", {kind!r})
one = load(folder)
many = load(folder, mesh=jax.make_mesh((4, 2), ("data", "model")))
texts = ["the star is on page " + word for word in ("one two", "two one", "one one", "two two")]
segments = [one.prepare(text) for text in texts]
batch = jax.tree.map(lambda *rows: jnp.stack(rows), *segments)
mesh = many.placement.mesh
batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, P("data")))
def logits(params, segment):
    out = many.forward(params, segment, None, logits_at=segment.length[None] - 1)
    return out.logits, out.kv
given, kv = jax.jit(jax.vmap(logits, in_axes=(None, 0), spmd_axis_name="data"))(many.params, batch)
for row, segment in enumerate(segments):
    wanted = run(one.params, segment, None, forward=one.forward, last=True)
    close(given[row], wanted.logits)
    close(kv.rot[row], wanted.kv.rot)
features = kv.rot.addressable_shards[0].data.shape
assert features[0] == 1 and features[-1] == kv.rot.shape[-1] // (2 if many.placement.split else 1)
""")


@pytest.mark.soak
def test_a_model_of_three_heads_on_eight_devices():
    """SmolLM2's KV heads lie whole on every device, and it says so; its vocabulary and its layers are split."""
    on_eight_devices(f"""{CHECK}
from models.ports.smol_vl.pages import pages
item = ["the page", *pages(load("kamera-smol-vl"), "The star is on the first page.")]
for many, given in outputs("kamera-smol-vl", item, [((8,), ("model",)), ((2, 4), ("data", "model"))]):
    assert not many.placement.split and "KV whole on every device" in repr(many)
""")
