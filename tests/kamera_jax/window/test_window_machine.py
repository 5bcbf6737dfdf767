"""Random operations on windows of both modes, against a list of chunks recomputed in float64 at every step."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import kamera_jax as kj
from kamera_jax.errors import WindowFullError
from kamera_jax.forward import preamble_chunk
from kamera_jax.window.changes import changed
from kamera_jax.window.edits import Evict, Recall, Reorder
from kamera_jax.window.pool import pool_tokens
from tests import oracles
from tests.kamera_jax.toy import Toy

CAPACITY = 128
MODES = ("materialise", "in_place")
QUESTIONS = ("what colour is it ?", "which page is red and which page is blue ?")
LENGTHS = (2, 5, 16, 17, 30, 9)
TOLERANCE = 1e-5


def random_chunk(vlm, rng, name, length):
    """A chunk of noise: any length, any positions, an advance that is not the token count."""
    spec = vlm.spec
    padded = kj.kv.bucket(length)
    rows = (np.arange(padded) < length)[None, :, None]
    rot, free = (
        jnp.asarray(np.where(rows, rng.standard_normal((spec.layers, padded, width)), 0), spec.dtype)
        for width in (spec.rot_dim, spec.free_dim)
    )
    positions = jnp.asarray(rng.integers(0, length + 3, (spec.rope.axes, padded)), jnp.float32)
    advance = float(rng.integers(1, length + 5))
    preamble = preamble_chunk(vlm).key
    return kj.Chunk(kj.KV(rot, free), positions, length, advance, spec.fingerprint, preamble, key=name)


def random_patch(vlm, rng, chunk, name, antecedents=(), rank=3):
    spec = vlm.spec
    padded = chunk.kv.rot.shape[1]
    u, v = (
        jnp.asarray(0.3 * rng.standard_normal((spec.layers, rank, width)), spec.dtype)
        for width in (padded, spec.rot_dim + spec.free_dim)
    )
    ranks = jnp.asarray(rng.integers(0, rank + 1, spec.layers), jnp.int32)
    shape = (spec.layers, 2)
    mass = jnp.zeros(shape, jnp.float32)
    residual = jnp.zeros(spec.layers, jnp.float32)
    factors = kj.Factors(u, v, ranks)
    key = chunk.key + name
    return kj.Patch(factors, chunk.key, spec.fingerprint, antecedents, mass, residual, chunk.length, key=key)


def random_stock(vlm, seed=0):
    """(chunk, patches and None) of several buckets; of the patches one was formed behind others, one behind none."""
    rng = np.random.default_rng(seed)
    chunks = [random_chunk(vlm, rng, f"{i:064d}", length) for i, length in enumerate(LENGTHS)]
    behind = {"a": ("e" * 64,), "b": ()}
    return [(chunk, (None, *(random_patch(vlm, rng, chunk, *each) for each in behind.items()))) for chunk in chunks]


def placed_first(pairs):
    """The pairs where the first was placed there: it leaves a patch that was formed behind others."""
    (chunk, patch), *later = pairs
    return [(chunk, None if patch is not None and patch.antecedents else patch), *later]


def layout(head, chunks):
    """Where chunks stand: [(slot, base)], and the slot and base after them."""
    slot = 16 * -(-head.length // 16)
    base = head.advance
    places = []
    for chunk in chunks:
        places.append((slot, base))
        slot = slot + 16 * -(-chunk.length // 16)
        base = base + chunk.advance
    return places, (slot, base)


def fits(head, chunks, more=0):
    """Whether chunks, and ``more`` tokens after them, do: padding at the end need not."""
    ends = [slot + chunk.length for (slot, _), chunk in zip(layout(head, chunks)[0], chunks, strict=True)]
    _, (after, _) = layout(head, chunks)
    return max(ends, default=0) <= CAPACITY and (not more or after + more <= CAPACITY)


def dequantised(factors):
    """The factors as numpy's floats; an int8 patch has its scale in ``v``."""
    u = np.asarray(factors.u)
    v = np.asarray(factors.v)
    return (u, v) if factors.scale is None else (u.astype(np.float32), v * np.asarray(factors.scale)[..., None])


