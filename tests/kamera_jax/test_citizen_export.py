"""What `jax.export` writes down of handles: their static parts, as JSON, and back."""

import jax
import pytest

import kamera_jax as kj
from kamera_jax.exported import _read, _written
from kamera_jax.kv import SketchSpec
from tests.kamera_jax.toy import Toy


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_static_parts_are_read_as_they_were_written(mode):
    toy = Toy()
    a, b = (kj.encode(toy, text) for text in ("abc", "xyz"))
    p = kj.form_patch(toy, b, antecedents=[a], rank=2)
    w = kj.append(kj.append(kj.Window.empty(toy, 64, mode=mode), a), b, p)
    for handle in (a, p, w, w.entries[1]):
        _, static = handle._flatten()
        assert _read(_written(static)) == static
        assert hash(_read(_written(static))) == hash(static)
    for static in (None, (), (SketchSpec((1, 2), tokens=3),)):
        assert _read(_written(static)) == static


def test_jax_knows_how_to_write_them():
    for kind in (kj.Chunk, kj.Patch, kj.Window, kj.Entry, kj.KV, kj.Factors, kj.WindowState, kj.ChunkPool, kj.Segment):
        with pytest.raises(ValueError, match="Duplicate serialization"):
            jax.export.register_pytree_node_serialization(
                kind, serialized_name=f"again {kind.__name__}", serialize_auxdata=_written, deserialize_auxdata=_read
            )
