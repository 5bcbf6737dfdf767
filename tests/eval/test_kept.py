"""Methods whose chunks keep a share of their rows, and rivals that know the question or share one change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from eval.methods import Batch, parse
from eval.methods.kept import rows_of
from eval.methods.questions import ask
from eval.run.records import kv_error
from kamera_jax.batch.windows import BatchRunner, Stack
from models import load


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def texts():
    return [["the red star stands here", "the blue moon stands there", "what colour has the star"]] * 2


@pytest.fixture(scope="module")
def batch(vlm, texts):
    chunks = [Stack.of([kj.encode(vlm, text) for text in place]) for place in zip(*texts, strict=True)]
    runners = [BatchRunner(model, capacity=256) for model in (vlm, vlm.leading(2))]
    return Batch.of(*runners, chunks)


def filled(batch, name):
    method = parse(name)
    prepared = method.prepare(batch)
    return method.fill(batch, prepared), method.cost(batch, prepared)


def error(batch, name):
    return float(kv_error(batch, filled(batch, name)[0], batch.served(parse(name).codec)).max())


@pytest.mark.parametrize("name", ["keydiff:0.5", "keydiff:0.5+merge:average+kivi:4"])
def test_windows_are_those_of_compressed_chunks(vlm, batch, texts, name):
    """Logits and bytes of the library's own operations, one by one; a patch of full rank gives full prefill's rows."""
    windows, cost = filled(batch, name)
    tails = batch.runner.tails([["which ?"]] * 2)
    packed = [kj.compress(vlm, kj.encode(vlm, text), name) for text in texts[0]]
    window = kj.Window.empty(vlm, 256)
    for each in packed:
        window = kj.append(window, each.restore())
    logits = batch.runner.ask(windows, tails)[0, 0]
    np.testing.assert_allclose(logits, kj.query(vlm, window, "which ?"), atol=2e-4)
    assert cost.kept_bytes == sum(each.nbytes for each in packed) and not np.any(cost.stored_bytes)
    rank = batch.chunks[2].kv.rot.shape[2]
    if "merge" not in name:
        assert error(batch, f"{name}+patch:{rank}") < 1e-4 < error(batch, name)
    served = batch.served(parse(name).codec)
    patch = kj.form_patch(vlm, packed[2].restore(), antecedents=[kj.encode(vlm, each) for each in texts[0][:2]], rank=2)
    assert filled(batch, f"{name}+patch:2")[1].stored_bytes[0] > patch.nbytes  # of both chunks behind the first
    rows = rows_of(served.kept[1])
    assert rows.shape == (2, served.chunks[1].length) and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(served.true_slots[:, : rows.shape[1]], batch.full.slots[1] + rows)


def test_the_share_of_all_rows_is_blind_reuse(batch):
    windows, _ = filled(batch, "keydiff:1")
    np.testing.assert_array_equal(windows.state.rot, batch.blind.state.rot)


def test_rows_that_a_question_reads_most_are_asked(batch, vlm):
    """All of them: as the window stands. Some: those of largest attention, of each question its own."""
    tails = batch.runner.tails([["which star ?", "what moon ?"]] * 2)
    plain = batch.runner.ask(batch.blind, tails)
    np.testing.assert_allclose(ask(batch.runner, filled(batch, "select:1")[0], tails), plain, atol=1e-5)
    windows, _ = filled(batch, "select:0.25")
    ours = ask(batch.runner, windows, tails)
    slots = batch.reused_slots
    for question in range(2):
        tail = jax.tree.map(lambda leaf, q=question: leaf[0, q], tails.at(batch.blind.position))
        state = jax.tree.map(lambda leaf: leaf[0], batch.blind.state)
        mass = vlm.forward(vlm.params, tail, state, collect=("attention_mass",)).aux["attention_mass"]
        worth = np.asarray(mass).mean(0)[slots]
        gone = slots[np.argsort(-worth, kind="stable")[round(0.25 * len(slots)) :]]
        state = state.replace(valid=state.valid.at[jnp.asarray(gone)].set(False))
        wanted = vlm.forward(vlm.params, tail, state, logits_at=tail.length[None] - 1).logits[0]
        np.testing.assert_allclose(ours[0, question], wanted, atol=2e-4)


def test_tokens_that_a_question_reads_most_are_run_again(batch):
    """All of them are a recomputation of the whole, which epic does too; none is the window as it stands."""
    tails = batch.runner.tails([["which star ?"]] * 2)
    every, cost = filled(batch, "prophet:1")
    whole, _ = filled(batch, "epic:99")
    np.testing.assert_allclose(ask(batch.runner, every, tails), batch.runner.ask(whole, tails), atol=2e-4)
    assert cost.computed_tokens == batch.reused_tokens
    none, _ = filled(batch, "prophet:0")
    np.testing.assert_allclose(ask(batch.runner, none, tails), batch.runner.ask(batch.blind, tails), atol=1e-5)


def test_a_shift_is_the_mean_change_before_rotation(batch):
    """By hand, un-rotated by the positions where the tokens stand; with every token a probe it is running them all."""
    windows, cost = filled(batch, "shift:2")
    again, _ = filled(batch, "epic:99")
    every, _ = filled(batch, "shift:99")
    np.testing.assert_allclose(every.state.rot, again.state.rot, atol=1e-5)
    assert cost.computed_tokens == 4
    place = 1
    slots = batch.slots(place)
    rest = slots[1:-1]
    frequencies = np.asarray(batch.runner.vlm.spec.rope.inv_freq)
    positions = np.float64(batch.blind.state.positions)[0, 0]

    def turned(rows, slots, sign):
        heads = np.float64(rows).reshape(len(rows), len(slots), -1, 2 * len(frequencies))
        pairs = heads[..., : len(frequencies)] + 1j * heads[..., len(frequencies) :]
        pairs = pairs * np.exp(sign * 1j * positions[slots][None, :, None, None] * frequencies)
        return np.concatenate([pairs.real, pairs.imag], -1).reshape(len(rows), len(slots), -1)

    probes = slots[[0, -1]]
    ours = np.float64(windows.state.rot)[0]
    blind = np.float64(batch.blind.state.rot)[0]
    change = turned(ours[:, probes] - blind[:, probes], probes, -1).mean(1, keepdims=True)
    wanted = blind[:, rest] + turned(np.repeat(change, len(rest), 1), rest, 1)
    np.testing.assert_allclose(ours[:, rest], wanted, atol=1e-5)
    free = np.float64(windows.state.free)[0]
    still = np.float64(batch.blind.state.free)[0]
    moved = (free[:, probes] - still[:, probes]).mean(1, keepdims=True)
    np.testing.assert_allclose(free[:, rest], still[:, rest] + moved, atol=1e-5)


def test_caches_of_encoders_and_prefixes_are_full_prefill_at_other_costs(batch):
    full, whole = filled(batch, "full")
    for name in ("encoder-cache", "prefix-cache"):
        windows, cost = filled(batch, name)
        np.testing.assert_array_equal(windows.state.rot, full.state.rot)
        if name == "encoder-cache":
            assert cost.flops == whole.flops and cost.kept_bytes == 4 * sum(chunk.length for chunk in batch.chunks)
        else:
            assert cost.computed_tokens == batch.reused_tokens and cost.flops < whole.flops and cost.kept_bytes is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kvzip:0.5+epic:4", "have no slot for each"),
        ("keydiff:0.5+patch:4+select:0.5", "have no slot for each"),
        ("select:0.5+epic:4", "cannot stand in"),
        ("prefix-cache+patch:4", "cannot stand in"),
        ("kivi:4+encoder-cache", "cannot stand in"),
        ("kvzip+patch:4", "kvzip needs a share of rows"),
        ("merge:pivot+patch:4", "nothing to merge"),
        ("shift:0", "at least 1"),
        ("prophet:2", "needs a share"),
        ("prefix-cache:2", "is written prefix-cache"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)
