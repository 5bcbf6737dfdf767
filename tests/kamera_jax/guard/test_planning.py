"""Plans of a window's change: what they find, what they cost, and that doing them gives what full prefill gives."""

import math
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.backbone import forward_flops
from kamera_jax.errors import MissingInputsError, ModelMismatchError, StalePatchError
from kamera_jax.guard import planning
from kamera_jax.guard.planning import Action, Evict, Recall, Reorder, Replace, execute, plan
from kamera_jax.guard.policy import ReusePolicy, Verdict
from kamera_jax.patch.size import Size

CAPACITY = 128
QUESTION = "what colour is the cell ?"
TEXTS = ("a red star. a blue moon.", "the page is red", "the cell is blue and red", "a moon on the page")
EXACT = ReusePolicy(max_kl=1e-6)
"""Takes nothing but what costs nothing."""

FULL = 16
"""Components of a patch that gives everything back: as many as a bucket has tokens."""


@dataclass(frozen=True)
class Scripted(ReusePolicy):
    """Judges patches by chunk, and notes which contexts it was asked about; without one only the first is right."""

    stale: tuple[str, ...] = ()
    asked: list = field(default_factory=list)

    def judge(self, window, chunk, patch, at=None, *, fresh=()):
        if patch is None:
            return Verdict(not window.entries, math.inf if window.entries else 0.0, "as scripted")
        self.asked.append((chunk.key, tuple(entry.patch for entry in window.entries)))
        bad = chunk.key in self.stale
        return Verdict(not bad, 1.0 if bad else 0.01, "as scripted")


@pytest.fixture(scope="module")
def texts(random_vlm):
    return [kj.encode(random_vlm, text) for text in TEXTS]


@pytest.fixture(scope="module")
def chain(random_vlm, texts):
    """Every chunk with the patch that those before it give it, components enough for all of it."""
    pairs = []
    for i, chunk in enumerate(texts):
        antecedents = texts[:i]
        patch = kj.form_patch(random_vlm, chunk, antecedents=antecedents, rank=FULL) if antecedents else None
        pairs.append((chunk, patch))
    return pairs


def filled(vlm, pairs, mode="materialise"):
    window = kj.Window.empty(vlm, CAPACITY, mode=mode)
    for chunk, patch in pairs:
        window = kj.append(window, chunk, patch)
    return window


def actions(found):
    return [step.action for step in found.steps]


def close(vlm, given, wanted):
    a, b = (np.asarray(kj.query(vlm, window, QUESTION), np.float64) for window in (given, wanted))
    assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_what_comes_back_to_its_old_place_needs_no_forward(random_vlm, chain, mode):
    whole = filled(random_vlm, chain, mode)
    slid = kj.slide(whole, 2)
    back = [Recall(*chain[0], at=0), Recall(*chain[1], at=1)]
    found = plan(random_vlm, slid, back, policy=ReusePolicy())
    assert actions(found) == [Action.ROTATE] * 4 and found.flops == 0 and found.estimate_kl == 0
    done = execute(random_vlm, found)
    assert done.window.entries == whole.entries and done.steps == found.steps
    close(random_vlm, done.window, whole)
    if mode == "materialise":
        given = done.window.state
        wanted = whole.state
        np.testing.assert_array_equal(given.valid, wanted.valid)
        np.testing.assert_array_equal(given.positions[:, given.valid], wanted.positions[:, given.valid])
        np.testing.assert_array_equal(given.rot[:, given.valid], wanted.rot[:, given.valid])
        np.testing.assert_array_equal(given.free[:, given.valid], wanted.free[:, given.valid])
    assert slid.keys == whole.keys[2:]


