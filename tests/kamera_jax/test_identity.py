"""No wrong chunk: a key says what was computed, and what has one key and one codec holds the same bits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kamera_jax as kj
from kamera_jax.errors import MissingKeyError, SnapshotVersionError
from kamera_jax.guard.planning import Action, Recall, plan
from kamera_jax.identity import lineage
from kamera_jax.library import files
from kamera_jax.patch.size import Size
from tests.kamera_jax.toy import Toy

CAPACITY = 128
TEXTS = ("the page is red", "a blue cell", "which star is it", "the cell is red")
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def texts(random_vlm):
    return [kj.encode(random_vlm, text) for text in TEXTS]


@pytest.fixture(scope="module")
def windows(random_vlm, build, texts):
    """The same two chunks, the second with its patch and without."""
    patch = kj.form_patch(random_vlm, texts[1], antecedents=texts[:1], rank=1000)
    return build((texts[0], None), (texts[1], patch)), build((texts[0], None), (texts[1], None))


@pytest.fixture(scope="module")
def rerun(random_vlm, windows, texts):
    """The third chunk, run again behind each of the windows; its patch was formed elsewhere."""
    elsewhere = kj.form_patch(random_vlm, texts[2], antecedents=[texts[3]], rank=2)
    policy = kj.ReusePolicy(fallback="reprefill")
    done = [kj.append_checked(random_vlm, window, texts[2], elsewhere, policy)[0] for window in windows]
    assert all(window.entries[-1].patch is None for window in done)
    return [window.entries[-1].chunk for window in done]


def far(a, b):
    """How far two pytrees of floats are apart, relative to the second's largest value."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.abs(np.float64(x) - np.float64(y)).max() / max(np.abs(np.float64(y)).max(), 1e-9)) for x, y in pairs
    )


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


def test_a_plan_knows_which_of_them_stands_behind_what_it_ran_behind(random_vlm, windows, rerun):
    for i, window in enumerate(windows):
        for j, chunk in enumerate(rerun):
            (*_, step) = plan(random_vlm, window, Recall(chunk), policy=kj.ReusePolicy()).steps
            if i == j:
                assert step.action is Action.ROTATE and step.estimate_kl == 0
            else:
                assert step.action is Action.PREFILL and "other patches or codecs than when it ran" in step.reason


def test_a_policy_knows_on_which_of_them_a_patch_was_formed(random_vlm, windows, texts):
    policy = kj.ReusePolicy()
    formed = [kj.form_patch(random_vlm, texts[2], context=window, rank=4) for window in windows]
    assert formed[0].antecedents == formed[1].antecedents and formed[0].key != formed[1].key
    for i, window in enumerate(windows):
        for j, patch in enumerate(formed):
            verdict = policy.judge(window, texts[2], patch)
            assert verdict.accept is (i == j) and (verdict.estimate_kl == 0) is (i == j)
            assert i == j or "its antecedents are the same but not their patches" in verdict.reason


def test_a_patch_formed_on_a_prefill_stands_behind_chunks_with_their_patches_only(random_vlm, windows, texts):
    """That the patches of the antecedents are themselves where they were formed is what makes up for the prefill."""
    patch = kj.form_patch(random_vlm, texts[2], antecedents=texts[:2], rank=4)
    assert [kj.ReusePolicy().judge(window, texts[2], patch).accept for window in windows] == [True, False]
    prefilled = kj.prefill(random_vlm, texts[:2], capacity=CAPACITY)
    assert kj.ReusePolicy().judge(prefilled, texts[2], patch).accept
    assert not kj.ReusePolicy().judge(kj.reorder(windows[0], [1, 0]), texts[2], patch).accept


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


def test_a_kept_turn_goes_into_a_library_and_comes_back(random_vlm, windows, tmp_path):
    answers = [kj.generate(random_vlm, window, "which page is it ?", max_new_tokens=3) for window in windows]
    turns = [answer.window.entries[-1].chunk for answer in answers]
    assert turns[0].key != turns[1].key
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many(turns)
        for window, answer, turn in zip(windows, answers, turns, strict=True):
            again = lib.get(turn.key)
            assert again.turn and again.lineage == window.lineage
            given = kj.query(random_vlm, kj.append(window, again), "and now ?")
            np.testing.assert_array_equal(given, kj.query(random_vlm, answer.window, "and now ?"))


