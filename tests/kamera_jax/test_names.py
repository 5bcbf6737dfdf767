"""Names say what is so, or nothing: they go with what may have changed, and are made of all that was read."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import MissingKeyError
from kamera_jax.identity import lineage
from kamera_jax.patch.size import Size
from tests.kamera_jax.distance import ROUNDING, far
from tests.kamera_jax.toy import Toy

CAPACITY = 128


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


def test_names_do_not_survive_what_may_change_bits(random_vlm, texts, two_windows):
    chunk = texts[0]
    (window, _) = two_windows
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


def test_where_a_chunk_lies_is_not_part_of_its_name(texts, two_windows):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for handle in (texts[0], two_windows[0].entries[1].patch, two_windows[0]):
        moved = handle.to(where)
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(handle), strict=True):
            np.testing.assert_array_equal(a, b)
    assert texts[0].to(where).key == texts[0].key
    assert two_windows[0].to(where).lineage == two_windows[0].lineage != ""
    assert two_windows[0].to(where).entries[1].patch.chunk == texts[1].key


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
    rows = texts[0].kv.rot.shape[1]
    assert any(far(places.rot[:, i, :rows], texts[0].kv.rot) <= ROUNDING for i in range(4) if places.lengths[i])


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
        with pytest.raises(ValueError, match="rank is .*; expected a whole number"):
            Size(rank=rank)
