"""Every method against what its own paper says of it, and against full prefill and blind reuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from eval.methods import Batch, names, parse, parse_all
from eval.methods.recompute import Selection, deviation, recompute
from eval.methods.tokens import LargestDeviation, LayerBudgets
from eval.run.records import kv_error
from eval.tiny import pages
from eval.tiny.episodes import passage
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from kamera_jax import patch
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.forward import preamble_chunk
from kamera_jax.window.window import aligned
from models import load

CONTEXTS = 2


def page(rng):
    """A small page, half of it background; it is the attention that counts here, not the answers."""
    return pages.render(rng.integers(0, 8 + 48 * 8 + 48 * 48, (3, 4)) * rng.integers(0, 2, (3, 4)))


def passage_text(rng):
    glyphs = rng.permutation(len(NAMES))[:4]
    return passage({int(glyph): ("fact", int(rng.integers(len(COLOUR_NAMES)))) for glyph in glyphs})


@pytest.fixture(
    scope="module", params=["gqa", *(pytest.param(name, marks=pytest.mark.soak) for name in ("mla", "mha"))]
)
def vlm(request):
    return load(f"kamera-tiny-{request.param}")


@pytest.fixture(scope="module")
def batch(vlm):
    rng = np.random.default_rng(1)
    rows = [[page(rng), passage_text(rng), page(rng)] for _ in range(CONTEXTS)]
    chunks = [Stack.of([kj.encode(vlm, item) for item in place]) for place in zip(*rows, strict=True)]
    slots = 16 + sum(-(-chunk.length // 16) * 16 for chunk in chunks)
    runners = [BatchRunner(model, capacity=slots) for model in (vlm, vlm.leading(2))]
    return Batch.of(*runners, chunks)


@pytest.fixture(scope="module")
def fill(batch):
    """Windows by name, each filled once."""
    known = {"full": batch.full, "blind": batch.blind}

    def fill(name):
        if name not in known:
            method = parse(name)
            known[name] = method.fill(batch, method.prepare(batch))
        return known[name]

    return fill


def cost(batch, name):
    method = parse(name)
    return method.cost(batch, method.prepare(batch))


def error(batch, windows):
    """The worst relative error of a layer and context."""
    return float(kv_error(batch, windows).max())


def rows(windows, slots):
    """What is written at slots, un-split [E, L, n, F]."""
    state = windows.state
    return np.concatenate([np.asarray(state.rot)[:, :, slots], np.asarray(state.free)[:, :, slots]], axis=-1)


@pytest.mark.parametrize(
    "name", ["cacheblend:1", "epic:1000", "mpic:1000", "vlcache:1", "oracle-tokens:1", "patch:1000", "patch:energy=1"]
)
def test_all_of_it_is_full_prefill(batch, fill, name):
    assert error(batch, fill(name)) <= 2e-5 < error(batch, fill("blind"))


@pytest.mark.parametrize("attention", ["mla", pytest.param("mha", marks=pytest.mark.soak)])
def test_recomputing_serves_every_attention(attention):
    vlm = load(f"kamera-tiny-{attention}")
    rng = np.random.default_rng(2)
    chunks = [Stack.of([kj.encode(vlm, passage_text(rng))]) for _ in range(2)]
    runners = [BatchRunner(model, capacity=48) for model in (vlm, vlm.leading(2))]
    small = Batch.of(*runners, chunks)
    for name in ("cacheblend:1", "cacheblend:0.5"):
        method = parse(name)
        left = error(small, method.fill(small, method.prepare(small)))
        assert (left <= 2e-5) == (name == "cacheblend:1") and left < error(small, small.blind)


@pytest.mark.parametrize("name", ["cacheblend:0", "vlcache:0", "oracle-tokens:0"])
def test_nothing_of_it_is_blind_reuse(batch, fill, name):
    assert (rows(fill(name), batch.reused_slots) == rows(fill("blind"), batch.reused_slots)).all()
    assert cost(batch, name).computed_tokens == 0 and np.all(cost(batch, name).flops == 0)


@pytest.mark.parametrize("family", ["cacheblend", "oracle-tokens"])
def test_deviation_falls_with_the_share(batch, fill, family):
    errors = [float(kv_error(batch, fill(f"{family}:{share}")).mean()) for share in (0, 0.25, 0.6, 1)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]


def test_cacheblend_takes_the_tokens_that_deviate_most_in_the_second_layer(batch):
    """Against the true deviation, from a prefill of all layers."""
    chosen = np.asarray(LargestDeviation(0.25).select(batch, batch.blind).slots)
    true = np.asarray(deviation(batch.blind.state, batch.full.state))[:, 1]
    for own, scores in zip(chosen, true, strict=True):
        left = np.setdiff1d(batch.reused_slots, own)
        assert len(own) == round(0.25 * batch.reused_tokens) and (np.diff(own) > 0).all()
        assert scores[own].min() >= scores[left].max() * (1 - 1e-4)


def test_epic_runs_the_first_tokens_and_no_others(batch, fill):
    """Those of the second chunk see what full prefill shows them; what is not run stays as it was."""
    epic = fill("epic:5")
    first = batch.slots(1, 5)
    assert np.allclose(rows(epic, first), rows(batch.full, first), atol=1e-4)
    ran = np.concatenate([batch.slots(place, 5) for place in batch.reused])
    others = np.setdiff1d(np.arange(batch.runner.capacity), ran)
    assert (rows(epic, others) == rows(batch.blind, others)).all()
    assert cost(batch, "epic:5").computed_tokens == 10


def test_mpic_runs_text_whole_and_images_first_tokens(batch, fill):
    assert batch.is_media == (True, False, True)
    mpic = fill("mpic:5")
    text = batch.slots(1)
    assert np.allclose(rows(mpic, text), rows(batch.full, text), atol=1e-4)
    others = np.setdiff1d(batch.reused_slots, np.concatenate([text, batch.slots(2, 5)]))
    assert (rows(mpic, others) == rows(batch.blind, others)).all()
    assert cost(batch, "mpic:5").computed_tokens == len(text) + 5


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_vlcache_budgets_fall_with_depth_and_keep_their_mean(share):
    budgets = LayerBudgets(share).shares(6)
    assert (np.diff(budgets) <= 0).all() and budgets[0] > budgets[-1] and budgets.max() <= 1
    assert abs(budgets.mean() - share) <= 1e-9


def test_vlcache_keeps_fresh_kv_in_the_layers_of_its_budget(batch, fill):
    """Each layer has its own share of the second chunk's first tokens, as full prefill has them, and the rest blind."""
    vlcache = fill("vlcache:0.4")
    slots = batch.slots(1)
    layers = batch.runner.vlm.spec.layers
    budgets = np.rint(LayerBudgets(0.4).shares(layers) * len(slots)).astype(int)
    assert len(set(budgets)) > 2
    ours, full, blind = (rows(windows, slots) for windows in (vlcache, batch.full, batch.blind))
    for layer, budget in enumerate(budgets):
        assert np.allclose(ours[:, layer, :budget], full[:, layer, :budget], atol=1e-4)
        assert (ours[:, layer, budget:] == blind[:, layer, budget:]).all()


