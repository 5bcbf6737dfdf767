"""What a session serves a chunk with, what it says of it, and what it runs."""

import math

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.backbone import forward_flops
from kamera_jax.errors import MissingInputsError, StalePatchError
from kamera_jax.guard.planning import Action, choose
from kamera_jax.session.memory import ChunkMemory
from tests.kamera_jax.session.items import CAPACITY, ITEMS
from tests.kamera_jax.session.policies import Trusting
from tests.kamera_jax.toy import forwards


def test_what_stands_in_the_window_is_not_put_there_again(toy, mode):
    """It stays where it is, and is not the next to leave."""
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY, mode=mode)
    keys = [session.add(item) for item in ITEMS[:4]]
    window = session.window
    before = seen()
    assert session.add(ITEMS[0]) == session.add(None, keys[0]) == keys[0]
    session.recall(keys[0])
    assert session.replace(keys[1], ITEMS[1]) == keys[1]
    assert session.keys == tuple(keys) and seen() == before and session.stats.reused == 3
    assert [(each.action, each.reused) for each in session.log[-4:]] == [(Action.KEEP, True)] * 4
    assert session.window is window or session.window.entries == window.entries
    assert (kj.query(vlm, session.window, "what?") == kj.query(vlm, window, "what?")).all()
    session.add(ITEMS[4])
    assert session.keys[:3] == (keys[0], keys[1], keys[3])  # the third was not used for longest
    assert session.replace(keys[3], ITEMS[1]) == keys[1]  # which then leaves
    assert session.keys[:2] == (keys[0], keys[1]) and session.evicted == (keys[2], keys[3])


def test_of_several_patches_the_one_that_fits_is_taken_and_nothing_is_run(toy, mode):
    """A chunk stood behind two neighbours, once behind each; it comes back behind the second, and then the first."""
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY, mode=mode)
    first, second, chunk = (kj.encode(toy, item) for item in ITEMS[:3])
    patches = []
    for neighbour in (first, second):
        session = kj.Session(vlm, CAPACITY, mode=mode, store=session._kept.store)
        session.add(neighbour)
        session.add(chunk)
        patches.append(session.window.entries[1].patch)
        for item in ITEMS[3:]:
            session.add(item)
        assert {neighbour.key, chunk.key} <= set(session.evicted)
    for neighbour, patch in ((second, patches[1]), (first, patches[0])):
        store = session._kept.store
        again = kj.Session(vlm, CAPACITY, mode=mode, store=ChunkMemory(None, store.records, store.patch_records))
        again.recall(neighbour.key)
        before = seen()
        assert again.add(None, chunk.key) == chunk.key
        (served,) = again.last
        assert seen() == before and again.window.entries[1].patch.key == patch.key
        assert (served.operation, served.key, served.action) == ("add", chunk.key, Action.STORED)
        assert served.reused and served.flops == 0 and not served.encoded and served.estimate_kl == 0
        assert again.stats.reused == 2 and again.stats.patched == again.stats.encoded == 0
        wanted = kj.append(kj.append(kj.Window.empty(vlm, CAPACITY, mode=mode), neighbour), chunk, patch)
        assert (kj.query(vlm, again.window, "what?") == kj.query(vlm, wanted, "what?")).all()


def test_behind_strangers_alone_a_patch_is_formed_and_both_are_kept(toy, mode):
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY, mode=mode)
    keys = [session.add(item) for item in ITEMS[:2]]
    old = session.window.entries[1].patch
    for item in ITEMS[2:6]:
        session.add(item)
    before = seen()
    window = session.window
    session.recall(keys[1])
    (served,) = session.last
    chunk = session.window.entries[-1].chunk
    assert seen() == before + 1 and served.action is Action.FORM and not served.reused
    assert served.flops == forward_flops(vlm, chunk.length, kj.slide(window).tokens)
    assert keys[0][:12] in served.reason or "patch" in served.reason
    fresh = session.window.entries[-1].patch
    assert fresh.key == kj.form_patch(toy, chunk, context=kj.slide(window)).key != old.key
    for item in ITEMS[2:6]:
        session.add(item)
    assert {patch.key for patch in session._kept.store.patches(keys[1])} == {old.key, fresh.key}


