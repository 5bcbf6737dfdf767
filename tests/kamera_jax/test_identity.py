"""No wrong chunk: a key says what was computed, and what has one key and one codec holds the same bits."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import SnapshotVersionError
from kamera_jax.guard.planning import Action, Recall, plan
from kamera_jax.library import files
from tests.kamera_jax.distance import ROUNDING, far
from tests.kamera_jax.texts import TEXTS
from tests.kamera_jax.toy import Toy

CAPACITY = 128


@pytest.fixture(scope="module")
def rerun(random_vlm, two_windows, texts):
    """The third chunk, run again behind each of the windows; its patch was formed elsewhere."""
    elsewhere = kj.form_patch(random_vlm, texts[2], antecedents=[texts[3]], rank=2)
    policy = kj.ReusePolicy(fallback="reprefill")
    done = [kj.append_checked(random_vlm, window, texts[2], elsewhere, policy)[0] for window in two_windows]
    assert all(window.entries[-1].patch is None for window in done)
    return [window.entries[-1].chunk for window in done]


def test_what_ran_behind_other_patches_has_another_key(rerun):
    patched, blind = rerun
    assert far(patched.kv, blind.kv) > 1e-3
    assert patched.antecedents == blind.antecedents and patched.content == blind.content
    assert patched.key != blind.key and patched.lineage != blind.lineage


def test_a_library_gives_each_of_them_back(rerun, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many(rerun)
        for chunk in rerun:
            again = lib.get(chunk.key)
            assert again.lineage == chunk.lineage and again.content == chunk.content and again.conditioned
            np.testing.assert_array_equal(again.kv.rot, chunk.kv.rot)
            np.testing.assert_array_equal(again.kv.free, chunk.kv.free)


EXACT_ALONE = kj.ReusePolicy(max_kl=1e-6)
"""A budget within which nothing is but what costs nothing."""


def test_a_plan_knows_which_of_them_stands_behind_what_it_ran_behind(random_vlm, two_windows, rerun):
    for i, window in enumerate(two_windows):
        for j, chunk in enumerate(rerun):
            (*_, step) = plan(random_vlm, window, Recall(chunk), policy=EXACT_ALONE).steps
            if i == j:
                assert step.action is Action.ROTATE and step.estimate_kl == 0
            else:
                assert step.action is Action.PREFILL and "other patches or codecs than when it ran" in step.reason


def test_a_policy_knows_on_which_of_them_a_patch_was_formed(random_vlm, two_windows, texts):
    policy = EXACT_ALONE
    formed = [kj.form_patch(random_vlm, texts[2], context=window, rank=4) for window in two_windows]
    assert formed[0].antecedents == formed[1].antecedents and formed[0].key != formed[1].key
    for i, window in enumerate(two_windows):
        for j, patch in enumerate(formed):
            verdict = policy.judge(window, texts[2], patch)
            assert verdict.accept is (i == j) and (verdict.estimate_kl == 0) is (i == j)
            assert i == j or "its antecedents are the same but not their patches" in verdict.reason


def test_a_patch_formed_on_a_prefill_stands_behind_chunks_with_their_patches_only(random_vlm, two_windows, texts):
    """That the patches of the antecedents are themselves where they were formed is what makes up for the prefill."""
    patch = kj.form_patch(random_vlm, texts[2], antecedents=texts[:2], rank=4)
    assert [EXACT_ALONE.judge(window, texts[2], patch).accept for window in two_windows] == [True, False]
    prefilled = kj.prefill(random_vlm, texts[:2], capacity=CAPACITY)
    assert EXACT_ALONE.judge(prefilled, texts[2], patch).accept
    assert not EXACT_ALONE.judge(kj.reorder(two_windows[0], [1, 0]), texts[2], patch).accept


def test_a_chunk_encoded_behind_nothing_is_not_one_encoded_behind_the_preamble(random_vlm):
    alone = kj.encode(random_vlm, TEXTS[0], preamble=None)
    behind = kj.encode(random_vlm, TEXTS[0])
    assert far(alone.kv, behind.kv) > 1e-3
    assert alone.key != behind.key and alone.content == behind.content
    window = kj.Window.empty(random_vlm, CAPACITY)
    for chunk, action in ((alone, Action.FORM), (behind, Action.ROTATE)):
        assert plan(random_vlm, window, Recall(chunk), policy=kj.ReusePolicy()).steps[0].action is action


def test_prefilling_an_item_and_its_chunk_gives_one_key(random_vlm, texts, items):
    chunks = [*texts[:2], kj.encode(random_vlm, items[0])]
    from_items = kj.prefill(random_vlm, [*TEXTS[:2], items[0]], capacity=CAPACITY)
    from_chunks = kj.prefill(random_vlm, chunks, capacity=CAPACITY)
    assert from_items.keys == from_chunks.keys and from_items.lineage == from_chunks.lineage
    assert from_items.keys[0] == chunks[0].key  # nothing but the preamble before it: canonical
    assert from_items.keys[1] != chunks[1].key
    again = kj.prefill(random_vlm, [entry.chunk for entry in from_chunks.entries], capacity=CAPACITY)
    assert again.keys == from_items.keys


def test_what_a_codec_changed_is_another_context(random_vlm, texts, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(texts[0], storage="int8")
        coarse = lib.get(texts[0].key)
    assert (coarse.key, coarse.codec) == (texts[0].key, "int8") and texts[0].codec == "exact"
    keys = set()
    for chunk in (texts[0], coarse):
        window = kj.append(kj.Window.empty(random_vlm, CAPACITY), chunk)
        patch = kj.form_patch(random_vlm, texts[1], context=window, rank=2)
        fitted = kj.form_patch(random_vlm, chunk, antecedents=texts[1:2], rank=2)
        keys |= {window.lineage, patch.key, fitted.key}
    assert len(keys) == 6


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_pool_does_not_take_one_codec_for_another(random_vlm, texts, tmp_path, mode):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(texts[0], storage="int8")
        coarse = lib.get(texts[0].key)
    window = kj.append(kj.Window.empty(random_vlm, CAPACITY, mode=mode), texts[0])
    given = kj.query(random_vlm, kj.replace(window, 0, coarse), "which ?")
    wanted = kj.query(random_vlm, kj.append(kj.Window.empty(random_vlm, CAPACITY), coarse), "which ?")
    assert far(given, wanted) <= ROUNDING < far(kj.query(random_vlm, window, "which ?"), wanted)


def test_a_kept_turn_goes_into_a_library_and_comes_back(random_vlm, two_windows, tmp_path):
    answers = [kj.generate(random_vlm, window, "which page is it ?", max_new_tokens=3) for window in two_windows]
    turns = [answer.window.entries[-1].chunk for answer in answers]
    assert turns[0].key != turns[1].key
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many(turns)
        for window, answer, turn in zip(two_windows, answers, turns, strict=True):
            again = lib.get(turn.key)
            assert again.turn and again.lineage == window.lineage
            given = kj.query(random_vlm, kj.append(window, again), "and now ?")
            np.testing.assert_array_equal(given, kj.query(random_vlm, answer.window, "and now ?"))


def test_a_turn_that_is_run_again_stays_a_turn(random_vlm, two_windows):
    turn = kj.generate(random_vlm, two_windows[0], "which page is it ?", max_new_tokens=3).window.entries[-1].chunk
    again = kj.prefill(random_vlm, [turn], capacity=CAPACITY).entries[0].chunk
    assert again.turn and again.content == turn.content and again.key != turn.key
    moved = kj.planning.execute(random_vlm, plan(random_vlm, two_windows[1], Recall(turn), policy=EXACT_ALONE))
    assert moved.window.entries[-1].chunk.turn and moved.window.entries[-1].chunk.key != turn.key


def test_a_size_a_dtype_and_a_sketch_are_part_of_a_patchs_key(random_vlm, random_vlm_bf16, texts):
    options = (
        *({"rank": rank} for rank in (1, 2)),
        *({"rank": 2, "int8": True}, {"energy": 0.5}, {"max_bytes": 4000}, {}, {"max_bytes": 4000, "int8": False}),
        {"rank": 2, "sketch": kj.SketchSpec((0,))},
        {"rank": 2, "sketch": kj.SketchSpec((0,), tokens=3)},
    )
    keys = [kj.form_patch(random_vlm, texts[1], antecedents=texts[:1], **each).key for each in options]
    low = [kj.encode(random_vlm_bf16, text) for text in TEXTS[:2]]
    keys.append(kj.form_patch(random_vlm_bf16, low[1], antecedents=low[:1], rank=2).key)
    assert len(set(keys)) == len(keys) and all(len(key) == 64 for key in keys)
    assert kj.form_patch(random_vlm, texts[1], antecedents=texts[:1], rank=1).key == keys[0]


def test_what_was_fitted_to_another_codec_is_not_as_formed(random_vlm, texts, stored):
    patch = kj.form_patch(random_vlm, texts[2], antecedents=texts[:1], rank=1000)
    policy = EXACT_ALONE
    behind = {
        codec: kj.append(kj.Window.empty(random_vlm, CAPACITY), each[0])
        for codec, each in (("exact", texts), ("int8", stored))
    }
    assert policy.judge(behind["exact"], texts[2], patch).accept
    assert not policy.judge(behind["int8"], texts[2], patch).accept
    refused = policy.judge(behind["exact"], stored[2], patch)
    assert not refused.accept and "fitted to KV of codec 'exact', and this is 'int8'" in refused.reason
    own = kj.form_patch(random_vlm, stored[2], context=behind["int8"], rank=4)
    assert policy.judge(behind["int8"], stored[2], own).accept


@pytest.mark.parametrize("pinned", [False, True])
def test_what_a_session_runs_again_can_still_be_recalled_and_stays_pinned(random_vlm, pinned):
    session = kj.Session(random_vlm, 256, policy=kj.ReusePolicy(fallback="reprefill"))
    keys = [session.add(text) for text in TEXTS[:3]]
    if pinned:
        session.pin(keys[2])
    session.recall(keys[1], at=0)
    assert set(session.keys) - set(keys)  # run again behind what now stands before them
    for key in keys:
        assert key in session.keys or key in session.evicted
    if pinned:
        assert session.keys[-1] in session._kept.pinned
    session.recall(keys[2])
    assert session.window.lineage


def test_a_session_of_an_older_schema_is_refused_by_name(tmp_path):
    toy = Toy()
    session = kj.Session(toy, CAPACITY)
    session.add("a red star")
    session.save(tmp_path / "saved")
    described = files.read_sealed(tmp_path / "saved" / "description.json")
    files.write_sealed(tmp_path / "saved" / "description.json", {**described, "schema": 2})
    with pytest.raises(SnapshotVersionError, match="of schema 2; this version reads schema 3: begin a new session"):
        kj.Session.restore(toy, tmp_path / "saved")
