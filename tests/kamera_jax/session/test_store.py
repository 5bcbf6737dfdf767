"""Stores: where a session keeps what it evicted and finds what it knows."""

import dataclasses

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import MissingKeyError
from kamera_jax.session.memory import ChunkMemory
from kamera_jax.store import Store
from tests.kamera_jax.session.items import CAPACITY, ITEMS
from tests.kamera_jax.session.policies import Trusting


def test_a_library_is_a_store(toy, tmp_path):
    """What leaves the window goes to the library, comes back from it, and is not encoded again by another session."""
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as library:
        assert isinstance(library, Store) and isinstance(ChunkMemory(None), Store)
        session = kj.Session(toy, CAPACITY, rank=3, store=library, policy=Trusting())
        keys = [session.add(item) for item in ITEMS[:6]]
        evicted = session.evicted
        assert evicted and set(evicted) <= set(keys) and all(library.has(key) for key in evicted)
        assert session.stats.evicted_bytes == 0 and session.stats.forgotten == 0
        patched = [key for key in evicted if library.patches(key)]
        assert patched == [key for key in evicted if key != keys[0]]  # the first stood behind nothing
        session.recall(evicted[-1])
        assert session.keys[-1] == evicted[-1]
        again = session.window.entries[-1]
        assert again.patch.key in {patch.key for patch in library.patches(evicted[-1])}
        session.save(tmp_path / "session")
        restored = kj.Session.restore(toy, tmp_path / "session", store=library)
        assert (restored.keys, restored.evicted) == (session.keys, session.evicted)
        restored.recall(restored.evicted[0])
        other = kj.Session(toy, CAPACITY, rank=3, store=library)
        other.add(ITEMS[keys.index(evicted[0])])
        assert other.stats.encoded == 0


def test_a_store_that_fails_leaves_the_session_as_it_was(toy):
    class Full(ChunkMemory):
        def put(self, item):
            raise OSError("no space left on device")

    session = kj.Session(toy, CAPACITY, rank=3, store=Full(None))
    with pytest.raises(OSError, match="no space left"):
        for item in ITEMS:
            before = (session.keys, session.evicted, session.stats)
            session.add(item)
    assert (session.keys, session.evicted, session.stats) == before
    assert np.isfinite(kj.query(toy, session.window, "what colour is it ?")).all()


def test_a_memory_finds_by_key_and_codec(toy):
    chunk = kj.encode(toy, ITEMS[0])
    memory = ChunkMemory(None)
    memory.put(chunk)
    assert memory.find(chunk.key).key == memory.find(chunk.key, "exact").key == chunk.key
    assert memory.find(chunk.key, "int8") is None and memory.find("0" * 64) is None
    assert memory.patches(chunk.key) == () == memory.patches("0" * 64)
    with pytest.raises(MissingKeyError):
        memory.put(dataclasses.replace(chunk, length=chunk.length))


def test_old_names_answer_with_a_warning(toy):
    session = kj.Session(toy, CAPACITY, rank=3)
    for item in ITEMS:
        session.add(item)
    with pytest.warns(DeprecationWarning, match="now Session.evicted"):
        assert session.held == session.evicted != ()
    with pytest.warns(DeprecationWarning, match="now evicted_bytes"):
        assert session.stats.held_bytes == session.stats.evicted_bytes > 0