def test_the_oracle_has_the_best_tokens_and_no_error_in_them(batch, fill):
    change = np.asarray(deviation(batch.full.state, batch.blind.state)).sum(1)
    oracle = fill("oracle-tokens:0.3")
    count = round(0.3 * batch.reused_tokens)
    for e in range(CONTEXTS):
        best = batch.reused_slots[np.argsort(-change[e][batch.reused_slots])[:count]]
        assert (rows(oracle, best)[e] == rows(batch.full, best)[e]).all()
    assert cost(batch, "oracle-tokens:0.3").stored_bytes == count * batch.runner.vlm.spec.token_bytes
    left = [float(deviation(each.state, batch.full.state).sum()) for each in (oracle, fill("cacheblend:0.3"))]
    assert left[0] <= left[1] * (1 + 1e-5)


def test_recomputed_tokens_see_what_stands_before_them(vlm):
    """Any tokens, against running them one by one, each on a window cut off before it: the definition."""
    rng = np.random.default_rng(3)
    first, second = (kj.encode(vlm, page(rng)) for _ in range(2))
    stacks = [Stack.of([chunk]) for chunk in (first, second)]
    capacity = sum(aligned(chunk.length) for chunk in (preamble_chunk(vlm), first, second))
    runner = BatchRunner(vlm, capacity=capacity)
    batch = Batch.of(runner, runner, stacks)
    slots = np.sort(rng.choice(batch.slots(1), 5, replace=False))
    ours = recompute(batch, batch.blind, Selection(jnp.asarray(slots)[None])).state
    window = kj.append(kj.append(kj.Window.empty(vlm, capacity), first), second)
    state = window.state
    for slot in slots:
        row = int(slot) - window.entries[1].slot
        inputs = {name: rows[row : row + 1] for name, rows in second.source.inputs.items()}
        positions = second.positions[:, row : row + 1] + window.entries[1].base
        before = state.replace(valid=state.valid & (jnp.arange(state.valid.shape[0]) < slot))
        lone = kj.Segment(inputs, positions, jnp.int32(1))
        kv = jax.jit(vlm.forward)(vlm.params, lone, before).kv
        rot, free = kj.window.reuse.relocate(kv, None, positions, 1, vlm.spec.rope)
        state = state.replace(rot=state.rot.at[:, slot].set(rot[:, 0]), free=state.free.at[:, slot].set(free[:, 0]))
    for name in ("rot", "free"):  # a window has the slots of a bucket
        assert np.allclose(getattr(ours, name)[0], getattr(state, name)[:, :capacity], atol=1e-4)
    assert not np.allclose(ours.free[0], batch.blind.state.free[0], atol=1e-2)