def test_a_turn_that_is_run_again_stays_a_turn(random_vlm, windows):
    turn = kj.generate(random_vlm, windows[0], "which page is it ?", max_new_tokens=3).window.entries[-1].chunk
    again = kj.prefill(random_vlm, [turn], capacity=CAPACITY).entries[0].chunk
    assert again.turn and again.content == turn.content and again.key != turn.key
    moved = kj.planning.execute(random_vlm, plan(random_vlm, windows[1], Recall(turn), policy=kj.ReusePolicy()))
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


def test_a_backbone_that_does_not_say_what_its_segments_hold():
    """The key then is that of what the model reads."""

    class Silent(Toy):
        def segment(self, text, content):
            return replace(super().segment(text, content))

    silent = Silent()
    a, b, again = (kj.encode(silent, text) for text in ("a red star", "a blue star", "a red star"))
    assert a.key == again.key != b.key and a.key


def test_a_lineage_says_everything_and_in_order():
    entries = [("a", "exact", ""), ("b", "exact", "p")]
    others = (
        lineage(None, entries),
        lineage("other", entries),
        *(lineage("preamble", each) for each in (entries, entries[::-1], entries[:1], [])),
        lineage("preamble", [("a", "int8", ""), entries[1]]),
        lineage("preamble", [entries[0], ("b", "exact", "q")]),
        lineage("preamble", [entries[0], ("b", "exact", "")]),
    )
    assert len(set(others)) == len(others)
    assert lineage("", entries) == lineage("preamble", [("", "exact", "")]) == lineage("p", [("a", "exact", "?")]) == ""


def test_names_do_not_survive_what_may_change_bits(random_vlm, texts, windows):
    chunk = texts[0]
    (window, _) = windows
    patch = window.entries[1].patch
    for change in (lambda x: jax.tree.map(lambda leaf: leaf, x), jax.jit(lambda x: x), lambda x: jax.device_put(x)):
        assert (change(chunk).key, change(chunk).content, change(chunk).lineage) == ("", "", "")
        assert (change(patch).key, change(patch).chunk, change(patch).lineage) == ("", "", "")
        assert change(window).lineage == "" and change(window).keys == ("", "")
    assert (
        replace(chunk, kv=jax.tree.map(jnp.negative, chunk.kv)).key == replace(patch, factors=patch.factors).key == ""
    )
    assert chunk.without_source().key == chunk.key and chunk.without_source().content == chunk.content
    anonymous = jax.tree.map(lambda leaf: leaf, chunk)
    with pytest.raises(MissingKeyError, match="has no key, so it could not be found again"):
        kj.Session(random_vlm, CAPACITY).add(anonymous)
    behind = kj.append(kj.Window.empty(random_vlm, CAPACITY), anonymous)
    formed = kj.form_patch(random_vlm, texts[1], context=behind, rank=2)
    assert formed.key == "" and behind.lineage == ""
    # Run again it has a key once more, of what the model reads: its text is not known.
    again = [kj.prefill(random_vlm, [anonymous], capacity=CAPACITY).keys[0] for _ in range(2)]
    assert again[0] == again[1] not in ("", chunk.key)


def test_where_a_chunk_lies_is_not_part_of_its_name(texts, windows):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for handle in (texts[0], windows[0].entries[1].patch, windows[0]):
        moved = handle.to(where)
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(handle), strict=True):
            np.testing.assert_array_equal(a, b)
    assert texts[0].to(where).key == texts[0].key
    assert windows[0].to(where).lineage == windows[0].lineage != ""
    assert windows[0].to(where).entries[1].patch.chunk == texts[1].key


def test_a_window_that_was_changed_by_hand_has_no_lineage(random_vlm, texts):
    window = kj.append(kj.Window.empty(random_vlm, CAPACITY, mode="in_place"), texts[0])
    other = jax.tree.map(lambda leaf: leaf * 2 if leaf.dtype.kind == "f" else leaf, window.state)
    bad = replace(window, state=other)
    assert bad.lineage == "" != window.lineage
    given = kj.query(random_vlm, kj.append(kj.slide(bad), texts[0]), "which ?")  # what lies in its pool is not known
    wanted = kj.query(random_vlm, kj.append(kj.slide(replace(window, state=other)), texts[0]), "which ?")
    assert far(given, wanted) == 0
    assert kj.slide(bad).lineage == kj.append(bad, texts[1]).lineage == ""
    places = kj.append(kj.slide(bad), texts[0]).state.pools[0]
    assert any(far(places.rot[:, i], texts[0].kv.rot) <= ROUNDING for i in range(4) if places.lengths[i])


