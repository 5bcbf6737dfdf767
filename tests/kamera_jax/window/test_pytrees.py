"""Chunks, patches and windows go through a caller's own jit, vmap, shard_map and device_put."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import WindowFullError
from kamera_jax.forward import run
from kamera_jax.window.changes import materialised
from tests.eight_devices import on_devices
from tests.kamera_jax.test_compiles import compilations
from tests.kamera_jax.toy import Toy

CAPACITY = 128
QUESTION = "what colour is it ?"
MODES = ("materialise", "in_place")


def same(vlm, given, wanted):
    """Both hold the same: what is attended to, and where it stands; in place, wherever it lies."""
    assert [(e.base, e.slot, e.chunk.length, e.chunk.advance) for e in given.entries] == [
        (e.base, e.slot, e.chunk.length, e.chunk.advance) for e in wanted.entries
    ]
    assert (given.spec, given.capacity, given.mode, given.tokens) == (
        wanted.spec,
        wanted.capacity,
        wanted.mode,
        wanted.tokens,
    )
    for mine, theirs in zip(given.entries, wanted.entries, strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine.chunk.kv, theirs.chunk.kv)
    np.testing.assert_array_equal(given.state.valid, wanted.state.valid)
    if given.mode == "materialise":
        valid = np.asarray(given.state.valid)
        for name in ("rot", "free", "positions"):
            a, b = (np.asarray(getattr(each.state, name))[:, valid] for each in (given, wanted))
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())  # fused otherwise
    a, b = (np.asarray(kj.query(vlm, window, QUESTION), np.float64) for window in (given, wanted))
    assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)


# None brings a patched chunk to the front: in a compiled function it keeps its patch; see `test_first`.
OPERATIONS = {
    "append": lambda w, a, p: kj.append(w, a, p),
    "append blind": lambda w, a, p: kj.append(w, a),
    "reorder": lambda w, a, p: kj.reorder(w, [0, 2, 1]),
    "slide": lambda w, a, p: kj.slide(w),
    "recall": lambda w, a, p: kj.recall(w, a, p, at=1),
    "reorder blind": lambda w, a, p: kj.reorder(kj.replace(w, 2, a), [2, 0, 1]),
    "replace": lambda w, a, p: kj.replace(w, 1, a, p),
    "all": lambda w, a, p: kj.append(kj.reorder(kj.slide(kj.recall(w, a, p, at=1)), [0, 2, 1]), a, p),
    "nothing": lambda w, a, p: w,
}


@pytest.fixture(scope="module", params=MODES)
def window(request, random_vlm, chunks, patches):
    window = kj.Window.empty(random_vlm, CAPACITY, mode=request.param)
    for chunk, patch in zip(chunks, patches, strict=True):
        window = kj.append(window, chunk, patch)
    return window


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_inside_a_callers_jit(random_vlm, window, chunks, patches, name):
    change = OPERATIONS[name]
    given = jax.jit(change)(window, chunks[1], patches[1])
    same(random_vlm, given, change(window, chunks[1], patches[1]))
    # And what came out goes in again, on the host as in a compiled function.
    for again in (kj.slide, jax.jit(kj.slide)):
        same(random_vlm, again(given), kj.slide(change(window, chunks[1], patches[1])))


@pytest.mark.parametrize("mode", MODES)
def test_compiled_once_a_shape_and_never_once_a_key(mode):
    toy = Toy()
    traces = []

    @jax.jit
    def step(window, chunk, patch):
        traces.append(1)
        return kj.append(kj.slide(kj.reorder(window, [1, 0])), chunk, patch)

    def story(texts):
        a, b, c = (kj.encode(toy, text) for text in texts)
        window = kj.append(kj.append(kj.Window.empty(toy, 80, mode=mode), a), b)
        patch = kj.form_patch(toy, c, context=window, rank=2)
        first = step(window, c, patch)
        return [first, *(step(first, c, patch) for _ in range(2))]

    story(("a red star", "the cell", "which one"))
    count = len(traces)
    with compilations() as seen:
        made = story(("blue moons", "a page is", "of which"))  # the same buckets, other lengths, texts and advances
        more = story(("a b", "another text", "third"))
    assert len(traces) == count and "step" not in seen
    assert len({window.entries[0].chunk.length for window in (made[0], more[0])}) == 2
    # Without a patch, or with more components, it is another shape.
    step(made[0], made[0].entries[0].chunk, None)
    assert len(traces) == count + 1


def test_what_comes_out_has_the_chunks_of_what_went_in(random_vlm, window, chunks):
    given = jax.jit(lambda w: kj.reorder(w, [2, 1, 0]))(window)
    for entry, chunk in zip(given.entries, chunks[::-1], strict=True):
        assert (entry.chunk.length, entry.chunk.advance) == (chunk.length, chunk.advance)
        assert isinstance(entry.chunk.length, int) and isinstance(entry.base, float) and isinstance(entry.slot, int)
        assert (entry.chunk.model, entry.chunk.spec, entry.chunk.codec) == (chunk.model, chunk.spec, "exact")
        np.testing.assert_array_equal(entry.chunk.source.inputs["tokens"], chunk.source.inputs["tokens"])
        # It can be run again, from what the model reads.
    again = kj.prefill(random_vlm, [entry.chunk for entry in given.entries], capacity=CAPACITY)
    wanted = kj.prefill(random_vlm, chunks[::-1], capacity=CAPACITY)
    np.testing.assert_array_equal(kj.query(random_vlm, again, QUESTION), kj.query(random_vlm, wanted, QUESTION))


def test_a_step_of_an_agent_is_one_program(random_vlm, window, chunks, patches):
    """Append, ask and choose the next token, all inside one compiled function."""
    tail = random_vlm.tail(QUESTION)

    @jax.jit
    def step(params, window, chunk, patch, tail):
        window = kj.append(kj.slide(window), chunk, patch)
        output = run(
            params, tail.at(window.next_position), window.state, tail.length[None] - 1, forward=random_vlm.forward
        )
        return window, output.logits[0]

    moved, logits = step(random_vlm.params, window, chunks[0], None, tail)
    wanted = kj.append(kj.slide(window), chunks[0])
    same(random_vlm, moved, wanted)
    np.testing.assert_allclose(logits, kj.query(random_vlm, wanted, QUESTION), rtol=0, atol=1e-4)


def test_a_patch_is_formed_inside_jit(random_vlm, chunks):
    window = kj.append(kj.Window.empty(random_vlm, CAPACITY), chunks[0])
    wanted = kj.form_patch(random_vlm, chunks[1], context=window, rank=1000)
    given = jax.jit(lambda w, c: kj.form_patch(random_vlm, c, context=w, rank=1000))(window, chunks[1])
    np.testing.assert_allclose(given.mass, wanted.mass, rtol=0, atol=1e-6)
    for layer, (a, b) in enumerate(
        zip(*(kj.patch.apply(chunks[1].kv, p.factors).rot for p in (given, wanted)), strict=True)
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()), err_msg=str(layer))
    assert given.key == "" and given.length == wanted.length
    assert kj.append(window, chunks[1], given).lineage == ""
    with pytest.raises(ValueError, match="inside a JAX transformation.*give a rank"):
        jax.jit(lambda w, c: kj.form_patch(random_vlm, c, context=w))(window, chunks[1])


@pytest.mark.parametrize("mode", MODES)
def test_many_windows_at_once(mode):
    toy = Toy()
    chunks = [kj.encode(toy, text) for text in ("a red star", "blue", "which cell is it")]
    window = kj.append(kj.Window.empty(toy, 80, mode=mode), kj.encode(toy, "the page"))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chunks)

    def step(window, chunk):
        return kj.slide(kj.append(window, chunk))

    many = jax.vmap(step, in_axes=(None, 0))(window, stacked)
    for i, chunk in enumerate(chunks):
        same(toy, jax.tree.map(lambda leaf, i=i: leaf[i], many), step(window, chunk))


def test_on_a_mesh():
    """Windows over the devices of a mesh, through shard_map and device_put; devices of their own, in a process."""
    program = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import kamera_jax as kj
from tests.kamera_jax.toy import Toy
toy, mesh = Toy(), jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
window = kj.append(kj.Window.empty(toy, 80), kj.encode(toy, "the page"))
chunks = [kj.encode(toy, text) for text in ("a red star", "blue", "which cell is", "it")]
stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chunks)
def step(window, stacked):
    one = jax.tree.map(lambda leaf: leaf[0], stacked)
    return jax.tree.map(lambda leaf: leaf[None], kj.slide(kj.append(window, one)))
apart = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x")))(window, stacked)
for i, chunk in enumerate(chunks):
    given = jax.tree.map(lambda leaf: np.asarray(leaf)[i], apart)
    wanted = kj.slide(kj.append(window, chunk))
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=0, atol=1e-6)
placed = window.to(NamedSharding(mesh, P()))
assert placed.lineage == window.lineage and len(placed.state.rot.sharding.device_set) == 4
assert len(placed.entries[0].chunk.kv.rot.sharding.device_set) == 4
there = jax.device_put(chunks[0], jax.devices()[2])
assert there.key == "" and chunks[0].to(jax.devices()[2]).key == chunks[0].key
assert there.kv.rot.devices() == chunks[0].to(jax.devices()[2]).kv.rot.devices() == {jax.devices()[2]}
longer = kj.append(placed, chunks[0].to(NamedSharding(mesh, P())))
answers = [kj.query(toy, each, "which ?") for each in (kj.append(window, chunks[0]), longer)]
np.testing.assert_array_equal(*map(np.asarray, answers))
"""
    on_devices(4, program)


