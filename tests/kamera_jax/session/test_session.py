"""The session: what it adds to a window, and that everything it gives is what the operations give."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import (
    ChunkNotHeldError,
    ModelMismatchError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
    WindowFullError,
)
from kamera_jax.guard.planning import Action
from kamera_jax.library import files, snapshot
from tests.kamera_jax.session.items import CAPACITY, ITEMS
from tests.kamera_jax.session.policies import Trusting
from tests.kamera_jax.toy import Toy, forwards
from tests.kamera_jax.window.test_window_machine import assert_state


def assert_same(given, wanted):
    """Windows of the same entries and, where they are materialised, the same bits."""
    assert given.keys == wanted.keys
    for ours, theirs in zip(given.entries, wanted.entries, strict=True):
        assert (ours.base, ours.slot, ours.patch is None) == (theirs.base, theirs.slot, theirs.patch is None)
        for name in ("rot", "free"):
            assert (getattr(ours.chunk.kv, name) == getattr(theirs.chunk.kv, name)).all()
    valid = np.asarray(wanted.state.valid)
    assert (np.asarray(given.state.valid) == valid).all()
    for name in ("rot", "free", "positions"):
        new, old = (np.asarray(getattr(window.state, name))[:, valid] for window in (given, wanted))
        assert (new == old).all(), name


def test_it_is_the_operations(toy, mode):
    """Full, then sliding: every chunk patched on the window as it stood."""
    session = kj.Session(toy, CAPACITY, mode=mode, rank=4)
    window = kj.Window.empty(toy, CAPACITY, mode=mode)
    for i, item in enumerate(ITEMS):
        chunk = kj.encode(toy, item)
        window = kj.slide(window) if len(window.entries) == 4 else window
        patch = kj.form_patch(toy, chunk, context=window, rank=4) if window.entries else None
        window = kj.append(window, chunk, patch)
        assert session.add(item) == chunk.key
        assert session.keys == window.keys == session.window.keys
        stats = kj.SessionStats(seen=i + 1, encoded=i + 1, patched=i, evicted=max(i - 3, 0))
        assert replace(session.stats, evicted_bytes=0) == stats
    assert_same(session.window, window)
    first = kj.encode(toy, ITEMS[0])
    session.recall(first.key)  # it stood behind nothing, and has no patch to come with
    window = kj.slide(window)
    assert_same(session.window, kj.append(window, first, kj.form_patch(toy, first, context=window, rank=4)))


def test_blind_items_get_no_patch(toy):
    session = kj.Session(toy, CAPACITY)
    for item in ITEMS[:3]:
        session.add(item, patch=False)
    assert [entry.patch for entry in session.window.entries] == [None] * 3 and session.stats.patched == 0


def test_an_evicted_chunk_comes_back_with_its_patch(toy, mode):
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY, mode=mode)
    keys = [session.add(item, pin=item == ITEMS[0]) for item in ITEMS[:4]]
    entry = session.window.entries[1]
    for item in ITEMS[4:6]:
        session.add(item)
    assert session.evicted == (keys[1], keys[2]) and session.stats.evicted_bytes > 0
    before = seen()
    session.recall(keys[1], at=1)  # behind the pinned one, as it was formed
    assert session.keys[:2] == (keys[0], keys[1]) and keys[1] not in session.evicted and keys[3] in session.evicted
    served = session.last[0]
    assert (served.action, served.estimate_kl, served.came) == (Action.STORED, 0.0, True)
    again = session.window.entries[1]
    assert again.patch.antecedents == entry.patch.antecedents and session.stats.recalls == 1
    assert seen() - before == session.stats.patched - 5  # what stands behind it may take a forward, it does not
    for ours, theirs in (
        (again.chunk.kv.rot, entry.chunk.kv.rot),
        (again.patch.factors.v, entry.patch.factors.v),
        (again.patch.mass, entry.patch.mass),
    ):
        assert (np.asarray(ours) == np.asarray(theirs)).all()


def test_what_is_known_is_not_encoded_again(toy):
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY)
    keys = [session.add(item) for item in ITEMS]
    assert seen() == 1 + 7 + 6  # the preamble, each alone, each but the first behind others
    for item, key in zip(ITEMS, keys, strict=True):
        assert session.add(item, patch=False) == key
    assert seen() == 14 and session.stats.encoded == 7 and session.stats.seen == 14
    prepared = vlm.prepared
    for key in keys:
        session.add(None, key, patch=False)  # not so much as read
    assert vlm.prepared == prepared and seen() == 14


def test_a_session_of_nothing_but_hits_runs_nothing(toy, mode):
    vlm, seen = forwards(toy)
    chunks = [kj.encode(vlm, item) for item in ITEMS]
    before = seen()
    session = kj.Session(vlm, CAPACITY, mode=mode)
    for chunk in (*chunks, *chunks):
        session.add(chunk, patch=False)
    for item in ITEMS:
        session.add(item, patch=False)
    for key in session.evicted:
        session.recall(key, patch=False)
    assert seen() == before and session.stats.seen == 21 and session.stats.recalls == 3
    assert session.stats.encoded == session.stats.patched == 0


def test_a_patch_formed_after_the_same_chunks_is_taken_again(toy):
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY)
    keys = [session.add(item) for item in ITEMS[:3]]
    before = seen()
    old = session.window.entries[2].patch
    session.replace(keys[2], ITEMS[3])
    assert seen() == before + 2  # encoded, and a patch
    session.replace(session.keys[2], ITEMS[2])
    assert seen() == before + 2 and session.keys == tuple(keys)
    assert (np.asarray(session.window.entries[2].patch.factors.v) == np.asarray(old.factors.v)).all()


def test_recalling_what_stands_in_the_window_moves_it(toy, mode):
    session = kj.Session(toy, CAPACITY, mode=mode, policy=Trusting())
    keys = [session.add(item) for item in ITEMS[:4]]
    patches = {entry.chunk.key: entry.patch for entry in session.window.entries}
    for key, at, wanted in ((keys[3], 1, "0312"), (keys[0], 4, "3120"), (keys[1], 1, "3120"), (keys[1], 2, "3120")):
        session.recall(key, at=at)
        assert session.keys == tuple(keys[int(place)] for place in wanted)
    assert session.last[0].action is Action.KEEP and session.evicted == ()
    first = session.window.entries[0]
    assert first.patch is None and patches[keys[3]] is not None  # it stands behind nothing
    session.recall(keys[3], at=4)
    assert session.window.entries[-1].patch.key == patches[keys[3]].key  # and was not forgotten
    with pytest.raises(ValueError, match=r"at must be in 0\.\.4"):
        session.recall(keys[0], at=5)


def test_replacing_keeps_what_stands_later(toy, mode):
    session = kj.Session(toy, CAPACITY, mode=mode, policy=Trusting())
    keys = [session.add(item) for item in ITEMS[:4]]
    entries = session.window.entries
    new = session.replace(keys[1], ITEMS[5])
    assert session.keys == (keys[0], new, *keys[2:]) and session.evicted == (keys[1],)
    assert session.window.entries[3].patch is entries[3].patch
    assert session.window.entries[1].patch.antecedents == (keys[0],)
    longer = session.replace(new, "more than one tile of letters")  # and so the oldest goes
    assert session.keys == (longer, *keys[2:]) and set(session.evicted) == {keys[0], keys[1], new}


def test_pinned_chunks_stay(toy):
    session = kj.Session(toy, CAPACITY)
    first = session.add(ITEMS[0], pin=True)
    keys = [session.add(item) for item in ITEMS[1:6]]
    assert session.keys == (first, *keys[2:])
    for key in keys[2:]:
        session.pin(key)
    full = session.window
    for operation in (lambda: session.add(ITEMS[6]), lambda: session.recall(keys[0], at=1), lambda: session.ask("it?")):
        with pytest.raises(WindowFullError, match="beside the preamble and what is pinned; unpin some"):
            operation()
    assert session.window is full and session.evicted == (keys[0], keys[1])
    session.pin(first, False)
    session.add(ITEMS[6])
    assert first not in session.keys
    with pytest.raises(ChunkNotHeldError, match="the window has no chunk"):
        session.pin(first)


def test_asking_keeps_the_turn_or_not(toy, mode):
    session = kj.Session(toy, CAPACITY, mode=mode)
    for item in ITEMS[:2]:
        session.add(item)
    before = session.window
    dropped = session.ask("what is it", max_new_tokens=3, keep=False)
    assert session.window is before and session.stats.turns == 0
    kept = session.ask("what is it", max_new_tokens=3)
    assert kept.tokens == dropped.tokens and session.stats.turns == 1
    assert_same(session.window, kj.generate(toy, before, "what is it", max_new_tokens=3).window)
    turn = session.keys[-1]
    for item in ITEMS[2:6]:
        session.add(item)
    assert turn in session.evicted
    session.recall(turn)
    assert session.window.entries[-1].chunk.turn
    # A question that does not fit pushes out the oldest; one that is not kept pushes nothing out.
    keys = session.keys
    turn = keys[-1]
    session.ask("a" * 20, max_new_tokens=3, keep=False)
    assert session.keys == keys
    session.ask("a" * 20, max_new_tokens=3)
    assert session.keys[0] != keys[0] and session.keys[-2] == turn


def test_the_memory_is_bounded_and_says_what_it_lost(toy):
    session = kj.Session(toy, CAPACITY)
    keys = [session.add(item) for item in ITEMS]
    limit = session.stats.evicted_bytes - 1
    small = kj.Session(toy, CAPACITY, memory_bytes=limit)
    for item in ITEMS:
        small.add(item)
    assert small.evicted == tuple(keys[1:3]) and small.stats.evicted_bytes <= limit and small.stats.forgotten == 1
    with pytest.raises(ChunkNotHeldError, match=f"{keys[0][:12]}.*dropped to stay within memory_bytes=.*add the item"):
        small.recall(keys[0])
    small.recall(keys[1])  # used: not the next to go
    assert small.evicted == (keys[2], keys[3])
    none = kj.Session(toy, CAPACITY, memory_bytes=0)
    for item in ITEMS:
        none.add(item)
    assert none.evicted == () and none.stats.evicted_bytes == 0 and none.stats.forgotten == 3


def test_windows_that_were_handed_out_stay(toy, mode):
    session = kj.Session(toy, CAPACITY, mode=mode)
    windows = []
    for item in ITEMS:
        session.add(item)
        windows.append((session.window, session.keys))
        windows.append((session.ask("?", max_new_tokens=1).window, session.keys))
    for window, keys in windows:
        assert_state(window, [(entry.chunk, entry.patch) for entry in window.entries])
        assert window.keys == keys


def test_buffers_are_handed_on_where_nobody_has_them(toy):
    session = kj.Session(toy, CAPACITY)
    session.add(ITEMS[0])
    state = session._kept.window.state
    session.add(ITEMS[1])
    assert state.rot.is_deleted()
    lent = session.window.state
    session.add(ITEMS[2])
    assert not lent.rot.is_deleted()


def test_a_failing_operation_changes_nothing(toy, mode):
    session = kj.Session(toy, CAPACITY, mode=mode)
    key = session.add(ITEMS[0])
    session.add(ITEMS[1])
    window = session.window
    stats = session.stats
    other = Toy(seed=3)
    for error, operation in (
        (WindowFullError, lambda: session.add("a" * 65)),
        (WindowFullError, lambda: session.replace(key, "a" * 65)),
        (WindowFullError, lambda: session.ask("a" * 65)),
        (ModelMismatchError, lambda: session.add(kj.encode(other, "a"), patch=False)),
        (ModelMismatchError, lambda: session.replace(key, kj.encode(other, "a"))),
        (ChunkNotHeldError, lambda: session.recall("0" * 64)),
        (ChunkNotHeldError, lambda: session.replace("0" * 64, "a")),
        (ValueError, lambda: session.recall(key, at=3)),
        (ValueError, lambda: session.add(ITEMS[2], key="0" * 64)),
        (ValueError, lambda: session.ask("a", temperature=-1.0)),
    ):
        with pytest.raises(error):
            operation()
    assert session.window is window and session.stats == stats and session.evicted == ()
    for options in ({"rank": 0}, {"memory_bytes": -1}):
        with pytest.raises(ValueError):
            kj.Session(toy, CAPACITY, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_restore(dtype, mode, tmp_path):
    toy = Toy(dtype=dtype)
    session = kj.Session(toy, CAPACITY, mode=mode, rank=5)
    keys = [session.add(item) for item in ITEMS[:5]]
    session.add(ITEMS[4])
    session.ask("what is it", max_new_tokens=2)
    session.recall(keys[0])
    session.pin(keys[0])
    session.save(tmp_path / "s")
    again = kj.Session.restore(toy, tmp_path / "s")
    assert (again.keys, again.evicted, again.stats) == (session.keys, session.evicted, session.stats)
    assert again.stats.evicted_bytes > 0 and again.window.capacity == CAPACITY
    assert_same(again.window, session.window)
    for ours, theirs in zip(again.window.entries, session.window.entries, strict=True):
        assert ours.chunk.turn == theirs.chunk.turn and ours.chunk.antecedents == theirs.chunk.antecedents
        assert ours.chunk.kv.rot.dtype == dtype
        if ours.patch is not None:
            for name in ("u", "v", "ranks"):
                pair = [np.asarray(getattr(entry.patch.factors, name)) for entry in (ours, theirs)]
                assert (pair[0] == pair[1]).all() and pair[0].dtype == pair[1].dtype
    # From here on they go the same way.
    for each in (session, again):
        each.recall(each.evicted[0])
        each.add(ITEMS[6])
    assert again.stats == session.stats and again.evicted == session.evicted and keys[0] in again.keys
    assert_same(again.window, session.window)
    # Saved over, the second time it is the second state.
    again.save(tmp_path / "s")
    assert kj.Session.restore(toy, tmp_path / "s").keys == again.keys
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_an_empty_session_is_saved(toy, tmp_path):
    kj.Session(toy, CAPACITY, memory_bytes=None).save(tmp_path / "deep" / "s")
    again = kj.Session.restore(toy, tmp_path / "deep" / "s")
    assert again.keys == () and again.add(ITEMS[0]) == again.keys[0]


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("point", ["arrays", "description", "sweep"])
def test_a_save_that_dies_leaves_what_was_there(toy, tmp_path, monkeypatch, point):
    """It dies with the arrays written, with the description written beside its place, or when all but done."""

    def die(*args, **options):
        raise Killed

    def dying_save(session):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            if point == "arrays":
                patch.setattr(snapshot, "write_sealed", die)
            elif point == "description":
                patch.setattr(snapshot, "sync_tree", lambda folder: None)
                patch.setattr(files.os, "fsync", die)
            else:
                patch.setattr(snapshot, "shutil", SimpleNamespace(rmtree=die))
            session.save(tmp_path / "s")

    session = kj.Session(toy, CAPACITY)
    session.add(ITEMS[0])
    if point != "sweep":
        dying_save(session)
        with pytest.raises(SnapshotNotFoundError, match="no snapshot in"):
            kj.Session.restore(toy, tmp_path / "s")
    session.save(tmp_path / "s")
    old = session.keys
    session.add(ITEMS[1])
    dying_save(session)
    assert kj.Session.restore(toy, tmp_path / "s").keys == (session.keys if point == "sweep" else old)
    session.save(tmp_path / "s")
    assert kj.Session.restore(toy, tmp_path / "s").keys == session.keys
    assert len(list((tmp_path / "s").iterdir())) == 2  # what was left is swept away


def test_what_cannot_be_restored_is_named(toy, tmp_path):
    session = kj.Session(toy, CAPACITY)
    folder = tmp_path / "s"
    session.add(ITEMS[0])
    session.save(folder)
    with pytest.raises(ModelMismatchError, match="belongs to model .*; restore it with its model"):
        kj.Session.restore(Toy(seed=2), folder)
    with pytest.raises(SnapshotNotFoundError):
        kj.Session.restore(toy, tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds letter.txt"):
        session.save(other)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    description = folder / "description.json"
    text = (folder / "description.json").read_text()
    for broken in (text[: len(text) // 2], "{}", "[]", text.replace("float32", "float16"), text.replace("80", "96")):
        description.write_text(broken)
        with pytest.raises(SnapshotCorruptError):
            kj.Session.restore(toy, folder)
    description.write_text(text)
    kj.Session.restore(toy, folder)
    for path in sorted((folder).glob("arrays-*/state/*/0*")):
        payload = bytearray(path.read_bytes())
        for i in range(0, len(payload), 97):
            payload[i] ^= 1
        path.write_bytes(payload)
    with pytest.raises(SnapshotCorruptError):
        kj.Session.restore(toy, folder)
