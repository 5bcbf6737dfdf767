"""Answers that are generated, on the embedded model: they are scored, written, resumed and scored again."""

import json

import numpy as np
import pytest

import kamera_jax as kj
from eval import tasks
from eval.methods import Batch, parse
from eval.run import answering, runner
from eval.run.folder import CONTEXTS, RESULTS, SAMPLES
from eval.tasks import Context, Outline, Question
from eval.tasks.answers import f1
from kamera_jax.batch.windows import BatchRunner, Stack
from models import load

MODEL = "kamera-tiny-gqa"
SAID = ("what colour is the star?", "what colour is the moon?")
LONG = "what colour is the star? " * 6


@pytest.fixture(scope="module")
def vlm():
    return load(MODEL)


class Passages:
    """Passages, and questions of very different lengths about them; each context has another answer."""

    name = "passages"
    version = 1
    contexts = 2
    max_new_tokens = 3
    colours = ("red", "blue", "green", "pink")

    def outline(self, seeds, limit):
        return [Outline(f"{seed}-{i}", "passages", seed) for seed in seeds for i in range(limit)]

    def draw(self, outline):
        place = int(outline.context.rpartition("-")[2])
        star, moon = (self.colours[(place + i) % len(self.colours)] for i in (0, 1))
        questions = [Question(text, [star]) for text in (SAID[0], LONG)] + [Question(SAID[1], [moon, "é"])]
        return Context([f"a {star} star.", f"a {moon} moon."], questions)

    def score(self, question, said):
        return {"f1": f1(said, question.answers), "letters": float(len(said))}

    def findings(self, scores):
        return []


@pytest.fixture
def passages(monkeypatch):
    """The task under a name of its own."""
    task = Passages()
    monkeypatch.setitem(tasks.TASKS, "passages", task)
    return task


RUN = runner.Run("passages", MODEL, ("patch:4",), seeds=(0, 1), limit=2, batch=1)


def content(folder):
    return {name: (folder / name).read_bytes() for name in (RESULTS, CONTEXTS, SAMPLES)}


def lines(folder, name=SAMPLES):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_answers_are_those_of_generate(vlm, passages):
    """Of full prefill, and of blind reuse: the same as through the public functions, one window at a time."""
    contexts = [passages.draw(outline) for outline in passages.outline([0], 2)]
    chunks = [[kj.encode(vlm, item) for item in context.items] for context in contexts]
    stacks = [Stack.of(place) for place in zip(*chunks, strict=True)]
    batch = Batch.of(*(BatchRunner(model, capacity=48) for model in (vlm, vlm.leading(2))), stacks)
    for name in ("full", "blind"):
        method = parse(name)
        windows = method.fill(batch, method.prepare(batch))
        answers = answering.generated(batch, chunks, windows, contexts, 3)
        logits = batch.runner.ask(windows, answering.stacked_tails(vlm, contexts))
        for e, context in enumerate(contexts):
            window = kj.prefill(vlm, list(context.items), capacity=256)
            if name == "blind":
                window = kj.Window.empty(vlm, capacity=256)
                for chunk in chunks[e]:
                    window = kj.append(window, chunk)
            for q, question in enumerate(context.questions):
                alone = kj.generate(vlm, window, question.text, max_new_tokens=3)
                assert answers[e][q] == alone.text
                expected = np.asarray(kj.query(vlm, window, question.text))
                assert np.abs(np.asarray(logits[e, q]) - expected).max() < 1e-3
        assert answers[0][0] == "red" and answers[1][0] == "blue"