def test_what_was_fitted_to_another_codec_is_not_as_formed(random_vlm, texts, stored):
    patch = kj.form_patch(random_vlm, texts[2], antecedents=texts[:1], rank=1000)
    policy = kj.ReusePolicy()
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


def test_what_a_question_holds_beside_its_tokens_is_in_a_turns_key():
    class Seeing(Toy):
        picture = 0.0

        def tail(self, text):
            tail = super().tail(text)
            media = jnp.full((*tail.inputs["tokens"].shape, 2), self.picture, jnp.float32)
            return replace(tail, inputs=tail.inputs | {"media": media})

    turns = []
    for picture in (0.0, 1.0):
        toy = Seeing()
        toy.picture = picture
        answer = kj.generate(toy, kj.Window.empty(toy, CAPACITY), "which ?", max_new_tokens=2)
        turns.append(answer.window.entries[-1].chunk)
    assert turns[0].key != turns[1].key
    assert (np.asarray(turns[1].source.inputs["media"])[: len("which ?!")] == 1).all()
    assert turns[1].source.inputs["media"].shape[0] == turns[1].source.inputs["tokens"].shape[0]


def test_a_segment_that_was_changed_by_hand_is_keyed_by_what_is_read():
    toy = Toy()
    segment = toy.prepare("a red star")
    changed = replace(segment, inputs={"tokens": segment.inputs["tokens"][::-1]})
    assert changed.content == "" and segment.at(3.0).content == segment.content

    class Changed(Toy):
        def prepare(self, item):
            return changed

    assert kj.encode(toy, "a red star").key != kj.encode(Changed(), "a red star").key != ""


def test_chunks_without_keys_are_told_apart_by_nobody(random_vlm, texts):
    anonymous = [jax.tree.map(lambda leaf: leaf, chunk) for chunk in texts[:3]]
    window = kj.append(kj.append(kj.Window.empty(random_vlm, CAPACITY), anonymous[0]), anonymous[1])
    with pytest.raises(MissingKeyError, match="no key, so it is not known which of them is which"):
        kj.verify(random_vlm, window, ["which ?"], reference="history", history=anonymous)
    patch = kj.form_patch(random_vlm, texts[2], antecedents=texts[:1], rank=4, sketch=kj.SketchSpec((0,)))
    found = kj.staleness(window, texts[2], patch)
    assert (found.deleted, found.inserted) == ((), ()) and "a chunk has no key" in found.reason
    assert "without keys it is not known" in kj.ReusePolicy().judge(window, texts[2], patch).reason


def test_numbers_of_numpy_are_numbers(random_vlm, texts, monkeypatch):
    # As in production, where no annotation is checked.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def key(**size):
        return kj.form_patch(random_vlm, texts[1], antecedents=texts[:1], **size).key

    assert key(rank=np.int64(2)) == key(rank=2) and key(max_bytes=np.int32(4000)) == key(max_bytes=4000)
    assert key(energy=np.float32(0.5)) == key(energy=0.5)
    assert kj.SketchSpec((np.int64(0),), (np.float32(1),), np.int32(3)) == kj.SketchSpec((0,), (1.0,), 3)
    for rank in (True, "2"):
        with pytest.raises(ValueError, match="rank must be a whole number"):
            Size(rank=rank)


@pytest.mark.parametrize("pinned", [False, True])
def test_what_a_session_runs_again_can_still_be_recalled_and_stays_pinned(random_vlm, pinned):
    session = kj.Session(random_vlm, 256, policy=kj.ReusePolicy(fallback="reprefill"))
    keys = [session.add(text) for text in TEXTS[:3]]
    if pinned:
        session.pin(keys[2])
    session.recall(keys[1], at=0)
    assert set(session.keys) - set(keys)  # run again behind what now stands before them
    for key in keys:
        assert key in session.keys or key in session.held
    if pinned:
        assert session.keys[-1] in session._pinned
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


