"""A sketch is what the forward read, reread anywhere as float64 says, and sees what a change of context takes away."""

from dataclasses import replace

import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny import pages
from eval.tiny.episodes import Recipe, draw_page
from eval.tiny.story import sample_story
from kamera_jax.errors import MissingSketchError, ModelMismatchError, PatchMismatchError
from kamera_jax.forward import run
from kamera_jax.patch.sketch import changes, reread_jit
from kamera_jax.window.reuse import write_jit
from models import load
from tests import oracles
from tests.kamera_jax.kept import keep

CAPACITY = 128
MODELS = ("gqa", "mla")


@pytest.fixture(scope="module", params=MODELS)
def vlm(request):
    return load(f"kamera-tiny-{request.param}")


@pytest.fixture(scope="module")
def gqa():
    return load("kamera-tiny-gqa")


def texts(seed):
    """Three passages of unlike lengths and one bucket."""
    rng = np.random.default_rng(seed)
    colours = ("red", "blue", "green", "yellow")
    return [" ".join(f"a {rng.choice(colours)} star." for _ in range(count)) for count in (3, 4, 2)]


def window_of(vlm, chunks, mode="materialise", capacity=CAPACITY):
    window = kj.Window.empty(vlm, capacity, mode=mode)
    for chunk in chunks:
        window = kj.append(window, chunk)
    return window


