"""Tasks on real text, drawn for an embedded model from texts of its own words."""

from itertools import groupby

import jax.numpy as jnp
import numpy as np
import pytest

from eval import tasks
from eval.tasks import Context, InvalidTaskError, Question
from eval.tasks.settings import SettingError
from eval.tasks.text import page_break
from eval.tasks.text.corpus import CorpusError
from eval.tasks.text.moving import ORBIT, WINDOW
from eval.tasks.text.quotation import PLACES
from eval.tasks.text.reader import CorpusTooSmallError
from eval.tasks.text.task import AHEAD
from eval.tasks.tokens import Tokens, segment_of
from eval.tiny.vocabulary import VOCABULARY
from models import load

TEXTS = {
    "continuation": "tokens=16+24",
    "quotation": "tokens=36",
    "page-break": "tokens=24",
    "needs-context": "tokens=16,ahead=8",
    "induction": "tokens=6,documents=2",
    "orders": "tokens=16",
    "slide": "tokens=16,passages=8",
    "recall": "tokens=16",
}


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts of words that the model has; they differ, so that a passage is where it is found."""
    path = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = [word for word in VOCABULARY if word.isalpha()]
    for number in range(3):
        paragraphs = [" ".join(rng.choice(words, rng.integers(5, 12))) for _ in range(120)]
        (path / f"{number}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def named(folder):
    return lambda name: f"{name}:{TEXTS[name]},corpus={folder}"


def drawn(task, seeds=(0,), limit=12):
    return [(outline, task.draw(outline)) for outline in task.outline(list(seeds), limit)]


@pytest.mark.parametrize("name", TEXTS)
def test_contexts_of_a_layout_run_together(vlm, named, name):
    """Equal lengths and counts, and the same contexts when the task is made again."""
    contexts = drawn(tasks.for_model(tasks.get(named(name)), vlm))
    assert contexts == drawn(tasks.for_model(tasks.get(named(name)), vlm))
    by_layout = sorted(contexts, key=lambda pair: pair[0].layout)
    for _, pairs in groupby(by_layout, key=lambda pair: pair[0].layout):
        shapes = {
            (
                tuple(len(item.ids) for item in context.items),
                tuple(tuple(len(item.ids) for item in behind) for behind in context.antecedents),
                len(context.questions),
            )
            for _, context in pairs
        }
        assert len(shapes) == 1
    for _, context in contexts:
        for question in context.questions:
            assert question.next_token is not None
            assert question.answers == (vlm.decode([question.next_token]) or f"<token {question.next_token}>",)
    assert tasks.for_model(tasks.get(named(name)), vlm).sources["documents"] == "3"


def whole_of(vlm, folder):
    """All documents as one text of token ids, for passages to be found in."""
    ids = []
    for path in sorted(folder.iterdir()):
        segment = vlm.prepare(path.read_text(encoding="utf-8"))
        ids += np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist()
    return ids


def places(ids, part):
    part = list(part)
    return [i for i in range(len(ids) - len(part) + 1) if ids[i : i + len(part)] == part]


def followed(questions):
    """The text that questions in a row are about."""
    tails = {question.tail for question in questions}
    assert len(tails) == 1 and [question.at for question in questions] == list(range(len(questions)))
    (tail,) = tails
    assert [question.next_token for question in questions[:-1]] == list(tail[1:])
    return [*tail, questions[-1].next_token]


@pytest.mark.parametrize("name", ["continuation", "needs-context", "slide"])
def test_what_is_asked_is_how_the_text_goes_on(vlm, folder, named, name):
    whole = whole_of(vlm, folder)
    for _, context in drawn(tasks.for_model(tasks.get(named(name)), vlm), limit=4):
        text = [token for item in context.items for token in item.ids] + followed(context.questions)
        assert places(whole, text)


def test_a_quotation_goes_on_as_the_passage_does(vlm, named):
    for _, context in drawn(tasks.for_model(tasks.get(named("quotation")), vlm), limit=4):
        passage, copy = (list(item.ids) for item in context.items)
        copied = len(passage) // 2
        assert copy[-copied:] == passage[:copied]
        assert followed(context.questions) == passage[copied : copied + 17]
        assert [question.condition for question in context.questions] == [
            name for name, numbers in PLACES.items() for _ in numbers
        ]


def test_a_border_cuts_each_fact_once(vlm, named):
    """The question is the end of one chunk, and the answer how the next begins."""
    for _, context in drawn(tasks.for_model(tasks.get(named("page-break")), vlm), limit=4):
        assert len(context.questions) == len(context.items) - 1
        for question, before, after in zip(context.questions, context.items, context.items[1:], strict=False):
            assert before.ids[-len(question.tail) :] == question.tail
            assert after.ids[0] == question.next_token and question.at == len(question.tail) - 1


def test_words_that_a_model_says_unread_end_no_fact(vlm, named, monkeypatch):
    """A word that is likely behind a beginning, with nothing before that, is passed over."""
    reader = tasks.for_model(tasks.get(named("page-break")), vlm).reader
    texts = [text for beginning, words in page_break.FACTS for text in (beginning, *words.split())]
    ids = {text: [number] for number, text in enumerate(dict.fromkeys(texts))}
    monkeypatch.setattr(reader, "ids", lambda text: ids[text.strip()])
    last = {ids[beginning][0]: ids[words.split()[-1]] for beginning, words in page_break.FACTS}

    def unprompted(read):
        """All words but the last one of a beginning are said behind it."""
        likely = np.full(len(ids), page_break.GUESSED)
        likely[last[read[0]]] = page_break.GUESSED - 1e-6
        return likely

    monkeypatch.setattr(reader, "unprompted", unprompted)
    for seed in range(5):
        facts = page_break.drawn_facts(reader, np.random.default_rng(seed), 3, " ")
        assert len({beginning[0] for beginning, _ in facts}) == 3
        assert all(word == last[beginning[0]] for beginning, word in facts)
    monkeypatch.setattr(reader, "unprompted", lambda read: np.zeros(len(ids)))
    drawn_words = {page_break.drawn_facts(reader, np.random.default_rng(seed), 1, " ")[0][1][0] for seed in range(40)}
    assert len(drawn_words) > 10
    monkeypatch.setattr(reader, "unprompted", lambda read: np.full(len(ids), 0.02))
    with pytest.raises(SettingError, match="without having read it, with a probability of 1%"):
        page_break.drawn_facts(reader, np.random.default_rng(0), 1, " ")


def test_what_a_model_says_unprompted_is_behind_its_preamble_alone(vlm, named):
    reader = tasks.for_model(tasks.get(named("page-break")), vlm).reader
    ids = reader.ids("colour is the star")
    before = np.asarray(vlm.preamble.inputs["tokens"])[: int(vlm.preamble.length)].tolist()
    at = jnp.asarray([len(before) + len(ids) - 1], jnp.int32)
    whole = segment_of(vlm, Tokens.of([*before, *ids]))
    logits = np.asarray(vlm.forward(vlm.params, whole, None, logits_at=at).logits, np.float64)[0]
    expected = np.exp(logits - logits.max())
    assert np.abs(reader.unprompted(ids) - expected / expected.sum()).max() <= 1e-5


def test_a_header_is_followed_by_its_own_text(vlm, named):
    for _, context in drawn(tasks.for_model(tasks.get(named("induction")), vlm), limit=4):
        (question,) = context.questions
        headers = [item.ids for item in context.items[::2]]
        bodies = [item.ids for item in context.items[1::2]]
        assert len({body[0] for body in bodies}) == len(bodies)
        (asked,) = (body for header, body in zip(headers, bodies, strict=True) if header == question.tail)
        assert question.next_token == asked[0]
        assert question.among == tuple(body[0] for body in bodies)


def test_all_orders_of_a_set_are_met(vlm, folder, named):
    """Of two and three passages; the text goes on behind the last, with a passage's own continuation."""
    whole = whole_of(vlm, folder)
    task = tasks.for_model(tasks.get(named("orders")), vlm)
    pairs = drawn(task, limit=4 * 6)
    for condition, count in zip(task.conditions, (2, 2, 6, 6), strict=True):
        own = [context for outline, context in pairs if outline.layout == condition][:count]
        assert len({tuple(context.items) for context in own}) == count
        assert len({frozenset(context.items) for context in own}) == 1
        for context in own:
            assert places(whole, [*context.items[-1].ids, *followed(context.questions)])
            assert bool(context.antecedents) == condition.endswith(ORBIT)
        behind = {}
        for context in own:  # the same patch in every order, formed behind the same chunks; none for the first
            if context.antecedents:
                assert context.antecedents[0] == []
            for item, before in zip(context.items[1:], context.antecedents[1:], strict=False):
                assert behind.setdefault(item, before) == before and set(before) == set(context.items) - {item}
        assert len(behind) == (len(own[0].items) if condition.endswith(ORBIT) else 0)