def test_patches_keep_their_budgets(batch, fill):
    reused = batch.reused_tokens * batch.runner.vlm.spec.token_bytes
    assert (np.asarray(cost(batch, "patch:bytes=0.4").stored_bytes) <= 0.4 * reused).all()
    stored = [float(np.mean(cost(batch, name).stored_bytes)) for name in ("patch:1", "patch:2", "patch:4")]
    assert 0 < stored[0] < stored[1] < stored[2]
    factors = parse("patch:energy=0.8").prepare(batch)[0][2]
    chunk = batch.chunks[2]
    conditioned = batch.full.conditioned[2]
    for e in range(CONTEXTS):
        own = [jax.tree.map(lambda leaf, e=e: leaf[e], tree) for tree in (conditioned, chunk.kv, factors)]
        left = np.asarray(patch.residual(*own, chunk.length))
        assert (left[1:] <= 0.2 + 1e-3).all() and (left[1:] > 1e-4).any()


def test_half_a_patch_repairs_its_half(batch, fill):
    layers = batch.runner.vlm.spec.layers
    blind = np.asarray(kv_error(batch, batch.blind))
    for name, kept in (("deep", slice(layers // 2, None)), ("shallow", slice(0, layers // 2))):
        ours = np.asarray(kv_error(batch, fill(f"patch:{name}")))
        assert (ours[:, kept] <= 2e-5).all()
        others = np.setdiff1d(np.arange(layers), np.arange(layers)[kept])
        assert np.allclose(ours[:, others], blind[:, others], atol=1e-6)
    assert float(kv_error(batch, fill("patch:deep=1"))[:, -1].min()) > 1e-3


def test_a_patch_and_recomputed_tokens_add_up(batch, fill):
    """The tokens that are run again see a window that is patched, and the others keep the patch."""
    both = fill("patch:2+epic:5")
    patched = fill("patch:2")
    ran = np.concatenate([batch.slots(place, 5) for place in batch.reused])
    others = np.setdiff1d(batch.reused_slots, ran)
    assert (rows(both, others) == rows(patched, others)).all()
    last = batch.slots(2, 5)
    assert not np.allclose(rows(both, last), rows(fill("epic:5"), last), atol=1e-4)
    assert kv_error(batch, both).mean() < kv_error(batch, patched).mean()
    total = cost(batch, "patch:2+epic:5")
    parts = [cost(batch, name) for name in ("patch:2", "epic:5")]
    assert np.allclose(total.stored_bytes, sum(part.stored_bytes for part in parts))
    assert np.allclose(total.flops, sum(part.flops for part in parts))


def test_without_relocation_only_what_rotates_is_wrong(batch, fill):
    still = fill("blind-norotate").state
    blind = batch.blind.state
    assert (still.free == blind.free).all()
    first = batch.slots(0)
    later = batch.reused_slots
    assert (np.asarray(still.rot == blind.rot)[:, :, first]).all()
    assert not np.asarray(still.rot == blind.rot)[:, :, later].all()


def test_flops_are_counted_layer_by_layer(batch):
    """As many as full prefill of the same chunks, where all is run; CacheBlend's choice costs two layers of them."""
    vlm = batch.runner.vlm
    spec = batch.runner.vlm.spec
    behind = batch.tokens_flops([0, *(batch.chunks[place].length for place in batch.reused)])
    assert np.isclose(cost(batch, "epic:1000").flops, behind) and np.isclose(cost(batch, "cacheblend:1").flops, behind)
    least = cost(batch, "cacheblend:0.02").flops
    assert 2 / spec.layers * behind <= least <= (2 / spec.layers + 0.02) * behind
    first = vlm.flops(batch.chunks[0].length, batch.runner.preamble_length)
    assert np.isclose(cost(batch, "full").flops, behind + first)


def test_a_model_without_slots_is_refused(batch):
    class Plain:
        def __init__(self):
            members = ("spec", "params", "fingerprint", "preamble", "eos", "prepare", "tail", "decode", "forward")
            vars(self).update({name: getattr(batch.runner.vlm, name) for name in members})

    runner = BatchRunner.__new__(BatchRunner)
    runner.vlm = Plain()
    bare = Batch(runner, runner, batch.chunks, batch.full, batch.blind)
    with pytest.raises(ValueError, match="Plain does not say fills_slots"):
        recompute(bare, batch.blind, Selection(jnp.zeros((CONTEXTS, 1), jnp.int32)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cachblend:0.1", "did you mean cacheblend"),
        ("patch", "patch is written patch:12"),
        ("patch:0", "whole number of at least 1"),
        ("patch:energy=2", "above 0, up to 1"),
        ("patch:0%", "a percentage .above 0, up to 100., as in patch:10%"),
        ("patch:x%", "a percentage"),
        ("patch:101%", "a percentage"),
        ("cacheblend:1.5", "a share"),
        ("epic:x", "whole number"),
        ("full:1", "full is written full"),
        ("full+epic:4", "cannot stand in"),
        ("epic:4+patch:4", "cannot stand in"),
        ("", "no method ''"),
    ],
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_every_example_is_a_method():
    for name in names.EXAMPLES.values():
        assert parse(name).name == name
    assert [method.name for method in parse_all(["patch:4"])] == ["full", "blind", "patch:4"]
    with pytest.raises(ValueError, match="more than once"):
        parse_all(["patch:4", "patch:4"])


def test_epics_first_tokens_are_a_chunks_attention_sink(vlm):
    """Run alone, a chunk's own first token draws more attention than its others do on average."""
    chunk = kj.encode(vlm, page(np.random.default_rng(4)), preamble=None)
    empty = vlm.spec.empty_state(16)
    output = jax.jit(lambda params, segment: vlm.forward(params, segment, empty, collect=("attention_mass",)))(
        vlm.params, chunk.source
    )
    mass = np.asarray(output.aux["attention_mass"])[:, 16 : 16 + chunk.length]
    assert mass[:, 0].mean() > mass[:, 1:].mean()
