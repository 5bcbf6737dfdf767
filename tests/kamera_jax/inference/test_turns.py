"""Kept turns: a conversation is the chat template's own tokens, and a stop text or eos leaves nothing behind."""

from copy import copy

import numpy as np
import pytest

import kamera_jax as kj
from models import load
from tests.kamera_jax.toy import Toy

QUESTIONS = ("what colour is the star ?", "which page is blue ?", "what is the colour of the moon ?")
MODES = ("materialise", "in_place")


def ids_of(window):
    """Every token of a window, the preamble's first."""
    chunks = [entry.chunk for entry in (window.preamble, *window.entries)]
    return [int(token) for chunk in chunks for token in np.asarray(chunk.source.inputs["tokens"])[: chunk.length]]


def test_a_conversation_is_the_template_s_tokens():
    """Text, and two turns that end as they end: by eos, or by the bound on their length.

    For every port's template, without a model: tests/models/test_chat.py.
    """
    vlm = load("kamera-tiny-gqa")
    tokenizer = vlm._chat._tokenizer
    page = "a red star. a blue moon."
    window = kj.append(kj.Window.empty(vlm, 160), kj.encode(vlm, page))
    content = [{"type": "text", "text": page + " " + QUESTIONS[0]}]
    messages = [{"role": "user", "content": content}]
    ends = []
    for question, following, bound in zip(QUESTIONS, QUESTIONS[1:], (4, 1), strict=False):
        answer = kj.generate(vlm, window, question, max_new_tokens=bound)
        window = answer.window
        ends = [*ends, len(answer.tokens) < bound]
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": answer.text}]},
            {"role": "user", "content": [{"type": "text", "text": following}]},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tail = vlm.follow_up(following)
        given = [*ids_of(window), *np.asarray(tail.inputs["tokens"])[: int(tail.length)].tolist()]
        assert given == tokenizer.encode(text, add_special_tokens=False)
        assert given.count(vlm.closing[0]) == 1 + len(messages)  # one closes the system text, and one each message
    assert set(ends) == {True, False}


@pytest.fixture(params=MODES)
def begun(request):
    toy = Toy(seed=4)
    return toy, kj.append(kj.Window.empty(toy, 128, mode=request.param), kj.encode(toy, "a page"))


def turn_of(answer):
    return answer.window.entries[-1].chunk


def said(toy, answer):
    """What a kept turn says between question and closing."""
    turn = turn_of(answer)
    question = len("what is it!")
    return tuple(np.asarray(turn.source.inputs["tokens"])[question : turn.length - len(toy.closing)].tolist())


def test_the_last_token_is_run(begun):
    toy, window = begun
    for n in (1, 2, 5):
        answer = kj.generate(toy, window, "what is it", max_new_tokens=n)
        assert said(toy, answer) == answer.tokens and len(answer.tokens) == n
        # Its KV is there: the toy's rows are the token's, but for a factor.
        turn = turn_of(answer)
        place = len("what is it!") + n - 1
        kv = np.asarray(turn.kv.features)[:, place]
        row = np.asarray(toy.params["rows"])[answer.tokens[-1]]
        factor = kv / row
        assert np.ptp(factor) < 1e-4 and factor.mean() > 1


def test_an_answer_closed_by_eos_is_not_closed_twice(begun):
    toy, window = begun
    free = kj.generate(toy, window, "what is it", max_new_tokens=5)
    for closing in (toy.closing, (free.tokens[2], *toy.closing)):  # eos may be the closing's first token, or not
        ending = copy(toy)
        ending.closing = closing
        ending.eos = (free.tokens[2],)
        answer = kj.generate(ending, window, "what is it", max_new_tokens=5)
        cut = free.tokens[: free.tokens.index(free.tokens[2])]
        assert answer.tokens == cut and said(ending, answer) == cut
        turn = turn_of(answer)
        assert np.asarray(turn.source.inputs["tokens"])[turn.length - len(closing) : turn.length].tolist() == list(
            closing
        )


def test_a_stop_text_leaves_nothing_in_the_turn(begun):
    toy, window = begun
    free = kj.generate(toy, window, "what is it", max_new_tokens=8)
    mark = free.text[3:6]
    answer = kj.generate(toy, window, "what is it", max_new_tokens=8, stop=(mark,))
    cut = free.text.index(mark)
    assert answer.text == free.text[:cut] and len(answer.tokens) > cut
    assert said(toy, answer) == free.tokens[:cut]
    # It is the turn of an answer that was never longer, to the bit.
    assert cut > 0
    short = kj.generate(toy, window, "what is it", max_new_tokens=cut)
    for name in ("rot", "free"):
        assert (getattr(turn_of(answer).kv, name) == getattr(turn_of(short).kv, name)).all()
    assert turn_of(answer).key == turn_of(short).key


def test_a_backbone_that_says_nothing_of_turns(begun):
    class Silent:
        attends_in_place = True

    toy, window = begun
    silent = Silent()
    for name in ("spec", "params", "fingerprint", "preamble", "eos", "tail", "decode", "forward", "prepare"):
        setattr(silent, name, getattr(toy, name))
    answer = kj.generate(silent, window, "what is it", max_new_tokens=3)
    turn = turn_of(answer)
    assert turn.length == len("what is it!") + 3
    assert np.asarray(turn.source.inputs["tokens"])[turn.length - 3 : turn.length].tolist() == list(answer.tokens)
    again = kj.generate(silent, answer.window, "what is it", max_new_tokens=3)
    assert turn_of(again).length == turn.length  # the same tail


def test_a_question_after_a_turn_is_a_follow_up(begun):
    toy, window = begun
    after = kj.generate(toy, window, "what is it", max_new_tokens=2).window
    assert turn_of(kj.generate(toy, after, "what is it", max_new_tokens=2)).length == turn_of_length(toy, 1)
    behind = kj.append(after, kj.encode(toy, "a page"))
    assert turn_of(kj.generate(toy, behind, "what is it", max_new_tokens=2)).length == turn_of_length(toy, 0)


def turn_of_length(toy, more):
    return len("what is it!") + more + 2 + len(toy.closing)


def test_a_turn_that_is_dropped_leaves_the_window(begun):
    toy, window = begun
    kept, dropped = (kj.generate(toy, window, "what is it", max_new_tokens=3, keep=keep) for keep in (True, False))
    assert dropped.window is window and dropped.tokens == kept.tokens and dropped.text == kept.text