@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_fit_answers_nan_and_is_refused_on_the_host(random_vlm, chunks, mode):
    a, b = chunks[:2]
    window = kj.append(kj.Window.empty(random_vlm, 32 + a.length - 1, mode=mode), a)
    grown = jax.jit(kj.append)(window, b)
    text = jnp.array(grown.state.free)
    assert np.isnan(text[:, 0]).all() and np.isfinite(text[:, 1:]).all()
    tail = random_vlm.tail(QUESTION)
    logits = run(random_vlm.params, tail, grown.state, tail.length[None] - 1, forward=random_vlm.forward).logits
    assert np.isnan(logits).all()
    refused = (
        lambda: kj.query(random_vlm, grown, QUESTION),
        lambda: kj.slide(grown),
        lambda: kj.reorder(grown, [1, 0]),
        lambda: kj.append(grown, b),
        lambda: kj.generate(random_vlm, grown, QUESTION),
        lambda: kj.form_patch(random_vlm, b, context=grown),
    )
    for call in refused:
        with pytest.raises(WindowFullError):
            call()
    exact = kj.append(kj.Window.empty(random_vlm, 16 + a.length, mode=mode), a)  # full, and no more than that
    for whole in (exact, jax.jit(lambda w: w)(exact), kj.reorder(exact, [0]), jax.jit(kj.append)(kj.slide(exact), a)):
        assert np.isfinite(kj.query(random_vlm, whole, QUESTION)).all()
    fits = jax.jit(kj.append)(kj.slide(window), b)
    assert np.isfinite(kj.query(random_vlm, fits, QUESTION)).all()