def test_a_sliding_window_keeps_the_patches_of_passages_as_they_entered(vlm, named):
    task = tasks.for_model(tasks.get(named("slide")), vlm)
    contexts = [context for _, context in drawn(task, limit=task._steps)]
    assert len(contexts) == 8 - WINDOW + 1
    text = [*(context.items[0] for context in contexts), *contexts[-1].items[1:]]
    for step, context in enumerate(contexts):
        assert list(context.items) == text[step : step + WINDOW]
        for place, behind in enumerate(context.antecedents, start=step):
            assert list(behind) == text[max(0, place - WINDOW + 1) : place]
        assert list(context.history) == []
    with pytest.raises(CorpusTooSmallError, match=r"passages of 161 tokens of it .* are needed for each seed"):
        task.outline([0], 60 * task._steps)
    remembered = tasks.for_model(tasks.get(f"{named('slide')},reference=history"), vlm)
    for step, (outline, context) in enumerate(drawn(remembered, limit=task._steps)):
        assert list(context.history) == text[:step] and outline.layout == f"slide, step {step}"
        assert (context.items, context.questions) == (contexts[step].items, contexts[step].questions)


def test_a_passage_comes_back_with_the_patch_it_left_with(vlm, folder, named):
    whole = whole_of(vlm, folder)
    task = tasks.for_model(tasks.get(named("recall")), vlm)
    for outline, context in drawn(task, limit=8):
        recalled = (-1 if "at the end" in outline.layout else 0) % len(context.items)
        behind = [tuple(own) for own in context.antecedents]
        stay = tuple(item for place, item in enumerate(context.items) if place != recalled)
        if "old patch" in outline.layout:
            assert len(behind[recalled]) == WINDOW - 1 and not set(behind[recalled]) & set(stay)
        else:
            assert behind[recalled] == (stay if recalled else ())
        shown = context.items[recalled] if recalled else context.items[-1]
        assert places(whole, [*shown.ids, *followed(context.questions)])


