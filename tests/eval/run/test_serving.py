"""A context served by a method: its answers are those of an evaluation, its log-likelihoods those of prefill."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kamera_jax as kj
from eval.run import encoder
from eval.run.serving import Server
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.errors import ModelLengthError
from kamera_jax.forward import run
from kamera_jax.inference.encode import encode_segment
from models import load
from tests.models import tiny_ports

QUESTION = "what colour is the star?"
SAID = (" red", "blue", " the star is red.", "red red red red red red red red red red red red red red red red red")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return load(tiny_ports.write(tmp_path_factory.mktemp("model"), "gqa"))


@pytest.fixture(scope="module")
def items():
    pixels = np.random.default_rng(5).integers(0, 256, (56, 84, 3), np.uint8)
    return ["the star is red. the moon is blue.", Image.fromarray(pixels), "the sun is green."]


@pytest.fixture(scope="module")
def full(vlm):
    return Server(vlm, "full")


def direct(vlm, items, question, said):
    """Log-probabilities, float64, of all tokens by one forward over preamble, items, question and answer at once."""
    asked, answer = vlm.preprocess.answered(question, said)
    parts = [vlm.preamble, *map(vlm.prepare, items), segment_of(vlm, Tokens((*asked, *answer)))]
    rows: dict = {name: [] for part in parts for name in part.inputs}
    positions = []
    base = 0.0
    for part in parts:
        count = int(part.length)
        for name, kept in rows.items():
            like = next(each.inputs[name] for each in parts if name in each.inputs)
            own = part.inputs.get(name)
            kept.append(np.zeros((count, *like.shape[1:]), like.dtype) if own is None else np.asarray(own)[:count])
        positions.append(np.asarray(part.positions)[:, :count] + np.float32(base))
        base += float(part.advance)
    total = sum(int(part.length) for part in parts)
    more = 128 - total  # of one shape, so that one program serves all
    inputs = {name: np.concatenate([*kept, np.zeros((more, *kept[0].shape[1:]), kept[0].dtype)])
              for name, kept in rows.items()}  # fmt: skip
    where = np.pad(np.concatenate(positions, axis=1), ((0, 0), (0, more)))
    segment = jax.tree.map(jnp.asarray, kj.Segment(inputs, where, np.int32(total)))
    at = np.minimum(np.arange(24, dtype=np.int32) + total - len(answer) - 1, total - 2)
    logits = run(vlm.params, segment, None, at, forward=vlm.forward).logits
    logits = np.asarray(logits, np.float64)[: len(answer)]
    shifted = logits - logits.max(-1, keepdims=True)
    chances = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return chances[np.arange(len(answer)), answer].sum(), bool((logits.argmax(-1) == answer).all())


@pytest.mark.parametrize("shown", [3, 2, 0])
def test_log_likelihoods_are_those_of_one_forward_over_everything(vlm, items, full, shown):
    found = full.log_likelihoods(items[:shown], QUESTION, SAID)
    for said, (total, greedy) in zip(SAID, found, strict=True):
        wanted, best = direct(vlm, items[:shown], QUESTION, said)
        assert total == pytest.approx(wanted, abs=2e-4 * len(said)) and greedy is best


def test_what_is_generated_greedily_is_the_greedy_answer(full, items):
    (said,) = full.answers(items, [QUESTION], max_new_tokens=4)
    ((_, greedy),) = full.log_likelihoods(items, QUESTION, [said])
    tokens = full.vlm.preprocess.answered(QUESTION, said)[1]
    window = kj.prefill(full.vlm, items, capacity=128)
    answer = kj.generate(full.vlm, window, QUESTION, max_new_tokens=4, keep=False)
    assert said == answer.text and (greedy or list(answer.tokens) != tokens)


def test_an_answer_is_tokenized_behind_the_header(vlm):
    asked, said = vlm.preprocess.answered(QUESTION, "the star is red.")
    tail = vlm.tail(QUESTION)
    assert asked == np.asarray(tail.inputs["tokens"])[: int(tail.length)].tolist()
    assert vlm.decode(said) == "the star is red."


def test_methods_fill_as_they_do_in_an_evaluation(vlm, items):
    """Blind reuse and a whole patch: the public functions' answers, and full prefill's within rounding."""
    chunks = [kj.encode(vlm, item) for item in items]
    blind = kj.append(kj.append(kj.append(kj.Window.empty(vlm, 256), chunks[0]), chunks[1]), chunks[2])
    wanted = kj.generate(vlm, blind, QUESTION, max_new_tokens=5, keep=False)
    assert Server(vlm, "blind").answers(items, [QUESTION], max_new_tokens=5) == [wanted.text]
    full, patched, apart = (
        Server(vlm, name).log_likelihoods(items, QUESTION, SAID[:2]) for name in ("full", "patch:64", "blind")
    )
    assert [total for total, _ in patched] == pytest.approx([total for total, _ in full], abs=1e-3)
    assert [total for total, _ in apart] != pytest.approx([total for total, _ in full], abs=1e-3)


def test_questions_about_one_context_are_asked_together_and_it_is_filled_once(vlm, items, monkeypatch):
    ran = []

    def encoded(vlm, segment):
        ran.append(segment.content)
        return encode_segment(vlm, segment)

    monkeypatch.setattr(encoder, "encode_segment", encoded)
    server = Server(vlm, "patch:4")
    filled = []
    fill = server._filled
    monkeypatch.setattr(server, "_filled", lambda chunks: filled.append(len(chunks)) or fill(chunks))
    other = "what colour is the moon?"
    both = server.answers(server.read(items), [QUESTION, other], max_new_tokens=3)
    each = [server.answers(items, [text], max_new_tokens=3)[0] for text in (QUESTION, other)]
    assert both == each and filled == [3] and len(ran) == 3
    server.answers([items[1], items[0]], [QUESTION], max_new_tokens=1)
    assert filled == [3, 2] and len(ran) == 3


def test_drawing_takes_a_key_and_stop_texts_end_an_answer(full, items):
    given = {"max_new_tokens": 6, "temperature": 1.0}
    drawn = [full.answers(items, [QUESTION], key=jax.random.key(seed), **given)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    (whole,) = full.answers(items, [QUESTION], max_new_tokens=6)
    mark = whole[1:3]
    assert full.answers(items, [QUESTION], max_new_tokens=6, stop=[mark]) == [whole[: whole.index(mark)]]


def test_what_is_not_served_is_named(vlm, full, items):
    with pytest.raises(ValueError, match="waits for the question"):
        Server(vlm, "patch:4+select:0.5")
    with pytest.raises(ValueError, match="did you mean patch"):
        Server(vlm, "pach:4")
    with pytest.raises(ValueError, match="the answer '' has no tokens"):
        full.log_likelihoods(items, QUESTION, [""])
    with pytest.raises(ValueError, match="question is empty"):
        full.answers(items, [" "], max_new_tokens=1)


def test_an_answer_is_no_longer_than_the_model(full, items, tmp_path):
    limit = int(full._end(full._encode(items))) + int(full.vlm.tail(QUESTION).length) + 3
    folder = tiny_ports.write(tmp_path, "gqa")
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = limit
    (folder / "config.json").write_text(json.dumps(config))
    server = Server(load(folder), "full")
    (said,) = server.answers(items, [QUESTION], max_new_tokens=1000)
    assert said == full.answers(items, [QUESTION], max_new_tokens=3)[0]
    with pytest.raises(ModelLengthError):
        server.log_likelihoods(items, QUESTION, [SAID[3]])
    with pytest.raises(ModelLengthError):
        server.answers(items * 2, [QUESTION], max_new_tokens=1)