@pytest.mark.parametrize("mode", MODES)
def test_that_something_did_not_fit_is_not_forgotten(random_vlm, chunks, mode):
    """Whatever left the window since, inside the same compiled function."""
    a, b = chunks[:2]
    window = kj.append(kj.Window.empty(random_vlm, 32 + a.length - 1, mode=mode), a)
    for change in (
        lambda w, c: kj.slide(kj.append(w, c)),
        lambda w, c: kj.append(kj.slide(kj.append(w, c), 2), c),
        lambda w, c: materialised(kj.append(w, c)),
    ):
        left = jax.jit(change)(window, b)
        assert left.overflowed is True and np.isnan(left.state.free[:, 0]).all()
        for call in (kj.query, kj.generate):
            with pytest.raises(WindowFullError, match="comes from a compiled function in which something did not fit"):
                call(random_vlm, left, QUESTION)
    assert jax.jit(kj.slide)(window).overflowed is False
    patch = jax.jit(lambda w, c, x: kj.form_patch(random_vlm, x, context=kj.append(w, c), rank=4))(window, b, chunks[2])
    assert np.isnan(patch.residual).all() and np.isnan(kj.patch.apply(chunks[2].kv, patch.factors).rot).any()


def test_a_donated_window_leaves_the_model_its_preamble():
    toy = Toy()
    window = kj.append(kj.Window.empty(toy, 80), kj.encode(toy, "the page"))
    step = jax.jit(lambda w, c: kj.append(kj.slide(w), c), donate_argnums=0)
    moved = step(window, kj.encode(toy, "a red star"))
    assert window.state.rot.is_deleted()
    again = kj.append(kj.Window.empty(toy, 80), kj.encode(toy, "a red star"))
    np.testing.assert_array_equal(kj.query(toy, moved, "which ?"), kj.query(toy, again, "which ?"))