def test_a_run_of_generated_answers_goes_on_where_it_was_stopped(vlm, passages, tmp_path, monkeypatch):
    unbroken = runner.evaluate(vlm, RUN, tmp_path / "unbroken")
    samples = lines(tmp_path / "unbroken")
    assert len(samples) == 2 * 2 * 3 and {tuple(sample["methods"]) for sample in samples} == {
        ("full", "blind", "patch:4")
    }
    cell = unbroken["scores"]["methods"]["full"]["hops"]["1"]
    said = [sample["methods"]["full"]["said"] for sample in samples]
    assert cell["letters"] == round(np.mean([len(each) for each in said]), 6)
    right = [f1(each, sample["answers"]) for each, sample in zip(said, samples, strict=True)]
    assert cell["f1"] == round(np.mean(right), 6) >= 0.5
    assert unbroken["scores"]["measures"] == ["f1", "letters"] and cell["errors"]["f1"] == cell["error"]
    assert unbroken["config"]["max_new_tokens"] == 3

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(vlm, RUN, tmp_path / "stopped", stop)
    assert len(lines(tmp_path / "stopped")) == 3
    with pytest.raises(ValueError, match="was stopped, with 1 of 4 contexts"):
        runner.rescore(tmp_path / "stopped")
    runner.evaluate(vlm, RUN, tmp_path / "stopped")
    assert content(tmp_path / "stopped") == content(tmp_path / "unbroken")

    changed = lines(tmp_path / "stopped")
    for sample, answer in zip(changed, ["", "röd \u2028 \ud83d\ude00"] * 6, strict=True):
        sample["methods"]["blind"]["said"] = answer
    (tmp_path / "stopped" / SAMPLES).write_text("".join(json.dumps(sample) + "\n" for sample in changed))
    monkeypatch.setattr("models.load", lambda *_: pytest.fail("a model was loaded"))
    again = runner.rescore(tmp_path / "stopped", "passages")["scores"]["methods"]
    assert again["blind"]["hops"]["1"]["f1"] == 0 and again["blind"]["hops"]["1"]["letters"] == 3.5
    assert again["full"]["hops"] == unbroken["scores"]["methods"]["full"]["hops"]
    with pytest.raises(ValueError, match="a run of passages, not of binding"):
        runner.rescore(tmp_path / "stopped", "binding")
    monkeypatch.setattr(Passages, "version", 2)
    with pytest.raises(ValueError, match="version 1 of passages, which is now version 2"):
        runner.rescore(tmp_path / "stopped")


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        ([Context(["a red star."], [Question(SAID[0], ["red"])])], "1 items and 1 questions; expected at least two"),
        ([Context(["a", "b"], [])], "2 items and 0 questions"),
        (
            [Context(["a", "b"], [Question("?", ["c"])] * n) for n in (1, 2)],
            "'0-0' and '0-1' .* the layout 'passages', and 2 and 2 items, 1 and 2 questions",
        ),
        (
            [Context(["a red star.", text], [Question("?", ["c"])]) for text in ("a blue moon.", "a moon.")],
            r"chunks of \[\d+, \d+\] and \[\d+, \d+\] tokens",
        ),
    ],
)
def test_contexts_that_cannot_be_run_are_refused(vlm, passages, monkeypatch, tmp_path, contexts, message):
    monkeypatch.setattr(Passages, "draw", lambda self, outline: contexts[int(outline.context[-1]) % len(contexts)])
    run = runner.Run("passages", MODEL, (), seeds=(0,), limit=2, batch=2)
    with pytest.raises(tasks.InvalidTaskError, match=message):
        runner.evaluate(vlm, run, tmp_path / "run")


@pytest.mark.parametrize(
    ("outlines", "message"),
    [
        ([], "no contexts"),
        ([Outline("0", "a", 0), Outline("0", "b", 0)], "two contexts with the id '0'"),
    ],
)
def test_outlines_that_cannot_be_run_are_refused(vlm, passages, monkeypatch, tmp_path, outlines, message):
    monkeypatch.setattr(Passages, "outline", lambda self, seeds, limit: outlines)
    with pytest.raises(tasks.InvalidTaskError, match=message):
        runner.evaluate(vlm, RUN, tmp_path / "run")
    assert not (tmp_path / "run").exists()
