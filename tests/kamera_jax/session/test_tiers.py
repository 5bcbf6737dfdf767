"""A session over tiers: as over any store, and what it is told of what comes is there before."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.tiers.forms import device_bytes
from tests.kamera_jax.session.items import CAPACITY, ITEMS
from tests.kamera_jax.toy import Toy


@pytest.fixture
def library(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as opened:
        yield opened


def test_a_session_over_tiers_stands_as_one_over_memory(toy, library, mode):
    """The same windows, to the bit, though what left went to the device, to host memory and to the disk."""
    size = device_bytes(kj.encode(toy, ITEMS[0]))
    store = kj.Tiers(device_bytes=size, host_bytes=2 * size, library=library, vlm=toy)
    sessions = [
        kj.Session(toy, CAPACITY, rank=3, mode=mode, **options)
        for options in ({"store": store}, {"memory_bytes": None})
    ]
    keys = [[session.add(item) for item in ITEMS[:6]] for session in sessions]
    assert keys[0] == keys[1] and sessions[0].evicted == sessions[1].evicted != ()
    for _ in range(2):
        back = sessions[1].evicted[0]
        sessions[0].prefetch([back, sessions[0].keys[-1]])
        store.wait()
        for session in sessions:
            session.recall(back)
        windows = [session.window for session in sessions]
        assert windows[0].keys == windows[1].keys and windows[0].lineage == windows[1].lineage
        logits = [np.asarray(kj.query(toy, window, "what is it ?")) for window in windows]
        assert (logits[0] == logits[1]).all()
    stats = sessions[0].stats
    assert stats.encoded == 6 and stats.recalls == 2 and stats.forgotten == 0 and stats.evicted_bytes > 0
    assert store.stats.fetched >= 1 and store.stats.missed == 6  # each item, before it was encoded
    sessions[0].hint({sessions[0].evicted[0]: 2})
    store.wait()
    assert store._cascade.policy.hinted(sessions[0].evicted[0])
    sessions[1].prefetch(["0" * 64])  # host memory has nothing to fetch
    sessions[1].hint({"0" * 64: 1})
    store.close()


def test_another_session_finds_what_tiers_stored(toy, library):
    with kj.Tiers(device_bytes=0, host_bytes=0, library=library) as store:
        session = kj.Session(toy, CAPACITY, rank=3, store=store)
        keys = [session.add(item) for item in ITEMS[:6]]
        evicted = session.evicted
    with kj.Tiers(library=library) as store:
        other = kj.Session(toy, CAPACITY, rank=3, store=store)
        other.prefetch(evicted)
        store.wait()
        for key in evicted:
            other.add(ITEMS[keys.index(key)])
        assert other.stats.encoded == 0 and store.stats.fetched == len(evicted)


def test_a_chunk_is_run_again_from_its_embeddings():
    """What is too much for host memory as KV stays as what it was made from, and comes back the same."""
    toy = Toy(seed=3)
    chunks = [kj.encode(toy, item) for item in ITEMS[:6]]
    whole = sum(device_bytes(each) for each in chunks)
    store = kj.Tiers(device_bytes=0, host_bytes=whole // 3, vlm=toy)
    plain = kj.Tiers(device_bytes=0, host_bytes=whole // 3)
    for each in chunks:
        store.put(each)
        plain.put(each)
    lost = [each for each in chunks if not plain.has(each.key)]
    assert lost and all(store.has(each.key) for each in lost)
    assert store.find(lost[0].key, "int8") is None
    found = store.find(lost[0].key)
    assert found.key == lost[0].key and found.codec == "exact" and store.stats.rebuilt == 1
    assert np.array_equal(np.asarray(found.kv.rot), np.asarray(lost[0].kv.rot))
    assert np.array_equal(np.asarray(found.kv.free), np.asarray(lost[0].kv.free))
    assert store.stats.host_bytes <= whole // 3 and store.stats.avoided == 0  # it was run


@pytest.mark.parametrize(("seconds", "served"), [(1e9, "library"), (1e-12, "rebuilt")])
def test_of_a_library_and_embeddings_the_quicker_serves(library, seconds, served):
    toy = Toy(seed=3)
    chunks = [kj.encode(toy, item) for item in ITEMS[:6]]
    library.put_many(chunks)
    whole = sum(device_bytes(each) for each in chunks)
    store = kj.Tiers(device_bytes=0, host_bytes=whole // 3, library=library, vlm=toy)
    for each in chunks:
        store.put(each)
    gone = [each.key for each in chunks if store._cascade.embedded(each.key) is not None]
    store._rebuild_seconds = seconds
    store._disk._seconds = 1e-6
    assert store.find(gone[0]).key == gone[0] and getattr(store.stats, served) == 1 == store.stats.looks
