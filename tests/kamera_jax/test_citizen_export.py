"""What `jax.export` writes down of handles: their static parts, as JSON, and back."""

import jax
import numpy as np
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


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_exported_functions_of_handles_run_after_they_were_written(mode):
    """Windows, chunks and patches go into a program that comes from bytes, and come out as from the function itself."""
    toy = Toy()
    a, b = (kj.encode(toy, text) for text in ("abc", "xyz"))
    p = kj.form_patch(toy, b, antecedents=[a], rank=2)
    w = kj.append(kj.Window.empty(toy, 64, mode=mode), a)

    def step(window, chunk, patch):
        longer = kj.append(window, chunk, patch)
        return longer, chunk, patch, longer.entries[0], longer.state, chunk.kv, patch.factors, chunk.source

    written = jax.export.export(jax.jit(step))(w, b, p).serialize()
    read = jax.export.deserialize(written)
    given = read.call(w, b, p)
    wanted = jax.jit(step)(w, b, p)
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    for ours, right in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, right)
    answers = [kj.query(toy, each[0], "what") for each in (given, wanted)]
    np.testing.assert_array_equal(*answers)


def test_an_exported_encoder_has_no_model():
    """What a forward takes and gives: parameters, segments, outputs."""
    toy = Toy()
    segment = toy.prepare("abc")

    def forward(params, segment):
        return toy.forward(params, segment, None, logits_at=segment.length[None] - 1, collect=("attention_mass",))

    read = jax.export.deserialize(jax.export.export(jax.jit(forward))(toy.params, segment).serialize())
    given = read.call(toy.params, segment)
    for ours, right in zip(jax.tree.leaves(given), jax.tree.leaves(forward(toy.params, segment)), strict=True):
        np.testing.assert_array_equal(ours, right)