def test_what_comes_to_the_front_stands_bare(toy, mode):
    """And what stood there before it, bare, takes a patch."""
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY, mode=mode, policy=Trusting())
    keys = [session.add(item) for item in ITEMS[:5]]
    before = seen()
    session.recall(keys[0], at=0)
    assert session.keys[0] == keys[0] and seen() == before and session.window.entries[0].patch is None
    session.recall(keys[3], at=0)
    assert session.keys[:2] == (keys[3], keys[0]) and seen() == before + 1
    assert session.window.entries[0].patch is None and session.window.entries[1].patch.antecedents == (keys[3],)
    assert [each.action for each in session.last] == [Action.BARE, Action.FORM, Action.ROTATE, Action.ROTATE]
    assert [each.came for each in session.last] == [True, False, False, False]
    assert [each.key for each in session.last] == list(session.keys)


def test_a_new_item_is_encoded_and_patched_and_says_so(toy):
    session = kj.Session(toy, CAPACITY, rank=3)
    session.add(ITEMS[0])
    assert session.last[0].action is Action.ROTATE and session.last[0].encoded
    preamble = session.window.preamble.chunk.length
    assert session.last[0].flops == forward_flops(toy, len(ITEMS[0]), preamble)
    tokens = session.window.tokens
    session.add(ITEMS[1])
    (served,) = session.last
    assert served.action is Action.FORM and served.encoded and not served.reused
    both = forward_flops(toy, len(ITEMS[1]), preamble) + forward_flops(toy, len(ITEMS[1]), tokens)
    assert served.flops == both and session.log == (session.log[0], served)
    assert str(served).startswith(f"add {served.key[:12]}: encoded, fresh patch: ")
    session.add(ITEMS[2], patch=False)
    assert session.last[0].action is Action.BARE and session.last[0].estimate_kl > 0
    assert session.stats.patched == 1 and session.stats.reused == 0


@pytest.mark.parametrize("operation", ["add", "recall"])
def test_what_cannot_be_served_changes_nothing(toy, mode, operation):
    """The policy asks for an error, or the chunk was kept without what runs it again."""
    for policy, error in ((kj.ReusePolicy(fallback="error"), StalePatchError), (None, MissingInputsError)):
        store = ChunkMemory(None)
        first = kj.Session(toy, CAPACITY, mode=mode, store=store)
        keys = [first.add(item) for item in ITEMS]
        if error is MissingInputsError:
            store.put(store.find(keys[1]).without_source())
        session = kj.Session(toy, CAPACITY, mode=mode, store=store, policy=policy)
        session.add(ITEMS[5])
        window = session.window
        state = (session.keys, session.evicted, session.stats, session.log)
        arguments = (None, keys[1]) if operation == "add" else (keys[1],)
        with pytest.raises(error, match="needs a forward here"):
            getattr(session, operation)(*arguments)
        assert (session.keys, session.evicted, session.stats, session.log) == state and session.window is window
        assert np.isfinite(kj.query(toy, session.window, "what?")).all()
        session.add(None, keys[1], patch=False)
        assert session.keys[-1] == keys[1]


def test_a_chunk_that_was_asked_to_stand_bare_stays_bare_when_others_move(toy):
    vlm, seen = forwards(toy)
    session = kj.Session(vlm, CAPACITY)
    keys = [session.add(item, patch=False) for item in ITEMS[:5]]
    before = seen()
    session.recall(keys[0], at=0, patch=False)
    assert seen() == before and [entry.patch for entry in session.window.entries] == [None] * 4


def test_the_cheapest_within_the_budget_is_chosen(toy):
    """Against the verdicts of the policy, one by one, for random windows and patches."""
    chunks = [kj.encode(toy, item) for item in ITEMS]
    drawn = np.random.default_rng(5)
    for budget in (1e-6, 0.02, 0.1, math.inf):
        policy = kj.ReusePolicy(max_kl=budget)
        for _ in range(10):
            order = [int(place) for place in drawn.permutation(6)]
            window = kj.Window.empty(toy, 160)
            for place in order[: int(drawn.integers(0, 5))]:
                window = kj.append(window, chunks[place])
            stored = []
            for _ in range(int(drawn.integers(0, 4))):
                behind = [chunks[int(place)] for place in drawn.permutation(6)[: int(drawn.integers(1, 4))]]
                stored.append(kj.form_patch(toy, chunks[6], antecedents=behind, rank=2))
            step = choose(toy, window, chunks[6], stored, policy=policy)
            verdicts = [(policy.judge(window, chunks[6], patch), patch) for patch in (None, *stored)]
            accepted = [(verdict.estimate_kl, patch) for verdict, patch in verdicts if verdict.accept]
            if not accepted:
                assert step.action is Action.FORM and step.flops > 0
                continue
            least = min(estimate for estimate, _ in accepted)
            assert step.flops == 0 and step.estimate_kl == least
            assert any(step.patch is patch for estimate, patch in accepted if estimate == least)
