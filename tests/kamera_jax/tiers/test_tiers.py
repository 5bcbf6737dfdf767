"""Tiers as a store: what is put comes back to the bit, from wherever it went, and each tier has no more than it may."""

import dataclasses
import random
import threading

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import ArgumentError, CodecError, MissingKeyError
from kamera_jax.session.memory import ChunkMemory
from kamera_jax.store import Store
from kamera_jax.tiers.forms import device_bytes
from kamera_jax.tiers.usage import recorded
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

CHUNKS = 12
MADE = [chunk(number, tokens=16) for number in range(CHUNKS)]
KEYS = [each.key for each in MADE]
SIZE = device_bytes(MADE[0])
"""Bytes of each, on the device."""

OTHER = key_of("other")


@pytest.fixture
def library(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as opened:
        yield opened


def tiers(device=2, host=3, **options):
    """Tiers with room for so many chunks on the device and in host memory."""
    return kj.Tiers(device_bytes=device * SIZE, host_bytes=host * SIZE, **options)


def same(found, made):
    return found is not None and bits(found) == bits(made)


@pytest.mark.parametrize("kind", ("memory", "library", "tiers", "tiers alone"))
def test_every_store_does_what_the_protocol_says(kind, library):
    made = {"memory": lambda: ChunkMemory(None), "library": lambda: library, "tiers alone": lambda: kj.Tiers()}
    store = made.get(kind, lambda: tiers(1, 1, library=library))()
    assert isinstance(store, Store)
    behind = patch(0)
    assert not store.has(KEYS[0]) and store.find(KEYS[0]) is None and tuple(store.patches(KEYS[0])) == ()
    assert [store.put(each) for each in MADE[:3]] == KEYS[:3] and store.put(behind) == behind.key
    assert all(store.has(key) and same(store.find(key), each) for key, each in zip(KEYS[:3], MADE, strict=False))
    assert store.find(KEYS[0], "exact").key == KEYS[0] and store.find(KEYS[0], "int8") is None
    assert [bits(each) for each in store.patches(KEYS[0])] == [bits(behind)]
    store.release(KEYS[0])
    store.release(OTHER)
    store.put(MADE[0])
    assert store.has(KEYS[0]) and same(store.find(KEYS[0]), MADE[0])
    with pytest.raises(MissingKeyError):
        store.put(dataclasses.replace(MADE[0], length=MADE[0].length))


def test_what_has_no_room_goes_down_and_comes_back(library):
    store = tiers(library=library)
    for each in MADE:
        store.put(each)
    stats = store.stats
    assert stats.device_bytes <= 2 * SIZE and stats.host_bytes <= 3 * SIZE and stats.dropped == 0
    assert library.stats().chunks >= CHUNKS - 5 and stats.written_bytes > 0 < stats.to_host_bytes
    for _ in range(2):
        for key, each in zip(KEYS, MADE, strict=True):
            assert same(store.find(key), each)
    stats = store.stats
    assert (
        stats.looks == 2 * CHUNKS == stats.device + stats.host + stats.library and stats.library > 0 < stats.read_bytes
    )
    assert stats.avoided == 2 * CHUNKS * 16 and store.find(OTHER) is None and store.stats.missed == 1
    store.close()
    assert recorded(library.root).looks == 2 * CHUNKS + 1


def test_without_a_library_the_least_worth_is_given_up():
    costs = {key: 1.0 + number for number, key in enumerate(KEYS)}
    store = tiers(1, 4, cost=lambda chunk: costs[chunk.key])
    for key in KEYS:
        store.find(key)
    for each in MADE:
        store.put(each)
    left = [key for key in KEYS if store.has(key)]
    assert left[-1] == KEYS[-1] and len(left) in (4, 5) and store.stats.dropped == CHUNKS - len(left)
    assert min(costs[key] for key in left) > np.median([*costs.values()])


def test_what_is_pinned_stays(library):
    store = tiers(1, 2, library=library)
    store.pin(KEYS[0])
    for each in [*MADE, *MADE[1:]]:
        store.put(each)
        store.find(each.key)
    assert same(store.find(KEYS[0]), MADE[0])
    before = store.stats
    assert before.library < before.looks and store._on_device(KEYS[0]) is not None
    store.pin(KEYS[0], False)
    for _ in range(8):
        store.find(KEYS[1])
    assert store._on_device(KEYS[0]) is None


def test_any_order_of_calls_serves_the_right_bits_within_the_budgets(library):
    """Puts, releases, looks, pins and hints at random: what is served is what was put, and no tier has too much."""
    drawn = random.Random(5)
    store = tiers(2, 2, library=library, library_bytes=5 * SIZE)
    put = set()
    for _ in range(120):
        number = drawn.randrange(CHUNKS)
        what = drawn.choice(("put", "find", "find", "patch", "patches", "release", "pin", "hint"))
        if what == "put":
            put.add(store.put(MADE[number]))
        elif what == "find":
            found = store.find(KEYS[number])
            assert found is None or (same(found, MADE[number]) and KEYS[number] in put)
        elif what == "patch":
            store.put(patch(number % 3, (number, 7)))
        elif what == "patches":
            found = store.patches(KEYS[number])
            assert all(each.chunk == KEYS[number] for each in found) and len({each.key for each in found}) == len(found)
        elif what == "release":
            store.release(KEYS[number])
        elif what == "pin":
            store.pin(KEYS[number], drawn.random() < 0.2)
        else:
            store.hint({KEYS[number]: drawn.randrange(1, 30)}, prefetch=drawn.random() < 0.2)
        stats = store.stats
        assert stats.device_bytes <= 2 * SIZE and stats.host_bytes <= 2 * SIZE
    store.wait()
    assert sum(library.info(key).bytes for key in (*library.keys(), *library.keys("patches"))) <= 5 * SIZE
    assert store._cascade.host.nbytes == sum(each.item.nbytes for each in store._cascade.host)
    assert store.stats.failed == 0 and library.verify().ok
    store.close()


def test_what_others_stored_is_not_deleted_for_the_budget(library):
    library.put_many(MADE[:4])
    store = tiers(1, 1, library=library, library_bytes=2 * SIZE)
    for each in MADE:
        store.put(each)
    assert set(KEYS[:4]) <= set(library.keys()) and 4 < library.stats().chunks <= 6


def test_host_memory_may_hold_fewer_bits_and_says_so(library):
    store = tiers(1, 8, library=library, host_codec="kivi:4")
    for each in MADE[:4]:
        store.put(each)
    found = [store.find(key) for key in KEYS[:4]]
    codecs = [each.codec for each in found]
    assert sorted(set(codecs)) == ["exact", "kivi:4"]
    for each, made in zip(found, MADE, strict=False):
        wanted = kj.Compressed.of(jax.tree.map(jax.numpy.asarray, made), "kivi:4").restore().kv
        wanted = made.kv if each.codec == "exact" else wanted
        assert (np.asarray(each.kv.rot) == np.asarray(wanted.rot)).all() and each.key == made.key
    packed = next(each for each in found if each.codec != "exact")
    assert store.find(packed.key, "exact") is None  # nobody has it any more
    store.put(packed)
    again = store.find(packed.key)
    assert again.codec == "kivi:4" and bits(again) == bits(packed)  # packed once, and not a second time
    assert store.stats.host_bytes < 4 * SIZE * 0.75


def test_the_library_may_hold_fewer_bits_too(library):
    store = tiers(1, 1, library=library, library_codec="int8")
    for each in MADE:
        store.put(each)
    assert {library.get(key).codec for key in library.keys()} == {"int8"}


def test_patches_come_back_those_that_served_last_first(library):
    made = [patch(0, (other, other + 1)) for other in range(1, 12)]
    store = kj.Tiers(library=library)
    for each in made:
        store.put(each)
    store.put(made[4])
    wanted = [made[4], *(each for each in reversed(made[3:]) if each is not made[4])]
    assert [each.key for each in store.patches(KEYS[0])] == [each.key for each in wanted]
    assert library.stats().patches == 0
    small = kj.Tiers(device_bytes=0, host_bytes=store.stats.host_bytes // 2, library=library)
    for each in made[:6]:
        small.put(each)
    assert 0 < library.stats().patches < 6
    assert {each.key for each in small.patches(KEYS[0])} == {each.key for each in made[:6]}


def test_arrays_that_were_given_away_are_not_served():
    store = tiers(4, 4)
    given = jax.tree.map(jax.numpy.array, MADE[0])._named_like(MADE[0])
    store.put(given)
    given.kv.rot.delete()
    assert store.find(KEYS[0]) is None and not store.has(KEYS[0])


def test_several_threads_ask_at_once(library):
    library.put_many(MADE)
    store = tiers(2, 3, library=library)
    wrong = []

    def look(seed):
        drawn = random.Random(seed)
        for _ in range(40):
            number = drawn.randrange(CHUNKS)
            try:
                if drawn.random() < 0.3:
                    store.prefetch([KEYS[drawn.randrange(CHUNKS)]])
                if not same(store.find(KEYS[number]), MADE[number]):
                    wrong.append(number)
                store.put(MADE[number])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and store.stats.looks == 120
    store.close()


def test_bad_values_are_named_and_leave_nothing():
    """What is of another type is tried in `tests.kamera_jax.bad_arguments`, where annotations are not checked."""
    with pytest.raises(ValueError, match="host_bytes is -1"):
        kj.Tiers(host_bytes=-1)
    with pytest.raises(CodecError, match="kivi:9"):
        kj.Tiers(library_codec="kivi:9")
    store = kj.Tiers(cost=lambda chunk: float("nan"))
    with pytest.raises(ValueError, match="cost"):
        store.put(MADE[0])
    assert not store.has(KEYS[0])
    with pytest.raises(ValueError, match="steps.* is 0; expected at least 1"):
        store.hint({KEYS[1]: 3, KEYS[0]: 0})
    assert not store._cascade.policy.hinted(KEYS[1])
    with pytest.raises(ArgumentError, match="keys is"):
        store.prefetch(KEYS[0])