def relocated(spec, chunk, patch, base):
    """What attention must read of a chunk, f64, valid rows."""
    factors = () if patch is None else (*dequantised(patch.factors), patch.factors.ranks)
    at = np.asarray(chunk.positions, np.float64) + base
    rot, free = oracles.relocate(spec.rope, chunk.kv.rot, chunk.kv.free, at, chunk.length, *factors)
    return rot[:, : chunk.length], free[:, : chunk.length], at[:, : chunk.length]


def assert_state(window, pairs):
    """The window is its chunks, one hop from their canonical KV, and nothing else."""
    spec = window.spec
    head = window.preamble.chunk
    places, (slot, base) = layout(head, [chunk for chunk, _ in pairs])
    assert [(entry.chunk, entry.patch) for entry in window.entries] == pairs
    assert [(entry.slot, entry.base) for entry in window.entries] == places
    assert (window.next_slot, window.next_position) == (
        (slot, base) if pairs else (16 * -(-head.length // 16), head.advance)
    )
    assert window.keys == tuple(chunk.key for chunk, _ in pairs)
    wanted = [(0, relocated(spec, head, None, 0.0))]
    shown = [relocated(spec, chunk, patch, at) for (chunk, patch), (_, at) in zip(pairs, places, strict=True)]
    if window.mode == "materialise":
        assert not window.state.pools
        wanted += [(slot, rows) for (slot, _), rows in zip(places, shown, strict=True)]
    else:
        assert_pools(window, pairs, [at for _, at in places])
    valid = np.zeros(window.state.valid.shape, bool)
    for start, (rot, free, positions) in wanted:
        there = slice(start, start + rot.shape[1])
        valid[there] = True
        assert oracles.relative(np.asarray(window.state.rot)[:, there], rot).max() <= TOLERANCE
        assert oracles.relative(np.asarray(window.state.free)[:, there], free).max() <= TOLERANCE
        assert (np.asarray(window.state.positions)[:, there] == positions).all()
    assert (np.asarray(window.state.valid) == valid).all()


def assert_pools(window, pairs, bases):
    """Every entry lies once, canonical, at its base; the other places are of no length."""
    lying = []
    for pool in window.state.pools:
        arrays = {name: np.asarray(array) for name, array in pool.layers.items()}
        lengths = np.asarray(pool.lengths)
        at = np.asarray(pool.bases)
        for place in np.flatnonzero(lengths):
            ranks = arrays["ranks"][:, place] if "ranks" in arrays else np.zeros(window.spec.layers, int)
            lying.append((pool, arrays, int(place), int(lengths[place]), float(at[place]), ranks))
    assert sorted(base for *_, base, _ in lying) == sorted(bases)
    for (chunk, patch), base in zip(pairs, bases, strict=True):
        ((pool, arrays, place, length, _, ranks),) = [each for each in lying if each[4] == base]
        rows = chunk.kv.rot.shape[1]
        assert length == chunk.length and pool.rot.shape[2] == pool_tokens(rows) >= rows
        assert (arrays["rot"][:, place, :rows] == np.asarray(chunk.kv.rot)).all()
        assert (arrays["free"][:, place, :rows] == np.asarray(chunk.kv.free)).all()
        assert (np.asarray(pool.positions)[place, :, :rows] == np.asarray(chunk.positions)).all()
        assert not arrays["rot"][:, place, rows:].any() and not arrays["free"][:, place, rows:].any()
        assert not np.asarray(pool.positions)[place, :, rows:].any()
        assert (ranks == (0 if patch is None else np.asarray(patch.factors.ranks))).all()
        for layer, rank in enumerate(ranks if patch is not None else ()):
            for name, factor in zip(("u", "v"), dequantised(patch.factors), strict=True):
                given = arrays[name][layer, place, :rank, : factor.shape[2]]
                assert (given == factor[layer, :rank]).all()
        components = 0 if patch is None else patch.factors.u.shape[1]
        if "u" in arrays:
            assert not arrays["u"][:, place, components:].any() and not arrays["u"][:, place, :, rows:].any()
            assert not arrays["v"][:, place, components:].any()


class WindowMachine(RuleBasedStateMachine):
    """Two windows, one of each mode, and the list of (chunk, patch) they must be; a turn's KV differs by mode."""

    steps = 0

    def __init__(self, vlm, stock):
        super().__init__()
        self.vlm = vlm
        self.stock = stock
        self.windows = {mode: kj.Window.empty(vlm, CAPACITY, mode=mode) for mode in MODES}
        self.pairs = {mode: [] for mode in MODES}
        self.evicted = []  # (pairs by mode, the place it had)
        self.remembered = []  # windows from before, which nothing that came after may have touched
        self.head = preamble_chunk(vlm)

    @property
    def count(self):
        return len(self.pairs["in_place"])

    def drawn(self, number, blind):
        chunk, patches = self.stock[number % len(self.stock)]
        return dict.fromkeys(MODES, (chunk, None if blind else patches[number % 2 + 1]))

    def change(self, operation, pairs):
        """Both windows after an operation, which must then be ``pairs``; or it must fail and change nothing."""
        type(self).steps += 1
        if not fits(self.head, [chunk for chunk, _ in pairs["in_place"]]):
            for mode in MODES:
                with pytest.raises(WindowFullError):
                    operation(mode, self.windows[mode])
            return False
        self.windows = {mode: operation(mode, self.windows[mode]) for mode in MODES}
        self.pairs = pairs
        return True

    def evict(self, *places):
        for place in places:
            self.evicted.append(({mode: self.pairs[mode][place] for mode in MODES}, place))
        self.evicted = self.evicted[-5:]

    @rule(number=st.integers(0, 11), blind=st.booleans(), donate=st.booleans())
    def append(self, number, blind, donate):
        new = self.drawn(number, blind)
        wanted = {mode: [*self.pairs[mode], new[mode]] for mode in MODES}
        if not self.count:
            wanted = {mode: placed_first(pairs) for mode, pairs in wanted.items()}
        if donate and fits(self.head, [chunk for chunk, _ in wanted["in_place"]]):
            self.remembered = []
        self.change(lambda mode, window: kj.append(window, *new[mode], donate=donate), wanted)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def append_again(self, data):
        """What stands there already, or its turn, once more."""
        place = data.draw(st.integers(0, self.count - 1))
        again = {mode: self.pairs[mode][place] for mode in MODES}
        wanted = {mode: [*self.pairs[mode], again[mode]] for mode in MODES}
        self.change(lambda mode, window: kj.append(window, *again[mode]), wanted)

    @rule(data=st.data())
    def reorder(self, data):
        order = data.draw(st.permutations(range(self.count)))
        wanted = {mode: [self.pairs[mode][i] for i in order] for mode in MODES}
        if order and order[0]:
            wanted = {mode: placed_first(pairs) for mode, pairs in wanted.items()}
        self.change(lambda mode, window: kj.reorder(window, order), wanted)

    @rule(data=st.data())
    def slide(self, data):
        drop = data.draw(st.integers(0, min(self.count, 3)))
        self.evict(*range(drop))
        wanted = {mode: self.pairs[mode][drop:] for mode in MODES}
        assert self.change(lambda mode, window: kj.slide(window, drop), wanted)

    @precondition(lambda self: self.evicted)
    @rule(data=st.data(), where=st.sampled_from(["end", "old", "front"]))
    def recall(self, data, where):
        which = data.draw(st.integers(0, len(self.evicted) - 1))
        pair, old = self.evicted[which]
        at = {"end": None, "old": min(old, self.count), "front": 0}[where]
        wanted = {mode: list(self.pairs[mode]) for mode in MODES}
        for mode in MODES:
            wanted[mode].insert(self.count if at is None else at, pair[mode])
            if at == 0 or not self.count:
                wanted[mode] = placed_first(wanted[mode])
        if self.change(lambda mode, window: kj.recall(window, *pair[mode], at=at), wanted):
            del self.evicted[which]

    @precondition(lambda self: self.count)
    @rule(data=st.data(), number=st.integers(0, 11), blind=st.booleans())
    def replace(self, data, number, blind):
        place = data.draw(st.integers(0, self.count - 1))
        new = self.drawn(number, blind)
        old = {mode: self.pairs[mode][place] for mode in MODES}
        wanted = {mode: [*self.pairs[mode][:place], new[mode], *self.pairs[mode][place + 1 :]] for mode in MODES}
        if place == 0:
            wanted = {mode: placed_first(pairs) for mode, pairs in wanted.items()}
        if self.change(lambda mode, window: kj.replace(window, place, *new[mode]), wanted):
            self.evicted = [*self.evicted, (old, place)][-5:]

    @precondition(lambda self: self.count)
    @rule(data=st.data(), number=st.integers(0, 11), blind=st.booleans())
    def several_at_once(self, data, number, blind):
        """Entries leave, the others change places, and one comes in between: written once."""
        gone = data.draw(st.sets(st.integers(0, self.count - 1), max_size=2))
        order = data.draw(st.permutations(range(self.count - len(gone))))
        at = data.draw(st.integers(0, len(order)))
        new = self.drawn(number, blind)
        stay = [place for place in range(self.count) if place not in gone]
        wanted = {}
        for mode in MODES:
            wanted[mode] = [self.pairs[mode][stay[i]] for i in order]
            if order and order[0]:
                wanted[mode] = placed_first(wanted[mode])
            wanted[mode].insert(at, new[mode])
            if at == 0:
                wanted[mode] = placed_first(wanted[mode])

        def operation(mode, window):
            return changed(window, [Evict(tuple(gone)), Reorder(tuple(order)), Recall(*new[mode], at)])

        self.change(operation, wanted)

    @rule(question=st.sampled_from(QUESTIONS), tokens=st.integers(1, 3))
    def ask(self, question, tokens):
        type(self).steps += 1
        before = self.pairs
        answers = {}
        follows = bool(self.count) and before["in_place"][-1][0].turn
        tail = (self.vlm.follow_up if follows else self.vlm.tail)(question)
        most = int(tail.length) + tokens + len(self.vlm.closing)
        room = fits(self.head, [chunk for chunk, _ in before["in_place"]], most)
        for mode, window in self.windows.items():
            if not room:
                with pytest.raises(WindowFullError):
                    kj.generate(self.vlm, window, question, max_new_tokens=tokens)
                continue
            answers[mode] = kj.generate(self.vlm, window, question, max_new_tokens=tokens)
        if room:
            assert len({answer.tokens for answer in answers.values()}) == 1
            turns = {mode: answer.window.entries[-1].chunk for mode, answer in answers.items()}
            said = answers["in_place"].tokens
            ids = [*np.asarray(tail.inputs["tokens"])[: int(tail.length)], *said, *self.vlm.closing]
            for mode, turn in turns.items():
                assert turn.turn and turn.antecedents == self.windows[mode].keys
                assert np.asarray(turn.source.inputs["tokens"])[: turn.length].tolist() == [int(token) for token in ids]
                assert not np.asarray(turn.kv.free)[:, turn.length :].any()
                self.windows[mode] = answers[mode].window
            for name in ("rot", "free"):
                here, there = (np.asarray(getattr(turn.kv, name)) for turn in turns.values())
                assert (here == there).all()
            self.pairs = {mode: [*before[mode], (turns[mode], None)] for mode in MODES}

    @rule()
    def remember(self):
        type(self).steps += 1
        self.remembered.append((dict(self.windows), {mode: list(pairs) for mode, pairs in self.pairs.items()}))
        self.remembered = self.remembered[-2:]

    @invariant()
    def the_windows_are_their_chunks(self):
        for mode in MODES:
            assert_state(self.windows[mode], self.pairs[mode])

    def teardown(self):
        for windows, pairs in self.remembered:
            for mode in MODES:
                assert_state(windows[mode], pairs[mode])


def drive(vlm, examples, steps):
    WindowMachine.steps = 0
    stock = random_stock(vlm)
    options = settings(max_examples=examples, stateful_step_count=steps)
    run_state_machine_as_test(lambda: WindowMachine(vlm, stock), settings=options)
    return WindowMachine.steps


def test_random_operations():
    assert drive(Toy(), examples=20, steps=25) >= 300


@pytest.mark.soak
def test_ten_thousand_random_operations():
    assert drive(Toy(seed=1), examples=300, steps=50) >= 10_000
