"""What the model read of a chunk is one thing, and which rows of its KV are stored another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import planning
from kamera_jax.backbone import forward_flops
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.errors import MissingInputsError, PatchMismatchError
from kamera_jax.kv import Segment
from kamera_jax.record import join_chunk, split_chunk
from tests.kamera_jax.kept import CODEC, half, keep

CAPACITY = 128
ROUNDING = 2e-5
QUESTION = "which cell is red ?"


@pytest.fixture(scope="module")
def rows(chunks):
    return [half(chunk, seed) for seed, chunk in enumerate(chunks)]


@pytest.fixture(scope="module")
def kept(chunks, rows):
    return [keep(chunk, own) for chunk, own in zip(chunks, rows, strict=True)]


def near(ours, theirs, bound=ROUNDING):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= bound * max(np.abs(theirs).max(), 1e-9)


def masked(window, rows):
    """The window of whole chunks, of which only these rows are seen."""
    seen = np.array(window.state.valid)
    for entry, own in zip(window.entries, rows, strict=True):
        gone = np.setdiff1d(np.arange(entry.chunk.length), own)
        seen[entry.slot + gone] = False
    return dataclasses.replace(window, state=window.state.replace(valid=jnp.asarray(seen)))


def window_of(vlm, mode, *pairs):
    window = kj.Window.empty(vlm, CAPACITY, mode=mode)
    for chunk, patch in pairs:
        window = kj.append(window, chunk, patch)
    return window


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_attention_is_over_the_rows_that_are_kept(random_vlm, chunks, kept, rows, blind, mode):
    window = window_of(random_vlm, mode, *((chunk, None) for chunk in kept))
    assert window.next_position == blind.next_position and window.tokens < blind.tokens
    wanted = kj.query(random_vlm, masked(blind, rows), QUESTION)
    near(kj.query(random_vlm, window, QUESTION), wanted)
    assert np.abs(np.asarray(wanted) - kj.query(random_vlm, blind, QUESTION)).max() > 1e-3
    moved = kj.reorder(window, [2, 0, 1])
    whole = kj.reorder(blind, [2, 0, 1])
    near(
        kj.query(random_vlm, moved, QUESTION),
        kj.query(random_vlm, masked(whole, [rows[i] for i in (2, 0, 1)]), QUESTION),
    )
    back = kj.recall(kj.slide(window), kept[0], None, at=0)
    near(kj.query(random_vlm, back, QUESTION), wanted)
    answer = kj.generate(random_vlm, window, QUESTION, max_new_tokens=2)
    assert answer.tokens == kj.generate(random_vlm, masked(blind, rows), QUESTION, max_new_tokens=2).tokens


def test_relocated_rows_are_those_of_the_whole_chunk(random_vlm, chunks, kept, rows):
    for chunk, small, own in zip(chunks, kept, rows, strict=True):
        args = (None,)
        there = kj.window.reuse.relocate(chunk.kv, *args, chunk.positions + 7, chunk.length, random_vlm.spec.rope)
        here = kj.window.reuse.relocate(small.kv, *args, small.positions + 7, small.length, random_vlm.spec.rope)
        for ours, theirs in zip(here, there, strict=True):
            np.testing.assert_array_equal(np.asarray(ours)[:, : len(own)], np.asarray(theirs)[:, own])


def test_all_tokens_are_run_again(random_vlm, chunks, kept):
    full = kj.prefill(random_vlm, chunks)
    again = kj.prefill(random_vlm, kept)
    assert again.keys == full.keys and again.capacity == full.capacity
    for ours, theirs in zip(again.entries, full.entries, strict=True):
        assert ours.chunk.length == theirs.chunk.length and ours.chunk.codec == "exact"
        np.testing.assert_array_equal(ours.chunk.kv.rot, theirs.chunk.kv.rot)


@pytest.mark.parametrize("form", ["antecedents", "context", "patches"])
@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_patch_is_of_the_stored_rows(random_vlm, chunks, kept, rows, form, mode):
    if form == "antecedents":
        before = kj.prefill(random_vlm, chunks[:1], capacity=CAPACITY)
        patch = kj.form_patch(random_vlm, kept[1], antecedents=kept[:1], rank=1000)
    elif form == "context":
        before = window_of(random_vlm, mode, (kept[0], None))
        patch = kj.form_patch(random_vlm, kept[1], context=before, rank=1000)
    else:
        before = kj.prefill(random_vlm, chunks[:1], capacity=CAPACITY)
        _, (_, patch) = kj.form_patches(random_vlm, kept[:2], rank=1000)
    assert patch.length == kept[1].length and patch.codec == CODEC
    patched = kj.patch.apply(kept[1].kv, patch.factors)
    conditioned = kj.inference.encode.run_chunk(random_vlm, before, chunks[1])[0]
    for ours, theirs in zip(jax.tree.leaves(patched), jax.tree.leaves(conditioned.kv), strict=True):
        near(np.asarray(ours)[:, : len(rows[1])], np.asarray(theirs)[:, rows[1]])
    near(patch.mass.sum(-1), np.ones(random_vlm.spec.layers))
    window = kj.append(window_of(random_vlm, mode, (kept[0], None)), kept[1], patch)
    assert np.isfinite(kj.query(random_vlm, window, QUESTION)).all()
    with pytest.raises(PatchMismatchError, match="form one for this chunk"):
        kj.append(window, kj.encode(random_vlm, "one two three four five six seven eight nine ten " * 2), patch)


def test_a_patch_of_kept_rows_in_a_compiled_function(random_vlm, kept):
    window = window_of(random_vlm, "materialise", (kept[0], None))
    eager = kj.form_patch(random_vlm, kept[1], context=window, rank=4)
    compiled = jax.jit(lambda chunk, window: kj.form_patch(random_vlm, chunk, context=window, rank=4))(kept[1], window)
    products = [np.einsum("lmt,lmf->ltf", *each.factors.floats(jnp.float32)) for each in (compiled, eager)]
    near(*products, bound=1e-4)
    moved = dataclasses.replace(kept[1], positions=kept[1].positions + 0.5)
    with pytest.raises(ValueError, match="keep each row with its token's position"):
        kj.form_patch(random_vlm, moved, context=window, rank=4)
    poisoned = jax.jit(lambda chunk, window: kj.form_patch(random_vlm, chunk, context=window, rank=4))(moved, window)
    assert np.isnan(poisoned.factors.v).any() or np.isnan(poisoned.residual).any()


def test_staleness_is_nothing_where_the_patch_was_formed(random_vlm, kept):
    window = window_of(random_vlm, "materialise", (kept[0], None))
    patch = kj.form_patch(random_vlm, kept[1], context=window, rank=1000, sketch=kj.SketchSpec((0, 1)))
    assert kj.staleness(window, kept[1], patch).change <= 1e-4
    elsewhere = window_of(random_vlm, "materialise", (kept[2], None))
    assert kj.staleness(elsewhere, kept[1], patch).change > 1e-2


def test_a_library_and_a_session_give_them_back(random_vlm, kept, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many(kept)
        lib.put(patch := kj.form_patch(random_vlm, kept[1], antecedents=kept[:1], rank=2))
        loaded = [lib.get(chunk.key) for chunk in kept]
        (whole,) = lib.restore(lib.packs()[0])[:1]
        loaded.append(whole.chunk(0))
        assert lib.get_patch(patch.key).length == kept[1].length
    by_key = {chunk.key: chunk for chunk in kept}
    for again in loaded:
        check_same(again, by_key[again.key])
    session = kj.Session(random_vlm, CAPACITY)
    session._kept.window = window_of(random_vlm, "materialise", *((chunk, None) for chunk in kept))
    session.save(tmp_path / "saved")
    restored = kj.Session.restore(random_vlm, tmp_path / "saved")
    for entry, chunk in zip(restored.window.entries, kept, strict=True):
        check_same(entry.chunk, chunk)
    np.testing.assert_array_equal(
        kj.query(random_vlm, restored.window, QUESTION), kj.query(random_vlm, session.window, QUESTION)
    )
    bare = kept[0].without_source()
    with kj.ChunkLibrary.open(tmp_path / "bare", mode="a") as lib:
        lib.put(bare)
        assert lib.get(bare.key).source is None


FIELDS = (
    *("length", "advance", "model", "preamble", "antecedents", "turn", "codec", "conditioned"),
    *("key", "content", "lineage", "inputs", "spec"),
)
"""What libraries of format 2 and sessions of schema 3 hold of a chunk."""


def test_a_whole_chunk_is_stored_as_ever(chunks, kept):
    about, arrays = split_chunk(chunks[0])
    assert set(about) == set(FIELDS) and about["inputs"] is True
    assert set(arrays) == {"kv.rot", "kv.free", "positions"} | {f"inputs.{name}" for name in chunks[0].source.inputs}
    assert join_chunk(about, arrays).keeps_all_rows
    small, apart = split_chunk(kept[0])
    # Who reads no sources apart from the rows reads a chunk whose source was dropped, and says so when it is to be run.
    assert small["inputs"] is False and small["source"] == {"length": chunks[0].length}
    assert not [name for name in apart if name.startswith("inputs.")] and "source.positions" in apart
    assert set(split_chunk(kept[0].without_source())[0]) == set(FIELDS)


def check_same(again, chunk):
    assert (again.key, again.codec, again.length, again.advance) == (chunk.key, CODEC, chunk.length, chunk.advance)
    assert not again.keeps_all_rows and int(again.source.length) == int(chunk.source.length) > chunk.length
    assert again.source.advance == chunk.advance and again.source.content == chunk.content != ""
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(chunk), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_planner_runs_all_of_them_again(random_vlm, chunks, kept):
    window = window_of(random_vlm, "materialise", (kept[0], None), (kept[1], None))
    policy = kj.ReusePolicy(fallback="reprefill")
    done = planning.execute(
        random_vlm, planning.plan(random_vlm, window, planning.Recall(kept[2], at=0), policy=policy)
    )
    assert [entry.chunk.length for entry in done.window.entries][1:] == [chunk.length for chunk in chunks[:2]]
    seen = window.preamble.chunk.length + kept[2].length
    assert done.steps[1].flops == forward_flops(random_vlm, chunks[0].length, seen)
    formed = planning.execute(
        random_vlm, planning.plan(random_vlm, window, planning.Reorder((1, 0)), policy=kj.ReusePolicy())
    )
    last = formed.window.entries[-1]
    assert last.chunk is kept[0] and last.patch is not None and last.patch.length == kept[0].length


def test_fidelity_compares_the_rows_that_are_kept(random_vlm, kept, rows, chunks):
    full = kj.prefill(random_vlm, chunks)
    exact = [keep(entry.chunk, own) for entry, own in zip(full.entries, rows, strict=True)]
    found = kj.verify(random_vlm, window_of(random_vlm, "materialise", *((chunk, None) for chunk in exact)), [QUESTION])
    assert found.kv_error.max() <= ROUNDING < found.kl
    blind = kj.verify(random_vlm, window_of(random_vlm, "materialise", *((chunk, None) for chunk in kept)), [QUESTION])
    assert blind.kv_error.max() > 1e-3


def test_windows_by_the_hundred(random_vlm, chunks, kept, rows, blind):
    runner = BatchRunner(random_vlm, capacity=CAPACITY)
    stacks = [Stack.of([chunk, chunk]) for chunk in kept]
    tails = runner.tails([[QUESTION]] * 2)
    asked = runner.ask(runner.reuse(stacks, [None] * 3), tails)[1, 0]
    near(asked, kj.query(random_vlm, masked(blind, rows), QUESTION))
    full = runner.ask(runner.prefill(stacks), tails)[0, 0]
    near(full, kj.query(random_vlm, kj.prefill(random_vlm, chunks, capacity=CAPACITY), QUESTION))
    with pytest.raises(ValueError, match="sources of one length"):
        Stack.of([kept[0], keep(chunks[1], rows[1][: kept[0].length])])


def test_names_and_places_are_kept(kept):
    chunk = kept[0]
    for moved in (chunk.to(jax.devices()[0]), chunk.copied(), chunk.keeping(codec="other")):
        assert moved.key == chunk.key and not moved.keeps_all_rows
        assert int(moved.source.length) == int(chunk.source.length) and moved.source.content == chunk.content
    through = jax.jit(lambda each: each)(chunk)
    assert through.key == "" == through.source.content and through.source.advance == chunk.advance
    np.testing.assert_array_equal(through.source.positions, chunk.source.positions)
    batched = jax.vmap(lambda each: each.kv.rot.sum() + each.source.positions.sum())
    assert batched(
        jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), chunk, chunk)
    ).shape == (2,)


def test_a_whole_chunk_lies_once(chunks):
    """No array stands twice in the tree, so that it may be donated, and rows follow what is changed."""
    for chunk in chunks:
        leaves = [leaf for leaf in jax.tree.leaves(chunk) if getattr(leaf, "ndim", 0)]
        assert len({id(leaf) for leaf in leaves}) == len(leaves)
        assert chunk.keeps_all_rows and chunk.source.positions is chunk.positions
        cut = dataclasses.replace(chunk, length=chunk.length - 1)
        assert not cut.keeps_all_rows and int(cut.source.length) == chunk.length
        same = cut.keeping(length=chunk.length)
        assert same.keeps_all_rows and jax.tree.structure(same) == jax.tree.structure(chunk)
        equal = Segment(chunk.source.inputs, np.array(chunk.positions), np.int32(chunk.length), chunk.advance)
        assert dataclasses.replace(chunk, source=equal).keeps_all_rows


def rows_of(chunk, positions, tokens, length=None, count=None):
    source = Segment(
        {"tokens": jnp.zeros(np.shape(tokens)[1], jnp.int32)},
        jnp.asarray(tokens),
        np.int32(count or np.shape(tokens)[1]),
    )
    length = np.shape(positions)[1] if length is None else length
    kv = jax.tree.map(lambda leaf: leaf[:, : np.shape(positions)[1]], chunk.kv)
    made = dataclasses.replace(chunk, kv=kv, positions=jnp.asarray(positions), length=length, source=source)
    numbered = jnp.arange(1, np.shape(tokens)[1] + 1, dtype=jnp.float32)[None, :, None]
    return np.asarray(made.taken(numbered))[0, :, 0].astype(int).tolist()


@pytest.mark.parametrize(
    ("kept", "tokens", "wanted"),
    [
        ([[0, 2, 3]], [[0, 1, 2, 3]], [1, 3, 4]),
        ([[0, 1], [0, 5]], [[0, 0, 1, 1], [0, 5, 0, 5]], [1, 4]),  # axes are compared together
        ([[5, 5, 7]], [[5, 5, 7, 8]], [1, 2, 3]),  # the order tells tokens of one position apart where all are kept
        ([[1, 0]], [[0, 1, 2]], None),
        ([[0.5]], [[0, 1]], None),
        ([[5, 7]], [[5, 5, 7, 8]], None),  # which of the two is not known
    ],
)
def test_rows_are_found_by_their_positions(chunks, kept, tokens, wanted):
    kept, tokens = (np.asarray(each, np.float32) for each in (kept, tokens))
    if wanted is None:
        with pytest.raises(ValueError, match="it is not known which"):
            rows_of(chunks[0], kept, tokens)
    else:
        assert rows_of(chunks[0], kept, tokens) == wanted
        padded = np.pad(kept, [(0, 0), (0, 2)])
        assert rows_of(chunks[0], padded, tokens, length=kept.shape[1]) == [*wanted, 0, 0]


def test_old_names(chunks):
    chunk = chunks[0]
    with pytest.warns(DeprecationWarning, match=r"Chunk.inputs is now Chunk.source.inputs"):
        assert chunk.inputs.keys() == chunk.source.inputs.keys()
    with pytest.warns(DeprecationWarning, match=r"Chunk.segment is now Chunk.source"):
        assert chunk.segment.content == chunk.content
    with pytest.warns(DeprecationWarning, match="without_source"):
        bare = chunk.without_inputs()
    assert bare.key == chunk.key and bare.source is None
    with pytest.warns(DeprecationWarning), pytest.raises(MissingInputsError):
        _ = bare.segment
    with pytest.warns(DeprecationWarning):
        assert bare.inputs is None
    fields = {"kv": chunk.kv, "positions": chunk.positions, "length": chunk.length, "advance": 3.0, "model": "m"}
    inputs = chunk.source.inputs
    for old in (lambda: kj.Chunk(**fields, inputs=inputs), lambda: kj.Chunk(*fields.values(), None, (), inputs)):
        with pytest.warns(DeprecationWarning, match="source=Segment"):
            made = old()
        assert made.keeps_all_rows and made.source.inputs is inputs and made.source.advance == 3.0
    with pytest.warns(DeprecationWarning):
        assert dataclasses.replace(chunk, inputs=None).source is None
