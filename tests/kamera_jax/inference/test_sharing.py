"""Rows that stand for several tokens: which tokens share them, what attention makes of them, and where they go."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import planning
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.errors import (
    PatchMismatchError,
    UnstorableError,
)
from kamera_jax.inference.encode import run_chunk
from kamera_jax.kv import bucket
from kamera_jax.patch.sketch import reread_jit
from kamera_jax.record import Record
from tests.kamera_jax.inference.repeats import CAPACITY, MODES, POLICY, QUESTION, TIMES, near, window_of


def several(chunk):
    """A chunk that has each row as many times as it counts, with equal rows at one position, and no counts."""
    times = np.asarray(chunk.counts).astype(int)[: chunk.length]
    rows = np.repeat(np.arange(chunk.length), times)
    padded = bucket(len(rows))

    def taken(array, axis):
        there = np.take(np.asarray(array), rows, axis=axis)
        return jnp.asarray(np.pad(there, [(0, padded - len(rows) if i == axis else 0) for i in range(there.ndim)]))

    kv = jax.tree.map(lambda leaf: taken(leaf, 1), chunk.kv)
    bare = {"source": None, "counts": None, "codec": "exact"}
    return dataclasses.replace(chunk, kv=kv, positions=taken(chunk.positions, 1), length=len(rows), **bare)


def means(leaf, rows, gone, media):
    """In float64 the rows of these tokens, each with those that are gone and stand at its place, the mean of them."""
    leaf = np.asarray(leaf, np.float64)
    place = {token: number % 6 for number, token in enumerate(media)}
    alike = [[row, *[each for each in gone if row in place and place[each] == place[row]]] for row in rows]
    return np.stack([leaf[:, own].mean(1) for own in alike], axis=1)


def test_tokens_that_show_the_same_share_a_row(random_vlm, clips, shared):
    """Of 4 x 6 media tokens the places 1 and 3 have a row for each temporal patch, the others one for all four."""
    for chunk, small in zip(clips, shared, strict=True):
        media = np.flatnonzero(np.asarray(chunk.source.inputs["is_media"])[: chunk.length])
        assert len(media) == 24
        gone = [media[6 * patch + place] for patch in range(1, 4) for place in (0, 2, 4, 5)]
        rows = np.setdiff1d(np.arange(chunk.length), gone)
        assert small.length == len(rows) == chunk.length - 12
        counts = np.ones(len(small.counts), np.float32)
        counts[np.searchsorted(rows, [media[place] for place in (0, 2, 4, 5)])] = 4
        np.testing.assert_array_equal(small.counts, counts)
        np.testing.assert_array_equal(small.positions[:, : small.length], np.asarray(chunk.positions)[:, rows])
        for ours, theirs in zip(jax.tree.leaves(small.kv), jax.tree.leaves(chunk.kv), strict=True):
            near(np.asarray(ours)[:, : small.length], means(theirs, rows, gone, media), 1e-6)
            alone = counts[: small.length] == 1
            np.testing.assert_array_equal(
                np.asarray(ours)[:, : small.length][:, alone], np.asarray(theirs)[:, rows[alone]]
            )
            assert not np.asarray(ours)[:, small.length :].any()
        assert small.key == chunk.key and small.codec == "shared:1.0" and small != chunk
        assert small.advance == chunk.advance and not small.keeps_all_rows
        assert int(small.source.length) == chunk.length and small.source.content == chunk.content
        assert small.nbytes < chunk.nbytes


def test_the_threshold_is_a_cosine_to_the_kept_row(random_vlm, clips):
    """Embeddings that turn a little at each patch: they are compared with the row that is kept, not with the last."""
    chunk = clips[0]
    media = np.flatnonzero(np.asarray(chunk.source.inputs["is_media"])[: chunk.length])
    width = chunk.source.inputs["media"].shape[1]
    turned = np.zeros(np.shape(chunk.source.inputs["media"]), np.float32)
    for patch in range(4):
        angle = 0.2 * patch
        rows = np.zeros((6, width), np.float32)
        rows[:, 0] = (1 + patch) * np.cos(angle)
        rows[:, 1] = (1 + patch) * np.sin(angle)
        rows[5] = 0  # of no direction: equal to itself alone
        turned[media[6 * patch : 6 * patch + 6]] = rows
    source = dataclasses.replace(chunk.source, inputs={**chunk.source.inputs, "media": jnp.asarray(turned)})
    drawn = chunk.keeping(source=source)
    for threshold, times in ((0.99, [1] * 4), (0.95, [2, 2]), (0.9, [3, 1]), (0.8, [4])):
        small = kj.share_rows(random_vlm, drawn, threshold)
        counts = np.asarray(small.counts)[: small.length]
        first = [np.asarray(chunk.positions)[:, media[6 * patch]].tolist() for patch in range(4)]
        places = np.asarray(small.positions).T[: small.length].tolist()
        assert [counts[row] for row, place in enumerate(places) if place in first] == times, threshold
        assert 4 in counts  # the tokens without a direction are equal
        assert counts.sum() == chunk.length


def test_media_that_never_repeat_keep_their_rows(random_vlm):
    video = kj.Video(np.random.default_rng(5).integers(0, 256, (4, 56, 84, 3), dtype=np.uint8), TIMES[:4])
    chunk = kj.encode(random_vlm, video)
    small = kj.share_rows(random_vlm, chunk, 1.0)
    assert small.length == chunk.length and small.keeps_all_rows and small.codec == "shared:1.0"
    assert (np.asarray(small.counts) == 1).all()
    near(*(kj.query(random_vlm, window_of(random_vlm, "materialise", each), QUESTION) for each in (small, chunk)), 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_shared_row_is_attended_to_as_its_tokens_are(random_vlm, chunks, shared, mode):
    """The oracle: chunks that have the row as often as it counts. Every operation on a window keeps that."""
    rows = [chunks[0], shared[0], chunks[2], shared[1]]
    same = [several(chunk) if chunk.counts is not None else chunk for chunk in rows]
    ours, theirs = (window_of(random_vlm, mode, *each) for each in (rows, same))

    def agree(ours, theirs):
        wanted = kj.query(random_vlm, theirs, QUESTION)
        near(kj.query(random_vlm, ours, QUESTION), wanted)
        return np.asarray(wanted)

    wanted = agree(ours, theirs)
    uncounted = [chunk.keeping(counts=None) for chunk in rows]
    plain = kj.query(random_vlm, window_of(random_vlm, mode, *uncounted), QUESTION)
    assert np.abs(np.asarray(plain) - wanted).max() > 1e-3 * np.abs(wanted).max()
    agree(*(kj.reorder(window, [3, 1, 0, 2]) for window in (ours, theirs)))
    slid = [kj.slide(window, 2) for window in (ours, theirs)]
    agree(*slid)
    agree(*(kj.recall(window, each[1], None, at=0) for window, each in zip(slid, (rows, same), strict=True)))
    agree(*(kj.replace(window, 0, each[1]) for window, each in zip((ours, theirs), (rows, same), strict=True)))
    agree(kj.replace(ours, 1, chunks[1]), kj.replace(theirs, 1, chunks[1]))
    answers = [kj.generate(random_vlm, window, QUESTION, max_new_tokens=3) for window in (ours, theirs)]
    assert answers[0].tokens == answers[1].tokens
    near(*(answer.window.entries[-1].chunk.kv.free for answer in answers), 1e-4)
    agree(*(answer.window for answer in answers))
    through = jax.jit(lambda window, chunk: kj.append(kj.slide(window, 1), chunk))
    agree(through(ours, shared[0]), kj.append(kj.slide(theirs, 1), several(shared[0])))
    if mode == "in_place":
        agree(kj.window.changes.materialised(ours), theirs)
    agree(kj.window.changes.rewritten(ours), theirs)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_remains_where_a_shared_chunk_stood(random_vlm, chunks, clips, shared, mode):
    window = kj.slide(window_of(random_vlm, mode, shared[0]))
    after = window_of(random_vlm, mode, *clips, chunks[0])
    again = window
    for chunk in (*clips, chunks[0]):
        again = kj.append(again, chunk)
    near(kj.query(random_vlm, again, QUESTION), kj.query(random_vlm, after, QUESTION), 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_window_without_counts_is_what_it_was(random_vlm, chunks, clips, mode):
    window = window_of(random_vlm, mode, *chunks, clips[0])
    assert window.state.bias is None and all(pool.bias is None for pool in window.state.pools)
    assert len(jax.tree.leaves(window.state)) == 4 + sum(len(jax.tree.leaves(pool)) for pool in window.state.pools)
    assert all(len(jax.tree.leaves(pool)) in (5, 8) for pool in window.state.pools)
    for chunk in clips:
        assert chunk.counts is None and len(jax.tree.leaves(chunk)) == 6 + len(chunk.source.inputs) - 1
    turn = kj.generate(random_vlm, window, QUESTION, max_new_tokens=2).window
    assert turn.state.bias is None and turn.entries[-1].chunk.counts is None


def test_copies_keep_their_counts(shared):
    chunk = shared[0]
    again = [
        chunk.to(jax.devices()[0]),
        chunk.copied(),
        chunk.without_source(),
        pickle.loads(pickle.dumps(chunk)),
        copy.deepcopy(chunk),
        Record.of(chunk).unpacked()[0],
        dataclasses.replace(chunk, codec="shared:1.0"),
        jax.jit(lambda each: each)(chunk),
        jax.tree.map(lambda leaf: leaf, chunk),
    ]
    for other in again:
        np.testing.assert_array_equal(other.counts, chunk.counts)
        assert other.codec == chunk.codec
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), chunk, chunk)
    assert jax.vmap(lambda each: each.counts.sum())(stacked).shape == (2,)


@pytest.mark.parametrize("storage", ["exact", "int8"])
def test_a_library_keeps_counts(random_vlm, clips, shared, storage, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([*shared, kj.encode(random_vlm, "a text")], storage=storage)
        lib.export(tmp_path / "x.tar", keys=[shared[0].key])
        (stacked,) = [each for each in lib.restore(lib.packs()[0]) if shared[0].key in each.keys]
        loaded = [*map(lib.get, (each.key for each in shared)), stacked.chunk(stacked.keys.index(shared[0].key))]
        assert lib.verify() is not None
    with kj.ChunkLibrary.open(tmp_path / "other", mode="a") as lib:
        lib.import_from(tmp_path / "x.tar")
        loaded.append(lib.get(shared[0].key))
    for again in loaded:
        chunk = next(each for each in shared if each.key == again.key)
        np.testing.assert_array_equal(again.counts, chunk.counts)
        assert again.codec == ("shared:1.0" if storage == "exact" else "shared:1.0+int8")
        assert again.length == chunk.length and int(again.source.length) == int(chunk.source.length)
        if storage == "exact":
            np.testing.assert_array_equal(again.kv.free, chunk.kv.free)
    with kj.ChunkLibrary.open(tmp_path / "bad", mode="a") as lib:
        for counts in (shared[0].counts[1:], jnp.ones(len(shared[0].counts), jnp.int32), None):
            with pytest.raises(UnstorableError, match="counts"):
                lib.put(shared[0].keeping(counts=counts))
        assert lib.keys() == ()


@pytest.mark.parametrize("mode", MODES)
def test_a_session_keeps_counts(random_vlm, shared, mode, tmp_path):
    room = window_of(random_vlm, mode, *shared).next_slot
    session = kj.Session(random_vlm, room, mode=mode)
    for chunk in shared:
        session.add(chunk, patch=False)
    wanted = kj.query(random_vlm, window_of(random_vlm, mode, *shared), QUESTION)
    near(kj.query(random_vlm, session.window, QUESTION), wanted)
    session.save(tmp_path / "saved")
    restored = kj.Session.restore(random_vlm, tmp_path / "saved")
    near(kj.query(random_vlm, restored.window, QUESTION), wanted)
    for each in (session, restored):
        each.add("a text that takes the place", patch=False)
        assert shared[0].key in each.evicted
        each.recall(shared[0].key, at=0, patch=False)
        back = next(entry.chunk for entry in each.window.entries if entry.chunk.key == shared[0].key)
        assert np.array_equal(back.counts, shared[0].counts) and back.codec == shared[0].codec
        again = window_of(random_vlm, mode, *(entry.chunk for entry in each.window.entries))
        near(kj.query(random_vlm, each.window, QUESTION), kj.query(random_vlm, again, QUESTION))


def test_windows_by_the_hundred(random_vlm, chunks, clips, shared):
    runner = BatchRunner(random_vlm, capacity=CAPACITY)
    tails = runner.tails([[QUESTION]] * 2)
    stacks = [Stack.of([chunk, chunk]) for chunk in (shared[0], chunks[0], shared[1])]
    wanted = kj.query(random_vlm, window_of(random_vlm, "materialise", shared[0], chunks[0], shared[1]), QUESTION)
    near(runner.ask(runner.reuse(stacks, [None] * 3), tails)[1, 0], wanted)
    full = kj.query(random_vlm, kj.prefill(random_vlm, [clips[0], chunks[0], clips[1]], capacity=CAPACITY), QUESTION)
    near(runner.ask(runner.prefill(stacks), tails)[0, 0], full, 2e-5)
    with pytest.raises(ValueError, match="share all alike"):
        Stack.of([shared[0], shared[0].keeping(counts=None)])


@pytest.mark.parametrize("mode", MODES)
def test_a_patch_is_of_the_rows_that_are_kept(random_vlm, chunks, clips, shared, mode):
    before = window_of(random_vlm, mode, chunks[0], shared[0])
    patch = kj.form_patch(random_vlm, shared[1], context=before, rank=1000, sketch=kj.SketchSpec((0, 1)))
    assert patch.length == shared[1].length and patch.codec == shared[1].codec
    conditioned = run_chunk(random_vlm, before, clips[1])[0]
    patched = kj.patch.apply(shared[1].kv, patch.factors)
    media = np.flatnonzero(np.asarray(clips[1].source.inputs["is_media"])[: clips[1].length])
    gone = [media[6 * patch + place] for patch in range(1, 4) for place in (0, 2, 4, 5)]
    rows = np.setdiff1d(np.arange(clips[1].length), gone)
    for ours, theirs in zip(jax.tree.leaves(patched), jax.tree.leaves(conditioned.kv), strict=True):
        near(np.asarray(ours)[:, : len(rows)], means(theirs, rows, gone, media), 2e-5)
    if mode == "materialise":  # inside a transformation too, where values are not known
        form = jax.jit(lambda chunk, window: kj.form_patch(random_vlm, chunk, context=window, rank=1000))
        compiled = kj.patch.apply(shared[1].kv, form(shared[1], before).factors)
        near(compiled.features, patched.features, 2e-5)
    near(patch.mass.sum(-1), np.ones(random_vlm.spec.layers))
    assert kj.staleness(before, shared[1], patch).change <= 1e-4
    unnamed = before.keeping(intact=False)  # where it is not known that nothing has changed, it is reread
    assert kj.staleness(unnamed, shared[1], patch).change <= 1e-3
    elsewhere = window_of(random_vlm, mode, chunks[2])
    moved = kj.append(elsewhere, shared[1], patch)
    assert np.isfinite(kj.query(random_vlm, moved, QUESTION)).all()
    exact = kj.form_patch(random_vlm, clips[1], context=before, rank=2)
    other = kj.share_rows(random_vlm, clips[1], 0.9)
    for chunk, wrong in ((shared[1], exact), (clips[1], patch), (other, patch)):
        with pytest.raises(PatchMismatchError):
            kj.append(before, chunk, wrong)
    same_shape = dataclasses.replace(patch, codec=other.codec)
    with pytest.raises(PatchMismatchError, match="codec"):
        kj.append(before, shared[1], same_shape)


def test_what_a_sketch_rereads_counts_rows_as_their_tokens(random_vlm, chunks, shared):
    before = window_of(random_vlm, "materialise", chunks[0], shared[0])
    patch = kj.form_patch(random_vlm, shared[1], context=before, rank=4, sketch=kj.SketchSpec((0, 1)))
    alike = several(shared[1])
    twice = np.repeat(np.arange(shared[1].length), np.asarray(shared[1].counts).astype(int)[: shared[1].length])
    u = np.zeros((*patch.factors.u.shape[:2], alike.kv.rot.shape[1]), np.asarray(patch.factors.u).dtype)
    u[..., : len(twice)] = np.asarray(patch.factors.u)[..., twice]
    factors = dataclasses.replace(patch.factors, u=jnp.asarray(u))
    # Each token at the last of its copies, so that it sees as many of them as its row counts.
    tokens = jnp.asarray(np.searchsorted(twice, np.asarray(patch.sketch.tokens), side="right") - 1, jnp.int32)
    state = window_of(random_vlm, "materialise", chunks[0], several(shared[0])).state
    base = jnp.float32(before.next_position)
    here = np.asarray(patch.sketch.spec.layers)
    sketch = dataclasses.replace(patch.sketch, tokens=tokens)
    wanted, _ = reread_jit(
        sketch, alike.kv, factors, alike.positions, state.rot[here], state.free[here], state.valid, base,
        spec=random_vlm.spec,
    )  # fmt: skip
    near(patch.sketch.outputs, wanted)


def test_a_planner_and_a_session_pass_over_patches_of_other_rows(random_vlm, chunks, clips, shared):
    """A store may have patches of the same chunk with all its rows."""
    exact = kj.form_patch(random_vlm, clips[1], antecedents=[clips[0]], rank=2)
    own = kj.form_patch(random_vlm, shared[1], antecedents=[clips[0]], rank=2)
    window = window_of(random_vlm, "materialise", clips[0])
    plan = planning.plan(random_vlm, window, planning.Append(shared[1]), policy=POLICY, stored=[exact, own])
    done = planning.execute(random_vlm, plan).window
    assert done.entries[-1].patch.codec == shared[1].codec and done.entries[-1].patch.length == shared[1].length
    memory = kj.session.memory.ChunkMemory(None)
    memory.put(exact)
    session = kj.Session(random_vlm, CAPACITY, store=memory)
    session.add(clips[0])
    session.add(shared[1])
    assert session.window.entries[-1].patch.codec == shared[1].codec
    near(kj.query(random_vlm, session.window, QUESTION), kj.query(random_vlm, session.window, QUESTION))