def test_a_patch_that_is_lost_is_formed_again_and_only_that(random_vlm, chain):
    slid = kj.slide(filled(random_vlm, [*chain[:2], (chain[2][0], None), chain[3]]))
    found = plan(random_vlm, slid, Recall(*chain[0], at=0), policy=ReusePolicy(), stored=[chain[3][1]])
    assert actions(found) == [Action.ROTATE, Action.ROTATE, Action.FORM, Action.ROTATE]
    assert found.flops == random_vlm.flops(chain[2][0].length, found.window.tokens)
    assert 0 < found.flops < found.prefill_flops and len(found.window.entries) == 2
    before = jax.tree.map(jnp.copy, found.window.state)
    done = execute(random_vlm, found)
    assert done.flops == found.flops and done.steps[2].patch.antecedents == done.window.keys[:2]
    fresh = kj.form_patch(random_vlm, chain[2][0], context=filled(random_vlm, chain[:2]))  # of the default size
    assert done.steps[2].patch.key == fresh.key
    close(random_vlm, done.window, filled(random_vlm, [*chain[:2], (chain[2][0], fresh), chain[3]]))
    jax.tree.map(np.testing.assert_array_equal, found.window.state, before)
    close(random_vlm, execute(random_vlm, found).window, done.window)  # a plan can be done again


def test_a_patch_formed_again_at_full_rank_is_exact(random_vlm, chain, monkeypatch):
    """Where nothing of the default size is left out, the window is what prefill gives."""
    full = partial(Size, rank=32)
    monkeypatch.setattr(full, "like", Size.like, raising=False)
    monkeypatch.setattr(planning, "Size", full)
    slid = kj.slide(filled(random_vlm, [*chain[:2], (chain[2][0], None), chain[3]]))
    found = plan(random_vlm, slid, Recall(*chain[0], at=0), policy=ReusePolicy(), stored=[chain[3][1]])
    done = execute(random_vlm, found)
    close(random_vlm, done.window, kj.prefill(random_vlm, [chunk for chunk, _ in chain]))


def test_a_stored_patch_is_used_where_it_fits_better(random_vlm, chain, texts):
    elsewhere = kj.form_patch(random_vlm, texts[2], antecedents=[texts[3]], rank=4)
    window = filled(random_vlm, [chain[0], (texts[2], elsewhere)])
    found = plan(random_vlm, window, Recall(*chain[1], at=1), policy=ReusePolicy(), stored=[p for _, p in chain if p])
    assert actions(found) == [Action.KEEP, Action.ROTATE, Action.STORED]
    assert found.steps[2].patch is chain[2][1] and found.flops == 0
    close(random_vlm, found.window, filled(random_vlm, chain[:3]))


def test_the_cascade_goes_on_until_it_is_under_the_budget(random_vlm, chain):
    """What stands behind a fresh patch is judged again, on the window that has it."""
    window = filled(random_vlm, chain)
    policy = Scripted(stale=(chain[1][0].key, chain[2][0].key))
    found = plan(random_vlm, window, Replace(0, chain[0][0]), policy=policy)  # the same objects: nothing changes
    assert actions(found) == [Action.KEEP] * 4 and found.bytes == 0
    edited = kj.encode(random_vlm, "a blue star. a red moon.")
    found = plan(random_vlm, window, Replace(0, edited), policy=policy)
    assert actions(found) == [Action.ROTATE, Action.FORM, Action.FORM, Action.ROTATE]
    policy.asked.clear()
    done = execute(random_vlm, found)
    assert actions(done) == actions(found)
    fresh = [step.patch for step in done.steps]
    assert policy.asked == [(step.chunk.key, tuple(fresh[:i])) for i, step in enumerate(done.steps) if i]
    assert fresh[1] is not chain[1][1] and fresh[3] is chain[3][1]
    assert (fresh[1].factors.ranks == chain[1][1].factors.ranks).all()


def test_reprefill_is_exact(random_vlm, chain, texts):
    policy = ReusePolicy(1e-6, fallback="reprefill")
    found = plan(random_vlm, filled(random_vlm, chain), Reorder((2, 0, 1, 3)), policy=policy)
    assert actions(found) == [Action.ROTATE, *[Action.PREFILL] * 3]  # the first stands behind nothing
    done = execute(random_vlm, found)
    first = forward_flops(random_vlm, texts[2].length, done.window.preamble.chunk.length)
    assert done.flops == pytest.approx(done.prefill_flops - first) and done.window.entries[0].patch is None
    wanted = kj.prefill(random_vlm, [texts[i] for i in (2, 0, 1, 3)], capacity=CAPACITY)
    close(random_vlm, done.window, wanted)


