"""Pools on eight devices that keep their chunks packed: what they answer, what is sent, and what cannot be split."""

from tests.eight_devices import on_eight_devices
from tests.models.test_mesh_windows import COLLECTIVES

PROGRAM = """
import pathlib, re
import pytest
from kamera_jax.compress.pooled import PackedPool, check_split
from kamera_jax.errors import PlacementError
jax.config.update("jax_enable_compilation_cache", False)
one = load("kamera-tiny-gqa")
many = load("kamera-tiny-gqa", mesh=jax.make_mesh((4, 2), ("data", "model")))
texts = ("the star is red", "the page behind it is blue", "a third one")
exact = [kj.encode(one, text) for text in texts]
dumped = lambda: set(pathlib.Path({folder!r}).glob("*after_optimizations.txt"))

def story(vlm, pairs, storage):
    window = kj.Window.empty(vlm, 512, mode="in_place", storage=storage)
    for pair in pairs:
        window = kj.append(window, *pair)
    yield window
    a, b, c = pairs
    yield kj.replace(kj.recall(kj.slide(kj.reorder(window, [2, 0, 1])), *a, at=0), 1, *c)

for storage in ("int8", "kivi:4", "saw:4"):
    a, b, c = (kj.compress(one, chunk, storage).restore() for chunk in exact)
    patches = [kj.form_patch(one, b, antecedents=[a], rank=4), kj.form_patch(one, c, antecedents=[a, b], rank=4)]
    pairs = ((a, None), (b, patches[0]), (c, patches[1]))
    kj.Window.empty(many, 512)  # runs the preamble
    before = dumped()
    there = list(story(many, pairs, storage))
    for file in dumped() - before:
        sent = sorted(set(re.findall({collectives!r}, file.read_text())))
        print(storage, file.name.split(".")[1], *sent)
    for mine, theirs in zip(there, story(one, pairs, storage), strict=True):
        placed(mine.state, many.placement)
        for ours, other in zip(mine.state.pools, theirs.state.pools, strict=True):
            same(ours.rot, other.rot)
            same(ours.packed, other.packed)
            codes = ours.rot.addressable_shards[0].data
            assert ours.rot.dtype != jnp.float32 and codes.shape[-1] == ours.rot.shape[-1] // 2
        close(kj.query(many, mine, "where is it?"), kj.query(one, theirs, "where is it?"))
    back = theirs.to(many.placement)
    placed(back.state, many.placement)

session = kj.Session(many, 256, mode="in_place", storage="kivi:4")
session.add(texts[0])
session.ask("what is red?", max_new_tokens=2)
placed(session.window, many.placement)
assert np.isfinite(kj.query(many, session.window, "where is it?")).all()
assert [entry.chunk.codec for entry in session.window.entries] == ["kivi:4"] * 2
for form, message in (
    (PackedPool("kivi:4", 32, 32, 2), "16 features of values, and 32 are packed together"),
    (PackedPool("saw:1", 8, 64, 2), "4 codes of keys, which are no whole bytes"),
    (PackedPool("kivi:4", 64, 128, 2), "one head whose values are not as wide as its keys"),
):
    with pytest.raises(PlacementError, match=message):
        check_split(form, many.placement)
for form in (PackedPool("int8", 6, 6, 2), PackedPool("kivi:4:channel", 32, 32, 2), PackedPool("saw:4", 32, 32, 2)):
    check_split(form, many.placement)
latent = load("kamera-tiny-mla", mesh=jax.make_mesh((8,), ("model",)))
chunk = kj.compress(latent, kj.encode(latent, texts[1]), "kivi:4").restore()
window = kj.append(kj.Window.empty(latent, 512, mode="in_place", storage="kivi:4"), chunk)
placed(window, latent.placement)
plain = kj.append(kj.Window.empty(latent, 512, mode="in_place"), chunk)
close(*(kj.query(latent, each, "where is it?") for each in (window, plain)))
"""


def test_packed_pools_are_split_as_the_kv_they_replace(tmp_path):
    """Logits are those of one device, and writing sends nothing but, of int8, how large each token's values are."""
    program = PROGRAM.format(folder=str(tmp_path), collectives=COLLECTIVES)
    printed = on_eight_devices(program, f"--xla_dump_hlo_as_text --xla_dump_to={tmp_path}").splitlines()
    sent = [line.split() for line in printed]
    for storage in ("int8", "kivi:4", "saw:4"):
        assert "jit__write" in {name for of, name, *_ in sent if of == storage}
    assert {tuple(line) for line in sent if len(line) > 2} == {("int8", "jit__write", "all-reduce")}