def test_tokens_that_need_the_first_passage_are_those_the_model_gets_right_by_it(vlm, named, monkeypatch):
    """The model's own two predictions decide, at a gap that this small model has."""
    from eval.tasks.text import continuation

    task = tasks.for_model(tasks.get(named("needs-context")), vlm)
    outline = task.outline([0], 1)[0]
    right = [question.next_token for question in task.draw(outline).questions]

    def made_up(reader, items, after):
        """Both passages: every token right at .6; the second alone: right, near, wrong, right, …"""
        given = np.full((len(right), 200), 0.001)
        wrong = [(token + 1) % 100 for token in right]
        given[np.arange(len(right)), right] = 0.6 if len(items) == 2 else np.resize([0.5, 0.55, 0.1], len(right))
        given[np.arange(len(right)), wrong] = 0.3 if len(items) == 2 else np.resize([0.3, 0.58, 0.3], len(right))
        return given

    monkeypatch.setattr(continuation, "_probabilities", made_up)
    questions = task.draw(outline).questions
    assert [question.hops for question in questions] == np.resize([1, 1, 2], len(right)).tolist()
    assert {question.condition for question in questions} == {continuation.NEEDED, continuation.OTHER}


def test_the_probabilities_are_those_of_one_forward_over_all_tokens(vlm, named):
    from eval.tasks.text.continuation import _probabilities

    task = tasks.for_model(tasks.get(named("continuation")), vlm)
    context = task.draw(task.outline([0], 1)[0])
    after = np.asarray(followed(context.questions))
    ids = [*np.asarray(vlm.preamble.inputs["tokens"])[: int(vlm.preamble.length)].tolist()]
    ids += [token for item in context.items for token in item.ids]
    whole = segment_of(vlm, Tokens.of([*ids, *after[:-1]]))
    at = jnp.arange(len(ids), len(ids) + AHEAD, dtype=jnp.int32)
    logits = np.asarray(vlm.forward(vlm.params, whole, None, logits_at=at).logits, np.float64)
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    assert np.abs(_probabilities(task.reader, context.items, after) - expected).max() <= 1e-5


