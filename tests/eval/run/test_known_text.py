"""Text that is known behind the window, run and scored: against forwards over all tokens together."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import kamera_jax as kj
from eval import tasks
from eval.methods import Batch, parse
from eval.report import evaluation as evaluation_report
from eval.run import answering, runner, scores
from eval.run.folder import CONTEXTS, RESULTS, SAMPLES
from eval.tasks import Context, InvalidTaskError, Outline, Question
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.inference.encode import encode_segment
from models import load

MODEL = "kamera-tiny-gqa"


@pytest.fixture(scope="module")
def vlm():
    return load(MODEL)


def drawn_ids(seed, count):
    """Token ids of words, none of them special."""
    return np.random.default_rng(seed).integers(9, 100, count).tolist()


class Known:
    """Two chunks of token ids, and behind them two texts: one read at three of its tokens, one at its end."""

    name = "known"
    version = 1
    contexts = 3
    max_new_tokens = 1
    sources = {"texts": "made up", "version": "1.2"}

    def outline(self, seeds, limit):
        return [Outline(f"{seed}/{i}", "known", seed) for seed in seeds for i in range(limit)]

    def draw(self, outline):
        ids = drawn_ids(int(outline.context.rpartition("/")[2]), 60)
        longer = ids[40:48]
        shorter = ids[50:53]
        asked = [(longer, 0), (shorter, -1), (longer, 6), (longer, 3)]
        questions = [
            Question(f"{i}", ["?"], condition="ab"[i % 2], tail=tail, at=at, next_token=int(ids[20 + i]))
            for i, (tail, at) in enumerate(asked)
        ]
        return Context([Tokens.of(ids[:21]), Tokens.of(ids[21:40])], questions)

    def score(self, question, said):
        raise AssertionError("known text is scored by its tokens")

    def findings(self, scores):
        return []


@dataclass
class Moved(Known):
    """The same, with patches that were formed behind other chunks, for the first chunk too."""

    name = "moved"

    def draw(self, outline):
        context = super().draw(outline)
        strangers = [Tokens.of(drawn_ids(7, 12)), Tokens.of(drawn_ids(8, 9))]
        return Context(context.items, context.questions, [strangers[:1], strangers])


class Remembered(Known):
    """The same, in a window that two chunks have left; and which of three tokens it is, is asked too."""

    name = "remembered"

    def draw(self, outline):
        context = super().draw(outline)
        questions = [
            replace(each, among=(each.next_token, 7, (each.next_token + 1) % 90)) for each in context.questions
        ]
        history = [Tokens.of(drawn_ids(10 + int(outline.context[-1]), 14)), Tokens.of(drawn_ids(9, 20))]
        return Context(context.items, questions, history=history)


@pytest.fixture
def known(monkeypatch):
    """The tasks under names of their own."""
    for task in (Known(), Moved(), Remembered()):
        monkeypatch.setitem(tasks.TASKS, task.name, task)
    return tasks.TASKS["known"]


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def whole(vlm, context, question):
    """log p of the next token, from one forward of preamble, chunks and the text up to there, without a window."""
    ids = np.asarray(vlm.preamble.inputs["tokens"])[: int(vlm.preamble.length)].tolist()
    ids += [token for item in context.items for token in item.ids]
    ids += list(question.tail[: question.at % len(question.tail) + 1])
    segment = segment_of(vlm, Tokens.of(ids))
    return log_softmax(vlm.forward(vlm.params, segment, None, logits_at=jnp.asarray([len(ids) - 1], jnp.int32)).logits)[
        0
    ]


def windowed(vlm, window, question):
    """log p of the next token, from a forward of the text up to there on a window."""
    tail = segment_of(vlm, Tokens.of(question.tail[: question.at % len(question.tail) + 1]))
    at = jnp.asarray([int(tail.length) - 1], jnp.int32)
    return log_softmax(vlm.forward(vlm.params, tail.at(window.next_position), window.state, logits_at=at).logits)[0]


def chunks_of(vlm, items):
    return [encode_segment(vlm, segment_of(vlm, item)) for item in items]


def filled(vlm, chunks, patches):
    window = kj.Window.empty(vlm, 256)
    for chunk, patch in zip(chunks, patches, strict=True):
        window = kj.append(window, chunk, patch, as_it_stood=True) if patch is not None else kj.append(window, chunk)
    return window


def lines(folder):
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


def test_every_token_is_scored_as_one_forward_of_all_tokens_scores_it(vlm, known, tmp_path, capsys):
    """NLL, likeliest token and KL, of full prefill, of blind reuse and of a patch, each against its own forward."""
    run = runner.Run("known", MODEL, ("patch:3",), seeds=(0,), limit=3, batch=2, repeats=1)
    results = runner.evaluate(vlm, run, tmp_path / "run")
    samples = iter(lines(tmp_path / "run"))
    right = []
    lost = []
    for outline in known.outline([0], 3):
        context = known.draw(outline)
        chunks = chunks_of(vlm, context.items)
        patch = kj.form_patch(vlm, chunks[1], antecedents=chunks[:1], rank=3)
        windows = {"blind": filled(vlm, chunks, [None, None]), "patch:3": filled(vlm, chunks, [None, patch])}
        for question in context.questions:
            sample = next(samples)
            reference = whole(vlm, context, question)
            found = {"full": reference} | {name: windowed(vlm, window, question) for name, window in windows.items()}
            for name, log_p in found.items():
                own = sample["methods"][name]
                assert own["token"] == log_p.argmax() and own["nll"] == pytest.approx(
                    -log_p[question.next_token], abs=2e-4
                )
                expected = (np.exp(reference) * (reference - log_p)).sum()
                assert own["kl"] == pytest.approx(expected, abs=2e-4)
                assert own["said"] == (vlm.decode([own["token"]]) or f"<token {own['token']}>")
            assert sample["next_token"] == question.next_token
            lost.append(sample["methods"]["blind"]["kl"])
            right.append(-reference[question.next_token])
    assert max(lost) > 0.01
    cell = results["scores"]["methods"]["full"]["hops"]["1"]
    assert results["scores"]["measures"] == ["accuracy", "so far", "nll"] and cell["samples"] == 12
    assert cell["nll"] == pytest.approx(np.mean(right), abs=2e-4)
    assert results["sources"] == Known.sources
    before = (tmp_path / "run" / RESULTS).read_bytes()
    runner.rescore(tmp_path / "run")
    assert (tmp_path / "run" / RESULTS).read_bytes() == before  # the sources stay
    (report,) = evaluation_report.load(tmp_path / "run")
    assert evaluation_report.columns(report["scores"])[:5] == ("method", "accuracy", "so far", "nll", "KL")
    evaluation_report.print_report(report, Console(width=80))
    shown = capsys.readouterr().out
    assert "Against full prefill" in shown and "…" not in shown
    figures = evaluation_report.draw([report], tmp_path / "figures")
    page = evaluation_report.page([report], figures, tmp_path)
    assert all(path.is_file() for path in figures.values()) and f"{cell['nll']:.3f}" in page


def test_other_sources_are_another_run(vlm, known, tmp_path, monkeypatch):
    run = runner.Run("known", MODEL, (), seeds=(0,), limit=1, repeats=1)
    runner.evaluate(vlm, run, tmp_path / "run")
    monkeypatch.setattr(Known, "sources", {"texts": "made up", "version": "1.3"})
    with pytest.raises(ValueError, match=r"another run: .*version is '1.2' there, '1.3' here"):
        runner.evaluate(vlm, run, tmp_path / "run")


@pytest.mark.parametrize("any_order", [False, True])
def test_patches_are_formed_behind_what_the_context_says(vlm, known, any_order):
    """As through the public functions, window by window; the first chunk has one too."""
    task = tasks.TASKS["moved"]
    contexts = [task.draw(outline) for outline in task.outline([0], 2)]
    chunks = [chunks_of(vlm, context.items) for context in contexts]
    behind = [[chunks_of(vlm, own) for own in context.antecedents] for context in contexts]
    stacks = [Stack.of(place) for place in zip(*chunks, strict=True)]
    antecedents = {
        place: [Stack.of(own) for own in zip(*(each[place] for each in behind), strict=True)] for place in (0, 1)
    }
    runners = [BatchRunner(model, capacity=128) for model in (vlm, vlm.leading(2))]
    batch = Batch.of(*runners, stacks, antecedents, any_order)
    asked = answering.asked_of(vlm, contexts)
    for name, size in (("patch:3", {"rank": 3}), ("patch:6%", {"max_bytes": 0.06})):
        method = parse(name)
        prepared = method.prepare(batch)
        logits = asked.logits(batch.runner, method.fill(batch, prepared))
        stored = method.cost(batch, prepared).stored_bytes
        for e, context in enumerate(contexts):
            patches = []
            for chunk, own in zip(chunks[e], behind[e], strict=True):
                bytes_ = int(0.06 * chunk.length * vlm.spec.token_bytes)
                wanted = {"max_bytes": bytes_} if "max_bytes" in size else size
                patches.append(kj.form_patch(vlm, chunk, antecedents=own, any_order=any_order, **wanted))
            assert stored[e] == sum(
                kj.patch.nbytes(each.factors, chunk.length) for each, chunk in zip(patches, chunks[e], strict=True)
            )
            window = filled(vlm, chunks[e], patches)
            for q, question in enumerate(context.questions):
                expected = windowed(vlm, window, question)
                assert np.abs(log_softmax(logits[e, q]) - expected).max() < 2e-3, name
    assert (jax.tree.leaves(prepared[0])[0] != 0).any()


def test_a_run_with_antecedents_is_whole(vlm, known, tmp_path):
    """Without times: the lines are those of a run that measures them, and the report shows none."""
    methods = ("patch:3", "epic:2", "oracle-tokens:0.5")
    run = runner.Run("moved", MODEL, methods, seeds=(0,), limit=3, batch=2, repeats=0)
    results = runner.evaluate(vlm, run, tmp_path / "run")
    assert results["complete"] and len(lines(tmp_path / "run")) == 12
    written = (tmp_path / "run" / CONTEXTS).read_text().splitlines()
    stored = [json.loads(line)["methods"]["patch:3"]["bytes"] for line in written]
    assert {json.loads(line)["reused_bytes"] for line in written} == {(21 + 19) * vlm.spec.token_bytes}
    assert {json.loads(line)["reused_tokens"] for line in written} == {19}
    features = vlm.spec.token_bytes // vlm.spec.layers // 4
    assert max(stored) <= 3 * vlm.spec.layers * (21 + 19 + 2 * features) * 4 and min(stored) > 0
    (report,) = evaluation_report.load(tmp_path / "run")
    assert [row[-1] for row in evaluation_report.rows(report)] == ["–"] * 5
    evaluation_report.draw([report], tmp_path / "figures")
    runner.evaluate(vlm, replace(run, repeats=1), tmp_path / "timed")
    assert lines(tmp_path / "timed") == lines(tmp_path / "run")


def test_what_has_left_the_window_is_remembered_by_the_reference(vlm, known, tmp_path):
    """KL of full prefill and of blind reuse is to the prefill of everything, what has left being hidden at the end."""
    methods = ("full", "blind", "patch:3")
    run = runner.Run("remembered", MODEL, methods, seeds=(0,), limit=3, batch=2, repeats=0)
    results = runner.evaluate(vlm, run, tmp_path / "run")
    samples = iter(lines(tmp_path / "run"))
    task = tasks.TASKS["remembered"]
    lost = []
    for outline in task.outline([0], 3):
        context = task.draw(outline)
        chunks = chunks_of(vlm, context.items)
        everything = kj.prefill(vlm, chunks_of(vlm, [*context.history, *context.items]))
        seen = np.asarray(everything.state.valid).copy()
        for entry in everything.entries[:2]:
            seen[entry.slot : entry.slot + entry.chunk.length] = False
        state = replace(everything.state, valid=jnp.asarray(seen))
        reference = replace(everything, state=state)
        present = {"full": kj.prefill(vlm, chunks), "blind": filled(vlm, chunks, [None, None])}
        for question in context.questions:
            sample = next(samples)
            true = windowed(vlm, reference, question)
            for name, window in present.items():
                log_p = windowed(vlm, window, question)
                assert sample["methods"][name]["kl"] == pytest.approx((np.exp(true) * (true - log_p)).sum(), abs=2e-4)
                likeliest = max(question.among, key=log_p.__getitem__)
                assert sample["methods"][name]["chosen"] == likeliest
            lost.append(sample["methods"]["full"]["kl"])
    assert max(lost) > 0.01  # the present reference is another one
    assert results["scores"]["measures"] == ["accuracy", "so far", "nll", "choice"]
    written = [sample["methods"]["blind"]["chosen"] == sample["next_token"] for sample in lines(tmp_path / "run")]
    assert results["scores"]["methods"]["blind"]["hops"]["1"]["choice"] == pytest.approx(np.mean(written), abs=1e-6)


def test_histories_of_a_layout_are_of_equal_lengths(vlm, known, monkeypatch, tmp_path):
    def draw(self, outline):
        context = Known.draw(self, outline)
        return Context(
            context.items, context.questions, history=[Tokens.of(drawn_ids(1, 5 + int(outline.context[-1])))]
        )

    monkeypatch.setattr(Remembered, "draw", draw)
    run = runner.Run("remembered", MODEL, (), seeds=(0,), limit=2, batch=2, repeats=0)
    with pytest.raises(InvalidTaskError, match=r"histories of \[5\] and \[6\] tokens"):
        runner.evaluate(vlm, run, tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 2}, "known tail, and the task's max_new_tokens is 2"),
        ({"uneven": True}, r"antecedents of \[0, 1\] and \[1, 1\] chunks"),
    ],
)
def test_contexts_that_cannot_be_run_are_refused(vlm, known, monkeypatch, tmp_path, changed, message):
    if "uneven" in changed:
        stranger = Tokens.of([9, 10])

        def draw(self, outline):
            context = Known.draw(self, outline)
            first = [stranger] if outline.context.endswith("1") else []
            return Context(context.items, context.questions, [first, [stranger]])

        monkeypatch.setattr(Moved, "draw", draw)
    else:
        monkeypatch.setattr(Moved, "max_new_tokens", 2, raising=False)
    run = runner.Run("moved", MODEL, (), seeds=(0,), limit=2, batch=2, repeats=1)
    with pytest.raises(InvalidTaskError, match=message):
        runner.evaluate(vlm, run, tmp_path / "run")


def test_texts_and_known_tails_can_be_asked_of_one_window(vlm):
    """A question in the chat template and known text, together; the same text asked twice is run once."""
    items = [Tokens.of(drawn_ids(1, 16)), Tokens.of(drawn_ids(2, 16))]
    tail = drawn_ids(3, 5)
    questions = [
        Question("what colour is the star?", ["red"]),
        Question("known", ["?"], tail=tail, at=2, next_token=12),
        Question("what colour is the moon?", ["red"]),
    ]
    chunks = chunks_of(vlm, items)
    batch = BatchRunner(vlm)
    window = filled(vlm, chunks, [None, None])
    asked = answering.asked_of(vlm, [Context(items, [*questions, questions[0]])])
    assert asked.tails.positions.shape[:2] == (1, 3)
    logits = asked.logits(batch, batch.reuse([Stack.of([chunk]) for chunk in chunks], [None, None]))
    for q in (0, 2, 3):
        expected = np.asarray(kj.query(vlm, window, [*questions, questions[0]][q].text))
        assert np.abs(np.asarray(logits[0, q]) - expected).max() < 1e-3
    assert np.abs(log_softmax(logits[0, 1]) - windowed(vlm, window, questions[1])).max() < 1e-3


def test_scores_of_known_text_are_plain_means():
    """By token ids: what is said may be the same text for two; a run of right ones ends at the first wrong one."""
    rows = [(5, 5, 0.5), (5, 6, 2.0), (7, 5, 0.25), (7, 7, 4.0)]
    samples = []
    for i, (target, token, nll) in enumerate(rows):
        answers = {
            name: {"said": "x", "token": own, "nll": nll, "kl": 0.1}
            for name, own in (("full", target), ("blind", token))
        }
        samples.append(
            {"id": str(i), "context": str(i // 2), "seed": 0, "chunks": 2, "methods": answers}
            | {"follows": [0, i % 2]}
            | Question("?", ["x"], condition="ab"[i // 2], tail=(1,), next_token=target).record()
        )
    method = {"bytes": 1.0, "computed_tokens": 1.0, "flops": 1.0, "kv_error": [0.0]}
    contexts = [
        {
            "id": str(i),
            "tokens": 9,
            "reused_tokens": 5,
            "reused_bytes": 9.0,
            "methods": dict.fromkeys(("full", "blind"), method),
        }
        | {"absorbed": {"components": [[1.0]], "tokens": [[1.0]]}}
        for i in range(2)
    ]
    found = scores.score(Known(), ("full", "blind"), contexts, samples)
    blind = found["methods"]["blind"]
    assert blind["hops"]["1"]["accuracy"] == 0.5 and blind["hops"]["1"]["nll"] == 1.6875
    assert blind["conditions"]["a"]["1"]["nll"] == 1.25 and blind["conditions"]["b"]["1"]["accuracy"] == 0.5
    assert blind["conditions"]["a"]["1"]["so far"] == 0.5 and blind["conditions"]["b"]["1"]["so far"] == 0
    assert found["flips"] == 2 and found["methods"]["full"]["hops"]["1"]["accuracy"] == 1
    del samples[1]["next_token"]
    with pytest.raises(InvalidTaskError, match="every question needs the same scores"):
        scores.score(tasks.get("binding"), ("full", "blind"), contexts, samples)