def test_chunks_run_in_place_are_run_again(random_vlm, texts):
    """A prefilled window's chunks are canonical nowhere else: no patch can move them."""
    window = kj.prefill(random_vlm, texts[:3], capacity=CAPACITY)
    found = plan(random_vlm, window, Evict((0,)), policy=EXACT)
    assert actions(found) == [Action.PREFILL] * 2
    close(random_vlm, execute(random_vlm, found).window, kj.prefill(random_vlm, texts[1:3], capacity=CAPACITY))
    found = plan(random_vlm, window, Evict((2,)), policy=EXACT)
    assert actions(found) == [Action.KEEP] * 2 and found.window.keys == window.keys[:2]


def test_flops_are_those_of_the_products(random_vlm):
    """Against XLA's count of the forward's products, layer by layer."""
    text = random_vlm.config.text
    tokens = 16
    slots = 0
    compiled = jax.jit(lambda q, k: q @ k).lower(jnp.zeros((tokens, 8)), jnp.zeros((8, tokens))).cost_analysis()
    assert compiled["flops"] == pytest.approx(2 * tokens * tokens * 8)
    attention = text.attention
    wide = text.hidden_size
    heads = attention.heads * attention.head_dim + 2 * attention.kv_heads * attention.head_dim
    layer = (
        2 * tokens * (wide * heads + attention.heads * attention.head_dim * wide + 3 * wide * text.intermediate_size)
    )
    layer += 2 * tokens * (tokens + slots) * 2 * attention.heads * attention.head_dim
    bias = 2 * tokens * heads if attention.bias else 0
    assert random_vlm.flops(tokens, slots) == text.num_hidden_layers * (layer + bias)
    assert random_vlm.flops(tokens, 100) > random_vlm.flops(tokens, 0)


def test_a_plan_reads(random_vlm, chain):
    found = plan(random_vlm, filled(random_vlm, chain), Evict((0,)), policy=Scripted(stale=(chain[2][0].key,)))
    lines = str(found).splitlines()
    assert len(lines) == 4 and lines[1].startswith(f"1: {chain[2][0].key[:12]} fresh patch: as scripted")
    assert "% of the FLOPs of a full prefill" in lines[-1]
    assert found.count(Action.FORM) == 1 and found.estimate_kl == 0.01


def test_what_cannot_be_is_refused(random_vlm, chain):
    window = filled(random_vlm, chain)
    policy = ReusePolicy()
    for change in (Recall(*chain[0], at=5), Evict((4,)), Replace(-1, chain[0][0])):
        with pytest.raises(ValueError, match=r"at must be in 0\.\.4.* got 5|the window has entries 0\.\.3; got (4|-1)"):
            plan(random_vlm, window, change, policy=policy)
    with pytest.raises(ValueError, match="order must be a permutation"):
        plan(random_vlm, window, Reorder((0, 1)), policy=policy)
    with pytest.raises(StalePatchError, match="needs a forward here"):
        plan(random_vlm, window, Evict((0,)), policy=replace(EXACT, fallback="error"))
    with pytest.raises(ModelMismatchError):
        plan(random_vlm, replace(window, spec=replace(window.spec, fingerprint="0" * 64)), Evict((0,)), policy=policy)
    bare = [(chunk.without_source(), patch) for chunk, patch in chain]
    found = plan(random_vlm, filled(random_vlm, bare), Evict((0,)), policy=EXACT)
    with pytest.raises(MissingInputsError):
        execute(random_vlm, found)


def test_a_model_that_does_not_say_its_flops_is_estimated(random_vlm):
    plain = copy(random_vlm)
    plain.flops = None
    parameters = sum(leaf.size for leaf in jax.tree.leaves(random_vlm.params))
    assert forward_flops(plain, 10, 100) == 2 * 10 * parameters
