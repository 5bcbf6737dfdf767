"""What a session's host memory keeps and what it drops: chunks, turns, and several patches of a chunk."""

import random

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.record import Record
from kamera_jax.session.memory import PATCHES, SHARE, ChunkMemory
from tests.kamera_jax.session.items import ITEMS


@pytest.fixture(scope="module")
def chunks(toy):
    return [kj.encode(toy, item) for item in ITEMS]


@pytest.fixture(scope="module")
def patches(toy, chunks):
    """Of the first chunk, each behind other chunks: more than are kept of one."""
    behind = [[other] for other in chunks[1:]] + [[chunks[1], other] for other in chunks[2:]]
    found = [kj.form_patch(toy, chunks[0], antecedents=antecedents, rank=2) for antecedents in behind]
    assert len({patch.key for patch in found}) == len(found) > PATCHES
    return found


@pytest.fixture(scope="module")
def turn(toy, chunks):
    window = kj.append(kj.Window.empty(toy, 80), chunks[0])
    return kj.generate(toy, window, "what?", max_new_tokens=3).window.entries[-1].chunk


def size(memory):
    """Bytes by what the memory gives, and not by what it counts."""
    return sum(each.nbytes for each in (*memory.records, *memory.patch_records))


def test_several_patches_of_a_chunk_are_kept_and_the_least_served_leaves(chunks, patches):
    memory = ChunkMemory(None)
    for patch in patches[:PATCHES]:
        memory.put(patch)
    for patch in patches[1:PATCHES]:
        memory.put(patch)  # served once more
    assert {patch.key for patch in memory.patches(chunks[0].key)} == {patch.key for patch in patches[:PATCHES]}
    memory.put(patches[PATCHES])
    kept = {patch.key for patch in memory.patches(chunks[0].key)}
    assert kept == {patch.key for patch in patches[1 : PATCHES + 1]} and memory.nbytes == size(memory)
    for given in memory.patches(chunks[0].key):
        wanted = next(patch for patch in patches if patch.key == given.key)
        assert (np.asarray(given.factors.u) == np.asarray(wanted.factors.u)).all()
        assert given.antecedents == wanted.antecedents


def test_what_is_not_served_any_more_loses_its_worth(chunks, patches):
    """One that was served often long ago leaves in the end."""
    memory = ChunkMemory(None)
    for _ in range(3):
        memory.put(patches[0])
    for _ in range(40):
        for patch in patches[1:]:
            memory.put(patch)
    assert patches[0].key not in {patch.key for patch in memory.patches(chunks[0].key)}


def test_a_chunk_in_use_leaves_and_its_patches_stay(chunks, patches):
    memory = ChunkMemory(None)
    memory.put(chunks[0])
    memory.put(patches[0])
    memory.release(chunks[0].key)
    assert not memory.has(chunks[0].key) and memory.keys == () and memory.dropped == 0
    assert [patch.key for patch in memory.patches(chunks[0].key)] == [patches[0].key]
    assert memory.nbytes == size(memory) == sum(each.nbytes for each in memory.patch_records)


def test_turns_leave_first(chunks, turn):
    memory = ChunkMemory(None)
    memory.put(chunks[0])
    memory.put(turn)
    for chunk in chunks[1:4]:
        memory.put(chunk)
    limited = ChunkMemory(memory.nbytes, memory.records)
    limited.put(chunks[4])
    assert limited.keys == tuple(chunk.key for chunk in (*chunks[:4], chunks[4])) and limited.dropped == 1
    limited.put(chunks[5])
    assert limited.keys == tuple(chunk.key for chunk in chunks[1:6]) and limited.dropped == 2


def test_patches_give_way_while_they_have_more_than_their_share(chunks, patches):
    memory = ChunkMemory(None)
    memory.put(chunks[1])
    own = memory.nbytes
    for patch in patches[:PATCHES]:
        memory.put(patch)
    limit = memory.nbytes
    assert limit - own > SHARE * limit + own
    limited = ChunkMemory(limit, memory.records, memory.patch_records)
    limited.put(chunks[2])
    assert limited.keys == (chunks[1].key, chunks[2].key) and limited.dropped == 0
    assert 0 < len(limited.patches(chunks[0].key)) < PATCHES and limited.nbytes <= limit


def test_nothing_is_lost_or_counted_twice(chunks, patches, turn):
    """Any puts and releases: the bytes are those of what is there, and within the limit."""
    drawn = random.Random(3)
    whole = ChunkMemory(None, (Record.of(chunk) for chunk in (*chunks, turn)))
    for limit in (0, whole.nbytes // 3, whole.nbytes):
        memory = ChunkMemory(limit)
        for _ in range(300):
            item = drawn.choice([*chunks, *patches, turn])
            if isinstance(item, kj.Chunk) and drawn.random() < 0.3:
                memory.release(item.key)
            else:
                memory.put(item)
            assert memory.nbytes == size(memory) <= limit
            assert memory.contents.patch_bytes == sum(each.nbytes for each in memory.patch_records)


def test_records_with_a_patch_are_taken_apart(chunks, patches):
    """As sessions were saved that kept one patch with a chunk."""
    memory = ChunkMemory(None, [Record.of(chunks[0], patches[0])])
    assert memory.find(chunks[0].key).key == chunks[0].key
    assert [patch.key for patch in memory.patches(chunks[0].key)] == [patches[0].key]
    assert memory.nbytes == Record.of(chunks[0], patches[0]).nbytes