def test_a_task_without_its_model_has_outlines_and_no_contexts(named):
    """A run is scored again without its model, and without its corpus."""
    task = tasks.get("slide:corpus=folder that is not here")
    assert len(task.outline([0, 1], 5)) == 10 and not task.sources
    with pytest.raises(InvalidTaskError, match="for_model"):
        task.draw(task.outline([0], 1)[0])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("continuation:tokens=0", SettingError, "whole number of at least 1"),
        ("continuation:tokens=64+64", SettingError, "must differ"),
        ("continuation:token=64", SettingError, "no setting 'token=64'; did you mean tokens"),
        ("continuation:64", SettingError, "no setting '64'"),
        ("slide:tokens=8,tokens=9", SettingError, "given twice"),
        ("recall:corpus=", SettingError, "corpus is empty"),
        ("binding:tokens=8", SettingError, "has no settings"),
        ("slide:reference=past", SettingError, "reference is one of present and history; got 'past'"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        tasks.get(name)


def test_corpora_that_do_not_do_are_refused_before_anything_is_drawn(vlm, named, folder):
    with pytest.raises(CorpusError, match="there is no corpus 'pydocs'"):
        tasks.for_model(tasks.get("recall:corpus=pydocs"), vlm)
    large = tasks.for_model(tasks.get(f"quotation:tokens=5000,corpus={folder}"), vlm)
    with pytest.raises(CorpusTooSmallError, match="0 passages of 5000 tokens .* 2 passages, 10000 tokens, are needed"):
        large.outline([0], 2)
    small = tasks.for_model(tasks.get(f"page-break:tokens=5,corpus={folder}"), vlm)
    with pytest.raises(SettingError, match="give tokens=[0-9]+ or more"):
        small.draw(small.outline([0], 1)[0])
    many = tasks.for_model(tasks.get(f"induction:tokens=6,documents=13,corpus={folder}"), vlm)
    with pytest.raises(CorpusTooSmallError, match="13 of each are needed"):
        many.draw(many.outline([0], 1)[0])


def test_a_comma_in_a_folders_name_is_no_border():
    assert tasks.get("quotation:corpus=a,b,tokens=8").corpus == "a,b"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tail": (1, -2)}, "whole numbers of at least 0; the tail of .* has -2"),
        ({"tail": (1, 2), "at": 2}, "2 tokens, and none at 2"),
        ({"next_token": 3}, "no tail that it follows"),
        ({"tail": (1,), "next_token": -1}, "the next token of"),
        ({"labels": {"next_token": 1}}, "fields of every sample"),
        ({"tail": (1,), "next_token": 2, "among": (3, 4)}, "the right one, 2, is none of them"),
        ({"among": (3, 4)}, "the right one, None, is none of them"),
    ],
)
def test_questions_about_text_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Question("?", ["x"], **changed)


def test_chunks_and_contexts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="is empty"):
        Tokens(())
    with pytest.raises(ValueError, match="has True"):
        Tokens((True,))
    with pytest.raises(ValueError, match="2 items has antecedents for 1"):
        Context(["a", "b"], [Question("?", ["x"])], [[]])
