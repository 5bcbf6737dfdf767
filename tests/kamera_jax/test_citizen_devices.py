"""Devices and shardings: what does not divide, and models that are loaded onto a device or moved."""

from tests.eight_devices import on_devices


def test_a_sharding_that_does_not_divide_is_no_corruption(tmp_path):
    """The pack is in order, and nothing says to delete it: along any axis, of any rank, stored exactly or in int8."""
    on_devices(
        4,
        """
import sys
from pathlib import Path
import jax, pytest
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import kamera_jax as kj
from kamera_jax.errors import LibraryCorruptError
from tests.kamera_jax.library.made import chunk

mesh = jax.make_mesh((4,), ("x",))
for storage in ("exact", "int8"):
    lib = kj.ChunkLibrary.open(Path(sys.argv[1]) / storage, mode="a")
    lib.put_many([chunk(i, tokens=10) for i in range(3)], storage=storage)
    (pack,) = lib.packs()
    N, L, T, F = lib.restore(pack)[0].arrays["kv.rot"].shape
    bad = [spec for spec, size in ((P("x"), N), (P(None, "x"), L), (P(None, None, "x"), T),
                                   (P(None, None, None, "x"), F)) if size % 4]
    assert bad
    for spec in [*bad, P(None, None, None, None, "x")]:
        with pytest.raises(ValueError, match="sharding is .*the pack is in order") as refused:
            lib.restore(pack, sharding=NamedSharding(mesh, spec))
        assert not isinstance(refused.value, LibraryCorruptError) and "delete" not in str(refused.value)
    for other in (jax.devices()[1], mesh, "x"):
        with pytest.raises(ValueError, match="expected a jax.sharding.Sharding"):
            lib.restore(pack, sharding=other)
    assert lib.verify().ok
    there = jax.sharding.SingleDeviceSharding(jax.devices()[2])
    for ours, theirs in zip(lib.restore(pack, sharding=there), lib.restore(pack), strict=True):
        assert ours.arrays["kv.rot"].devices() == {jax.devices()[2]}
        np.testing.assert_array_equal(np.asarray(ours.arrays["kv.rot"]), np.asarray(theirs.arrays["kv.rot"]))
""",
        tmp_path,
    )


def test_a_model_on_another_device():
    """Loaded there, or moved after it was used: parameters, preamble and all that is computed lie there."""
    on_devices(
        4,
        """
import jax, pytest
import numpy as np
import kamera_jax as kj
from models import load

def places(tree):
    return {device for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) for device in leaf.devices()}

first, second, third = jax.devices()[:3]
used = load("kamera-tiny-gqa")
a = kj.encode(used, "the sky is blue")
for vlm, where in ((load("kamera-tiny-gqa", device=second), second), (used.to(third), third)):
    b = kj.encode(vlm, "the sky is blue")
    assert vlm.fingerprint == used.fingerprint and b.key == a.key
    assert np.asarray(b.kv.rot).tobytes() == np.asarray(a.kv.rot).tobytes()
    for mode in ("materialise", "in_place"):
        w = kj.append(kj.Window.empty(vlm, 128, mode=mode), b)
        assert places(w.preamble.chunk.kv) | places(w.state.rot) | places(b.kv) == {where}
        answer = kj.generate(vlm, w, "what colour?", max_new_tokens=2)
        assert places(kj.query(vlm, w, "what?")) | places(answer.window.state.rot) == {where}
assert places(kj.Window.empty(used, 128).state) == {first}
for device in ("cpu:1", 1, jax.devices(), jax.make_mesh((4,), ("model",))):
    with pytest.raises(ValueError, match="expected a jax.Device"):
        load("kamera-tiny-gqa", device=device)
with pytest.raises(ValueError, match="give the one or the other"):
    load("kamera-tiny-gqa", device=second, mesh=jax.make_mesh((4,), ("model",)))

# A backbone whose parameters are replaced by the same ones elsewhere.
from tests.kamera_jax.toy import Toy
toy = Toy()
kj.Window.empty(toy, 64)
toy.params = jax.device_put(toy.params, second)
assert places(kj.Window.empty(toy, 64).preamble.chunk.kv) == {second}
""",
    )