def test_a_window_made_inside_jit_leaves_the_model_as_it_was():
    toy = Toy()
    made = jax.jit(lambda: kj.Window.empty(toy, 80))()
    wanted = kj.Window.empty(toy, 80)
    np.testing.assert_array_equal(made.state.rot, wanted.state.rot)
    other = Toy(seed=1)
    encoded = jax.jit(lambda: kj.encode(other, "a red star"))()
    np.testing.assert_array_equal(encoded.kv.rot, kj.encode(other, "a red star").kv.rot)


def test_a_tree_of_anything_is_shown(chunks):
    assert repr(jax.tree.map(lambda _: jax.sharding.PartitionSpec("x"), chunks[0])).startswith("<Chunk key=''")
    assert repr(chunks[0]).startswith(
        f"<Chunk key='{chunks[0].key}', length={chunks[0].length}, codec='exact': float32["
    )


def test_what_is_shown_is_short(window, chunks, patches):
    """Sizes and shapes; of traced ones too."""
    shown = [window, *chunks, *patches[1:], chunks[0].kv, patches[1].factors, window.state, chunks[0].source]
    assert max(len(repr(each)) for each in shown) < 600
    assert f"tokens={window.tokens}, entries={len(window.entries)}: " in repr(window)
    assert repr(chunks[0].kv) == "KV(rot=float32[5, 16, 64], free=float32[5, 16, 64])"
    traced = []
    jax.jit(lambda window, kv: traced.extend([repr(window), repr(kv)]) or kv)(window, chunks[0].kv)
    assert f"mode='{window.mode}'" in traced[0] and traced[1] == repr(chunks[0].kv)


def test_arrays_are_all_that_jax_sees(window, chunks, patches):
    """And all of it: what is waited for, moved and mapped over is everything that a handle holds."""
    for handle in (window, chunks[0], patches[1]):
        leaves, structure = jax.tree.flatten(handle)
        assert jax.tree.structure(jax.tree.unflatten(structure, leaves)) == structure and hash(structure)
        assert jax.block_until_ready(handle) is handle
        doubled = jax.tree.map(lambda leaf: leaf * 2 if leaf.dtype.kind == "f" else leaf, handle)
        for a, b in zip(jax.tree.leaves(doubled), leaves, strict=True):
            np.testing.assert_array_equal(a, b * 2 if b.dtype.kind == "f" else b)
        shapes = jax.eval_shape(lambda x: x, handle)
        assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [np.shape(leaf) for leaf in leaves]
        named = jax.tree_util.tree_leaves_with_path(handle)
        assert any("kv" in jax.tree_util.keystr(path) or "factors" in jax.tree_util.keystr(path) for path, _ in named)
    assert sum(leaf is array for leaf in jax.tree.leaves(window) for array in jax.tree.leaves(window.state)) >= 4


def test_waiting_for_a_window_waits_for_its_arrays(monkeypatch, chunks):
    toy = Toy()
    window = kj.append(kj.Window.empty(toy, 80), kj.encode(toy, "the page"))
    waited = []
    kind = type(window.state.rot)
    original = kind.block_until_ready
    monkeypatch.setattr(kind, "block_until_ready", lambda self: waited.append(self.shape) or original(self))
    monkeypatch.setattr(
        "jax._src.api.xc.batched_block_until_ready",
        lambda arrays: waited.extend(a.shape for a in arrays),
        raising=False,
    )
    jax.block_until_ready(window)
    assert window.state.rot.shape in waited and window.entries[0].chunk.kv.free.shape in waited


def test_gradients_reach_a_windows_arrays(random_vlm, chunks):
    """Of the squared norm of what is written, by a chunk's KV: rotation keeps the norm, so it is 2 KV."""
    window = kj.Window.empty(random_vlm, 64)

    def loss(kv):
        moved = kj.append(
            window, kj.Chunk(kv, chunks[0].positions, chunks[0].length, chunks[0].advance, chunks[0].model)
        )
        return jnp.sum(jnp.square(moved.state.rot[:, 16:]))

    given = jax.jit(jax.grad(loss))(chunks[0].kv)
    np.testing.assert_allclose(given.rot, 2 * chunks[0].kv.rot, rtol=0, atol=1e-4)


def test_a_segment_from_a_transformation_makes_no_chunk_of_unknown_advance(random_vlm, chunks):
    segment = jax.tree.map(lambda leaf: leaf, chunks[0].source)
    assert segment.advance is None and segment.content == ""
    from kamera_jax.inference.encode import run_chunk

    with pytest.raises(ValueError, match="does not say how far it advances"):
        run_chunk(random_vlm, kj.Window.empty(random_vlm, 64), segment)
    partial(jax.tree.map, lambda leaf: leaf)(segment)
