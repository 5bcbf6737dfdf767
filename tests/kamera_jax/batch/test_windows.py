"""Windows by the hundred are the windows that are made one by one."""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.batch.devices import mesh_of, replicated, spread
from kamera_jax.batch.windows import BatchRunner, Stack, fit
from tests.kamera_jax.toy import Toy

FIRST = ["the first page", "a second page!"]
SECOND = ["a red star", "blue stars"]
QUESTIONS = [["which?", "where?"], ["how so", "who is"]]


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(scope="module")
def runner(toy):
    return BatchRunner(toy, capacity=96)


@pytest.fixture(scope="module")
def places(toy):
    """The chunks of two windows, by place."""
    return [[kj.encode(toy, text) for text in texts] for texts in (FIRST, SECOND)]


@pytest.fixture(scope="module")
def stacks(places):
    return [Stack.of(chunks) for chunks in places]


def of(tree, episode):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[episode], tree)


def same(given, wanted):
    slots = len(given.valid)
    assert not np.asarray(wanted.valid)[slots:].any()  # a window has the slots of a bucket
    wanted = replace(
        wanted,
        **{name: getattr(wanted, name)[:, :slots] for name in ("rot", "free", "positions")},
        valid=wanted.valid[:slots],
    )
    np.testing.assert_array_equal(given.valid, wanted.valid)
    shown = np.asarray(wanted.valid)
    np.testing.assert_array_equal(given.positions[:, shown], np.asarray(wanted.positions)[:, shown])
    for name in ("rot", "free"):
        np.testing.assert_allclose(
            getattr(given, name)[:, shown], np.asarray(getattr(wanted, name))[:, shown], atol=2e-6, err_msg=name
        )


def test_reused_chunks_lie_as_in_a_window(toy, runner, places, stacks):
    """The second with a patch; and the answers are the window's."""
    pairs = [[chunks[episode] for chunks in places] for episode in range(2)]
    patches = [kj.form_patch(toy, second, antecedents=[first], rank=2) for first, second in pairs]
    factors = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(patch.factors for patch in patches))
    windows = runner.reuse(stacks, [None, factors])
    answers = runner.ask(windows, runner.tails(QUESTIONS))
    for episode, ((first, second), patch) in enumerate(zip(pairs, patches, strict=True)):
        window = kj.append(kj.append(kj.Window.empty(toy, 96), first), second, patch)
        same(of(windows.state, episode), window.state)
        assert windows.slots == tuple(entry.slot for entry in window.entries)
        for number, question in enumerate(QUESTIONS[episode]):
            np.testing.assert_allclose(answers[episode, number], kj.query(toy, window, question), atol=2e-6)


def test_prefilled_windows_are_prefilled_windows(toy, runner, stacks):
    windows = runner.prefill(stacks)
    for episode in range(2):
        window = kj.prefill(toy, [FIRST[episode], SECOND[episode]], capacity=96)
        same(of(windows.state, episode), window.state)
        conditioned = of(windows.conditioned[1], episode)
        kept = np.asarray(window.entries[1].chunk.kv.free)
        np.testing.assert_allclose(conditioned.free[:, : kept.shape[1]], kept, atol=2e-6)


def test_chunks_that_are_not_relocated_keep_where_they_were_encoded(runner, stacks):
    state = runner.reuse(stacks, [None, None], relocated=False).state
    moved = runner.reuse(stacks, [None, None])
    base = runner.preamble_length
    slot = moved.slots[1]
    rows = slice(slot, slot + stacks[1].length)
    np.testing.assert_array_equal(state.positions[0, 0, rows], base + np.arange(stacks[1].length))
    np.testing.assert_array_equal(
        moved.state.positions[0, 0, rows], base + stacks[0].advance + np.arange(stacks[1].length)
    )
    assert not np.allclose(state.rot[0, :, rows], moved.state.rot[0, :, rows], atol=1e-2)


def test_what_is_hidden_is_not_seen(runner, stacks):
    windows = runner.reuse(stacks, [None, None])
    hidden = runner.hide(windows, 0, stacks[0].length)
    seen = np.asarray(windows.state.valid[0]) & ~np.asarray(hidden.state.valid[0])
    assert np.flatnonzero(seen).tolist() == list(range(windows.slots[0], windows.slots[0] + stacks[0].length))
    tails = runner.tails(QUESTIONS)
    assert not np.allclose(runner.ask(windows, tails), runner.ask(hidden, tails), atol=1e-3)


def test_patches_are_fitted_one_by_one(runner, stacks):
    conditioned = runner.prefill(stacks).conditioned[1]
    factors = fit(conditioned, stacks[1].kv, stacks[1].length, rank=2)
    for episode in range(2):
        own = kj.patch.fit(of(conditioned, episode), of(stacks[1].kv, episode), stacks[1].length, 2)
        ours = kj.patch.apply(of(stacks[1].kv, episode), jax.tree.map(jnp.asarray, of(factors, episode)))
        wanted = kj.patch.apply(of(stacks[1].kv, episode), own)
        np.testing.assert_allclose(ours.free, wanted.free, atol=1e-5)
        np.testing.assert_allclose(ours.rot, wanted.rot, atol=1e-5)


def test_chunks_of_one_place_have_one_length(toy):
    with pytest.raises(ValueError, match="the same length and advance"):
        Stack.of([kj.encode(toy, "one"), kj.encode(toy, "two and")])


def test_one_device_needs_no_mesh():
    assert mesh_of(1) is None
    for count in (0, len(jax.devices()) + 1):
        with pytest.raises(ValueError, match=f"there are {len(jax.devices())} devices here; got {count}"):
            mesh_of(count)
    tree = {"w": jnp.ones(3)}
    assert replicated(tree, None) is tree and spread(dataclasses.asdict, None, ()) is dataclasses.asdict
