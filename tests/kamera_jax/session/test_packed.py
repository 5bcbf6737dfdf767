"""Sessions whose window keeps its chunks packed answer as windows that are packed by hand."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import CodecError, SnapshotCorruptError
from kamera_jax.guard.planning import Action
from kamera_jax.identity import EXACT
from kamera_jax.library import snapshot
from tests.kamera_jax.session.items import CAPACITY, ITEMS
from tests.kamera_jax.window.test_in_place import QUESTION, TEXTS, relative

ROOM = 128
"""The preamble, a few short texts and a turn."""


def served(vlm, item, storage):
    return kj.compress(vlm, kj.encode(vlm, item), storage).restore()


def put(vlm, window, chunk):
    """The chunk behind what stands there, with the patch that a session forms for it."""
    return kj.append(window, chunk, kj.form_patch(vlm, chunk, context=window, rank=4) if window.entries else None)


def assert_answers_alike(vlm, session, window):
    assert session.window.storage == window.storage and session.keys == window.keys
    for ours, theirs in zip(session.window.entries, window.entries, strict=True):
        assert (ours.chunk.codec, ours.patch is None) == (theirs.chunk.codec, theirs.patch is None)
    assert all(pool.unpack is not None for pool in session.window.state.pools)
    assert relative(kj.query(vlm, session.window, QUESTION), kj.query(vlm, window, QUESTION)) <= 1e-6


def test_it_is_the_operations_on_packed_chunks(random_vlm, tmp_path):
    vlm = random_vlm
    storage = "kivi:4"
    a, b = (served(vlm, text, storage) for text in TEXTS[:2])
    session = kj.Session(vlm, ROOM, mode="in_place", storage=storage, rank=4)
    window = kj.Window.empty(vlm, ROOM, mode="in_place", storage=storage)
    for text, chunk in zip(TEXTS, (a, b), strict=False):
        assert session.add(text) == chunk.key
        window = put(vlm, window, chunk)
    assert_answers_alike(vlm, session, window)
    assert f"storage={storage!r}" in repr(session) and session.add(kj.encode(vlm, TEXTS[1])) == b.key
    # A turn is kept as chunks are, by a session and by hand.
    asked = session.ask(QUESTION, max_new_tokens=3)
    answer = kj.generate(vlm, window, QUESTION, max_new_tokens=3)
    assert asked.tokens == answer.tokens and answer.window.entries[-1].chunk.codec == storage
    assert_answers_alike(vlm, session, answer.window)
    session.save(tmp_path)
    again = kj.Session.restore(vlm, tmp_path)
    assert_answers_alike(vlm, again, answer.window)
    for ours, theirs in zip(again.window.entries, session.window.entries, strict=True):
        assert (np.asarray(ours.chunk.kv.rot) == np.asarray(theirs.chunk.kv.rot)).all()
    # An edited page, and what was replaced comes back in front.
    session.replace(b.key, "the cell is red")
    session.recall(b.key, at=0)
    assert [entry.chunk.codec for entry in session.window.entries] == [storage] * 4
    assert session.keys[0] == b.key and session.window.storage == storage


@pytest.mark.parametrize("storage", ["int8", "saw:4"])
def test_it_slides_and_what_left_comes_back_packed(toy, storage):
    """Full, then sliding, by the toy, whose logits say how many tokens stand there."""
    session = kj.Session(toy, CAPACITY, mode="in_place", storage=storage, rank=4)
    window = kj.Window.empty(toy, CAPACITY, mode="in_place", storage=storage)
    for item in ITEMS:
        session.add(item)
        window = put(toy, kj.slide(window) if len(window.entries) == 4 else window, served(toy, item, storage))
    assert_answers_alike(toy, session, window)
    first = served(toy, ITEMS[0], storage)
    session.recall(first.key)
    assert_answers_alike(toy, session, put(toy, kj.slide(window), first))
    assert (np.asarray(session.window.entries[-1].chunk.kv.rot) == np.asarray(first.kv.rot)).all()


def test_a_chunk_that_is_run_again_is_packed(toy):
    policy = kj.ReusePolicy(max_kl=1e-9, fallback="reprefill")
    session = kj.Session(toy, CAPACITY, mode="in_place", storage="kivi:4", policy=policy)
    first, _ = (session.add(item) for item in ITEMS[:2])
    session.recall(first, at=2)  # behind the other, where it never stood
    assert Action.PREFILL in [each.action for each in session.last]
    assert any(entry.chunk.conditioned for entry in session.window.entries)
    assert [entry.chunk.codec for entry in session.window.entries] == ["kivi:4", "kivi:4"]
    window, _ = kj.append_checked(toy, session.window, *session_pair(toy, session.window), policy)
    assert window.entries[-1].chunk.codec == "kivi:4"


def session_pair(toy, window):
    """A chunk for a window, and a patch that was formed on another."""
    chunk = served(toy, ITEMS[2], window.storage)
    return chunk, kj.form_patch(toy, chunk, antecedents=[kj.encode(toy, ITEMS[3])], rank=4)


def test_what_a_library_has_is_packed_or_refused_before_anything_changes(random_vlm, tmp_path):
    vlm = random_vlm
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as library:
        exact = library.put(kj.encode(vlm, TEXTS[0]))
        coarse = library.put(kj.encode(vlm, TEXTS[1]), storage="kivi:2")
        session = kj.Session(vlm, ROOM, mode="in_place", storage="int8", store=library)
        session.add(TEXTS[0])
        assert session.last[0].encoded is False and session.window.entries[0].chunk.codec == "int8"
        before = session.window, session.stats, session.log
        message = "has codec 'kivi:2', and the window keeps its chunks in 'int8'"
        for refused in (
            lambda: session.add(TEXTS[1]),
            lambda: session.add(None, coarse),
            lambda: session.recall(coarse),
            lambda: session.replace(exact, library.get(coarse)),
        ):
            with pytest.raises(CodecError, match=message):
                refused()
        finder = kj.EmbeddingFinder(library, {exact: [1.0, 0.0], coarse: [1.0, 0.5]}, lambda text: [1.0, 0.0])
        other = kj.Session(vlm, ROOM, mode="in_place", storage="saw:4")
        with pytest.raises(CodecError, match="keeps its chunks in 'saw:4'"):
            other.ask(QUESTION, library=finder, top=2)
        assert other.keys == () and other.stats.seen == 0
        assert (session.window, session.stats, session.log) == before
        # Rows that were chosen are no other packing.
        fewer = kj.compress(vlm, kj.encode(vlm, TEXTS[2]), "knorm:0.5:large").restore()
        other.add(fewer, patch=False)
        assert other.window.entries[0].chunk.codec == "knorm:0.5:large+saw:4"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "materialise", "storage": "int8"}, 'give mode="in_place"'),
        ({"storage": "turbo:4"}, "expected int8, kivi:B or saw:B alone"),
        ({"storage": "int3"}, "no codec 'int3'"),
        ({"storage": "pca:0.5+int8"}, "expected int8, kivi:B or saw:B alone"),
    ],
)
def test_what_a_session_cannot_keep_is_refused(toy, options, message):
    with pytest.raises(CodecError, match=message):
        kj.Session(toy, CAPACITY, **{"mode": "in_place"} | options)


def test_values_that_cannot_be_packed_are_refused(toy):
    session = kj.Session(toy, CAPACITY, mode="in_place", storage="int8")
    chunk = kj.encode(toy, ITEMS[0])
    with pytest.raises(CodecError, match="not finite"):
        session.add(chunk.keeping(kv=kj.KV(chunk.kv.rot * np.float32("nan"), chunk.kv.free)))
    assert session.keys == ()


def test_sessions_saved_before_have_no_storage(toy, tmp_path):
    session = kj.Session(toy, CAPACITY, mode="in_place")
    session.add(ITEMS[0])
    session.save(tmp_path)
    described, arrays = snapshot.read(tmp_path)
    assert described.pop("storage") == EXACT
    snapshot.write(tmp_path, described, arrays)
    assert kj.Session.restore(toy, tmp_path).window.storage == EXACT
    for storage in ("pca:0.5", 8):
        snapshot.write(tmp_path, described | {"storage": storage}, arrays)
        with pytest.raises(SnapshotCorruptError, match="is not as one is saved"):
            kj.Session.restore(toy, tmp_path)