SIZES = ({"rank": 2}, {"rank": 1000}, {"max_bytes": 3000})
PUTS = st.tuples(st.sampled_from(("blind", "patched", "stale", "coarse")), st.sampled_from(SIZES))
EDITS = st.sampled_from(("none", "reorder", "slide", "replace", "prefill"))
RUNS = st.lists(st.tuples(st.sampled_from(("rerun", "turn", "patched")), st.integers(0, 3)), min_size=1, max_size=2)


@pytest.fixture(scope="module")
def stored(random_vlm, texts, tmp_path_factory):
    """The texts as a library gives them back from eight bits."""
    with kj.ChunkLibrary.open(tmp_path_factory.mktemp("identity") / "lib", mode="a") as lib:
        return lib.get_many(lib.put_many(texts, storage="int8"))


@pytest.fixture(scope="module")
def seen():
    """Of every key and codec that came about in any example, what it names."""
    return {}


@settings(max_examples=25)
@given(
    mode=st.sampled_from(("materialise", "in_place")),
    numbers=st.lists(st.integers(0, 3), min_size=2, max_size=3),
    puts=st.tuples(*[st.lists(PUTS, min_size=3, max_size=3)] * 2),
    edit=EDITS,
    runs=RUNS,
)
def test_one_key_and_codec_is_one_value(random_vlm, texts, stored, seen, mode, numbers, puts, edit, runs):
    """The same chunks with other patches, twice, and the same again behind them: no key names two values.

    Nor does any key that came about in another example.
    """
    for choices in puts:
        steps = [(name, number, size) for (name, size), number in zip(choices, numbers, strict=False)]
        steps += [(edit, numbers[0], SIZES[0]), *((name, number, SIZES[1]) for name, number in runs)]
        window = kj.Window.empty(random_vlm, CAPACITY, mode=mode)
        patches = [None] * len(texts)
        for name, number, size in steps:
            window = changed(random_vlm, window, name, number, size, texts, stored, patches)
            for entry in window.entries:
                check(seen, entry.chunk.key, entry.chunk.codec, entry.chunk.kv)
            for patch in (entry.patch for entry in window.entries if entry.patch is not None):
                u, v = patch.factors.floats(jnp.float32)
                check(seen, patch.key, patch.codec, jnp.einsum("lmt,lmf->ltf", u, v, precision="highest"))


def check(seen, key, codec, value):
    assert len(key) == 64
    first = seen.setdefault((key, codec), value)
    # The rounding of the device: sums over windows in place go in another order, and a fit is as exact as its KV.
    assert far(value, first) <= 1e-4


def changed(vlm, window, name, number, size, texts, stored, patches):
    chunk = texts[number]
    match name:
        case "coarse":
            chunk = stored[number]
        case "patched":
            patches[number] = kj.form_patch(vlm, chunk, context=window, **size)
            return kj.append(window, chunk, patches[number])
        case "stale":
            return kj.append(window, chunk, patches[number])
        case "rerun":
            patch = kj.form_patch(vlm, chunk, antecedents=[texts[number - 1]], **size)
            policy = kj.ReusePolicy(fallback="reprefill")
            return kj.append_checked(vlm, window, chunk, patch, policy)[0]
        case "turn":
            return kj.generate(vlm, window, "which page ?", max_new_tokens=2).window
        case "reorder":
            return kj.reorder(window, list(range(len(window.entries)))[::-1])
        case "slide":
            return kj.slide(window, min(1, len(window.entries)))
        case "replace":
            return kj.replace(window, len(window.entries) - 1, chunk, patches[number])
        case "prefill":
            sources = [entry.chunk for entry in window.entries[:2]]
            return kj.prefill(vlm, [*sources, TEXTS[number]], capacity=CAPACITY)
        case "none":
            return window
    return kj.append(window, chunk)


def test_the_oracle_sees_a_wrong_value():
    seen = {}
    check(seen, "0" * 64, "exact", jnp.ones(3))
    with pytest.raises(AssertionError):
        check(seen, "0" * 64, "exact", jnp.ones(3) * 1.01)