def attention(spec, queries, keys, values, seen):
    """f64 attention of rotated queries [K, N, D] in one layer to flat keys and values [S, ·]; (outputs, weights)."""
    keys = np.asarray(keys, np.float64)
    values = np.asarray(values, np.float64)
    keys, values = (x.reshape(len(x), spec.heads, -1) for x in (keys, values))
    if queries.shape[-1] > spec.rope.head_dim:
        keys = np.concatenate([values, keys], -1)
    shared = queries.shape[1] // spec.heads
    outputs = []
    weights = []
    for head in range(queries.shape[1]):
        scores = np.where(seen, queries[:, head] @ keys[:, head // shared].T, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        outputs.append(p @ values[:, head // shared])
        weights.append(p)
    return np.stack(outputs, 1), np.stack(weights, 1)


def rotated_queries(spec, queries, positions):
    """Their last head_dim dims rotated, f64."""
    still, turned = np.split(np.asarray(queries, np.float64), [queries.shape[-1] - spec.rope.head_dim], axis=-1)
    return np.concatenate([still, oracles.rotate_by(spec.rope, turned, positions)], -1)


def beside(window, rot, free, positions, spec, layer):
    """Keys and values of one layer: the window's slots, then a chunk's own tokens at its positions, f64."""
    own, _ = oracles.relocate(spec.rope, rot[None], free[None], positions, len(rot))
    keys = np.concatenate([np.asarray(window.state.rot[layer], np.float64), own[0]])
    return keys, np.concatenate([np.asarray(window.state.free[layer], np.float64), np.asarray(free, np.float64)])


def sees(window, tokens, own):
    """Which of the window's slots and of its own tokens each token sees."""
    context = np.broadcast_to(np.asarray(window.state.valid), (len(tokens), window.capacity))
    return np.concatenate([context, np.arange(own)[None] <= np.asarray(tokens)[:, None]], -1)


def test_collected_queries_give_back_what_attention_gave(vlm):
    first, second, _ = (kj.encode(vlm, text) for text in texts(0))
    window = window_of(vlm, [first])
    spec = vlm.spec
    segment = second.source.at(window.next_position)
    output = run(vlm.params, segment, window.state, forward=vlm.forward, collect=("queries",))
    tokens = np.arange(second.length)
    positions = np.asarray(segment.positions)
    for layer in range(spec.layers):
        rot = output.kv.rot[layer]
        free = output.kv.free[layer]
        keys, values = beside(window, rot, free, positions, spec, layer)
        queries = rotated_queries(spec, output.aux["queries"][layer, : second.length], positions[:, : second.length])
        expected, _ = attention(spec, queries, keys, values, sees(window, tokens, rot.shape[0]))
        given = np.asarray(output.aux["attended"][layer, : second.length])
        assert oracles.relative(given[None], expected[None]) <= 1e-5


def test_staleness_is_what_float64_says(vlm):
    first, second, third = (kj.encode(vlm, text) for text in texts(1))
    spec = vlm.spec
    layers = (2, 4)
    weights = (1.0, 0.7)
    patch = kj.form_patch(vlm, second, antecedents=[first], rank=4, sketch=kj.SketchSpec(layers, weights, tokens=5))
    sketch = patch.sketch
    assert sketch.queries.shape[:3] == (2, 5, 4) and len({*np.asarray(sketch.tokens[0]).tolist()}) == 5
    assert patch.nbytes == kj.patch.nbytes(patch.factors, patch.length) + sketch.nbytes

    context = window_of(vlm, [third, first, third])
    kv = kj.patch.apply(second.kv, patch.factors)
    positions = np.asarray(second.positions) + context.next_position
    moved = []
    received = []
    for i, layer in enumerate(layers):
        keys, values = beside(context, kv.rot[layer], kv.free[layer], positions, spec, layer)
        queries = rotated_queries(spec, sketch.queries[i], positions[:, np.asarray(sketch.tokens[i])])
        seen = sees(context, sketch.tokens[i], second.kv.rot.shape[1])
        outputs, seen_by = attention(spec, queries, keys, values, seen)
        then = np.asarray(sketch.outputs[i], np.float64)
        apart = np.sqrt(((outputs - then) ** 2).sum((1, 2)))
        moved.append(weights[i] * apart.max() / np.sqrt((then**2).sum((1, 2)).mean()))
        received.append(seen_by)
    expected = max(moved)

    found = kj.staleness(context, second, patch)
    in_place = kj.staleness(window_of(vlm, [third, first, third], "in_place"), second, patch)
    assert found.change == pytest.approx(expected, rel=1e-4)
    assert in_place.change == pytest.approx(expected, rel=1e-4)
    place = context.entries[1]
    share = received[0][..., place.slot : place.slot + place.chunk.length].sum(-1).mean()
    assert found.mass_now[first.key] == pytest.approx(share, rel=1e-4)
    assert (found.deleted, found.inserted, found.match) == ((), (third.key,), kj.Match.PARTIAL)
    assert third.key[:12] in found.reason and first.key[:12] not in found.reason


def test_what_was_formed_on_is_unchanged_and_counts_before_the_place_alone(gqa):
    first, second, third = (kj.encode(gqa, text) for text in texts(2))
    patch = kj.form_patch(gqa, second, antecedents=[first, third], rank=1000, sketch=kj.SketchSpec((0,)))
    assert kj.staleness(window_of(gqa, [first, third]), second, patch).change <= 1e-4
    later = window_of(gqa, [first, third, third])
    assert kj.staleness(later, second, patch, at=2).change <= 1e-4
    at_the_end = kj.staleness(later, second, patch)
    assert at_the_end.change > 1e-2
    other_order = kj.staleness(window_of(gqa, [third, first]), second, patch)
    assert other_order.match is kj.Match.PERMUTED and "order" in other_order.reason


SPEC = kj.SketchSpec((1, 3), (1.0, 2.0), tokens=6)


@pytest.fixture(scope="module")
def low_rank(vlm):
    """Two chunks, and the third's patches of one component a layer: formed on a prefill of them, and on a window."""
    first, third, second = (kj.encode(vlm, text) for text in texts(7))
    window = window_of(vlm, [first, third])
    behind = kj.form_patch(vlm, second, context=window, rank=1, sketch=SPEC)
    prefilled = kj.form_patch(vlm, second, antecedents=[first, third], rank=1, sketch=SPEC)
    return (first, third), second, behind, prefilled


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_nothing_is_stale_where_nothing_changed_whatever_the_patch_leaves_out(vlm, low_rank, mode):
    chunks, second, behind, prefilled = low_rank
    window = window_of(vlm, chunks, mode, capacity=256)
    assert kj.staleness(window, second, behind).change == 0.0
    formed_here = kj.form_patch(vlm, second, context=window, rank=1, sketch=SPEC)
    assert kj.staleness(window, second, formed_here).change == 0.0
    full = kj.prefill(vlm, chunks, capacity=CAPACITY)
    assert kj.staleness(full, second, prefilled).change == 0.0
    as_formed = kj.staleness(window, second, behind)
    assert as_formed.mass_now == as_formed.mass_then and as_formed.match is kj.Match.EXACT
    assert kj.staleness(window, second, prefilled).change > 1e-3  # the chunks there have not read one another


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_what_is_reread_is_what_was_kept_where_it_is_not_known_that_nothing_changed(vlm, low_rank, mode):
    chunks, second, behind, prefilled = low_rank
    nameless = replace(behind, chunk=behind.chunk)  # without its lineage it is looked at
    assert not nameless.lineage
    window = window_of(vlm, chunks, mode, capacity=256)
    assert kj.staleness(window, second, nameless).change <= 1e-5
    later = kj.append(window, chunks[0])
    assert kj.staleness(later, second, nameless, at=2).change <= 1e-5
    full = kj.prefill(vlm, chunks, capacity=CAPACITY)
    assert kj.staleness(full, second, replace(prefilled, chunk=prefilled.chunk)).change <= 1e-5
    assert kj.staleness(window_of(vlm, chunks[1:], mode), second, nameless).change > 1e-2


@pytest.mark.parametrize("by", [1.0, 500.0])
def test_only_rounding_is_left_where_only_positions_moved(vlm, low_rank, by):
    chunks, second, behind, _ = low_rank
    window = window_of(vlm, chunks)
    state = vlm.spec.empty_state(CAPACITY)
    for entry in (window.preamble, *window.entries):
        at = entry.chunk.positions + np.float32(entry.base + by)
        state = write_jit(state, entry.slot, entry.chunk.kv, None, at, entry.chunk.length, spec=vlm.spec.rope)
    here = np.asarray(SPEC.layers)
    own = (second.kv, behind.factors, second.positions)
    base = np.float32(window.next_position + by)
    now, _ = reread_jit(behind.sketch, *own, state.rot[here], state.free[here], state.valid, base, spec=vlm.spec)
    assert np.asarray(changes(behind.sketch.outputs, now)).max() <= 1e-4


def test_in_bfloat16_what_did_not_change_is_not_stale(random_vlm_bf16):
    first, second = (kj.encode(random_vlm_bf16, text) for text in ("the page is red", "a blue star."))
    window = window_of(random_vlm_bf16, [first])
    patch = kj.form_patch(random_vlm_bf16, second, context=window, rank=1, sketch=SPEC)
    assert patch.sketch.queries.dtype == patch.sketch.outputs.dtype == window.state.rot.dtype
    assert kj.staleness(window, second, patch).change == 0.0
    assert kj.staleness(window, second, replace(patch, chunk=patch.chunk)).change <= 2**-8
    assert kj.staleness(window_of(random_vlm_bf16, []), second, patch).change > 2**-5


def test_a_chunk_of_some_rows_is_reread_as_it_is_kept(gqa):
    first, second, _ = (kj.encode(gqa, text) for text in texts(8))
    kept = keep(second, np.arange(0, second.length, 2))
    window = window_of(gqa, [first])
    patch = kj.form_patch(gqa, kept, context=window, rank=1, sketch=SPEC)
    assert kj.staleness(window, kept, replace(patch, chunk=patch.chunk)).change <= 1e-5


def test_a_sketch_covers_the_queries_of_a_chunk(gqa):
    first, second, _ = (kj.encode(gqa, text) for text in texts(3))
    window = window_of(gqa, [first])
    segment = second.source.at(window.next_position)
    queries = run(gqa.params, segment, window.state, forward=gqa.forward, collect=("queries",)).aux["queries"][1]
    rows = np.asarray(queries, np.float64)[: second.length].reshape(second.length, -1)
    radii = []
    for tokens in (2, 8):
        spec = kj.SketchSpec((1,), tokens=tokens)
        kept = np.asarray(kj.form_patch(gqa, second, antecedents=[first], rank=1, sketch=spec).sketch.tokens[0])
        assert kept.max() < second.length
        radii.append(np.linalg.norm(rows[:, None] - rows[kept][None], axis=-1).min(1).max())
    assert radii == sorted(radii, reverse=True) and radii[-1] < radii[0]


def story_changes(vlm, seed):
    """The change of attention of a story's third page after each of several drifts."""
    story = sample_story(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)

    def encoded(cells):
        return kj.encode(vlm, pages.render(cells))

    first, second, third, other = (encoded(getattr(story, n).cells) for n in ("first", "second", "third", "other"))
    recoloured = {glyph: (kind, (colour + 3) % 8) for glyph, (kind, colour) in story.first.entries.items()}
    edited = encoded(draw_page(rng, Recipe(), recoloured))
    rearranged = encoded(draw_page(rng, Recipe(), story.first.entries))
    patch = kj.form_patch(vlm, third, antecedents=[first, second], rank=12, sketch=kj.SketchSpec((0,)))
    contexts = {
        "unchanged": [first, second],
        "rearranged": [rearranged, second],
        "swapped": [second, first],
        "unrelated in": [first, other, second],
        "edited": [edited, second],
        "deleted": [second],
        "all deleted": [other],
    }
    return {
        name: kj.staleness(window_of(vlm, chunks, capacity=512), third, patch).change
        for name, chunks in contexts.items()
    }


def test_loss_is_seen_and_company_is_not(gqa):
    rows = [story_changes(gqa, seed) for seed in (100, 200)]
    mean = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    harmless = ("rearranged", "swapped", "unrelated in")
    harmful = ("edited", "deleted", "all deleted")
    assert all(row["unchanged"] < 1e-4 for row in rows)
    assert max(mean[name] for name in harmless) < min(mean[name] for name in harmful)


def test_errors(gqa, random_vlm):
    first, second, third = (kj.encode(gqa, text) for text in texts(4))
    window = window_of(gqa, [first])
    bare = kj.form_patch(gqa, second, antecedents=[first], rank=2)
    with pytest.raises(MissingSketchError, match="form_patch"):
        kj.staleness(window, second, bare)
    sketched = kj.form_patch(gqa, second, antecedents=[first], rank=2, sketch=kj.SketchSpec((0,)))
    with pytest.raises(PatchMismatchError):
        kj.staleness(window, third, sketched)
    with pytest.raises(ValueError, match="at must be in 0..1; got 2"):
        kj.staleness(window, second, sketched, at=2)
    with pytest.raises(ValueError, match="a layer past the model's 5"):
        kj.form_patch(gqa, second, antecedents=[first], sketch=kj.SketchSpec((0, 5)))
    foreign = kj.encode(random_vlm, "a red star.")
    with pytest.raises(ModelMismatchError):
        kj.staleness(window, foreign, replace(sketched, chunk=foreign.key, model=foreign.model))


@pytest.mark.parametrize("bad", [((),), ((-1,),), ((0,), (), 0), ((0,), (1.0, 2.0)), ((0, 1), (1.0, 0.0))])
def test_a_sketch_that_cannot_be(bad):
    with pytest.raises(ValueError, match="sketch"):
        kj.SketchSpec(*bad)


def test_nothing_recompiles(gqa):
    first, second, third = (kj.encode(gqa, text) for text in texts(5))
    spec = kj.SketchSpec((0,))
    patch = kj.form_patch(gqa, second, antecedents=[first], rank=2, sketch=spec)
    kj.staleness(window_of(gqa, [third]), second, patch)
    before = reread_jit._cache_size()
    kj.staleness(window_of(gqa, [third, first]), second, patch)
    assert reread_jit._cache_size() == before
