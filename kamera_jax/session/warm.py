"""Compiling the programs of a session before its first turn."""

from collections.abc import Callable, Sequence
from typing import Any

from kamera_jax.arguments import whole_number
from kamera_jax.backbone import Backbone
from kamera_jax.errors import WindowFullError
from kamera_jax.identity import EXACT
from kamera_jax.inference.generate import Decoding, compile_turns, question_tail, turn_slots
from kamera_jax.kv import bucket
from kamera_jax.session.session import Session
from kamera_jax.window.changes import slide, without
from kamera_jax.window.eviction import in_the_way
from kamera_jax.window.window import Mode

Progress = Callable[[int, int, str], None]
"""Called before each step with its number from 0, the number of steps, and what is compiled."""

SIZES = (16, 32, 64, 128, 256)
"""Tokens of the texts that are run where no items are given."""

QUESTION = "What is shown here?"


def warm(
    vlm: Backbone,
    capacity: int,
    *,
    mode: Mode = "materialise",
    storage: str = EXACT,
    rank: int | None = None,
    items: Sequence[Any] = (),
    questions: Sequence[str] = (QUESTION,),
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> None:
    """Compile what a session runs, so that its turns do not wait for it.

    A short session is run on items that stand for those to come: JAX then has its programs in memory, and in its
    persistent cache where there is one. What is compiled depends on sizes alone: items and questions of as many tokens,
    up to the next size that arrays come in (16, 32, 64, 128, 256, 384, …), need nothing more. Images compile the vision
    tower for their own sizes: give some.

    Args:
        vlm: the model.
        capacity, mode, storage, rank: of the session to come; see `kamera_jax.Session`.
        items: what `kamera_jax.encode` takes, one of each size that will come; by default texts of 16 to 256 tokens,
            as far as two of them fit.
        questions: questions as they will be asked, one of each size.
        max_new_tokens: of an answer.
        progress: see `Progress`.

    Raises:
        WindowFullError: an item, or a question with its answer, does not fit the capacity.
        ValueError: ``items`` or ``questions`` is no sequence of items, or ``max_new_tokens`` is below 1; else see
            `kamera_jax.Session` and `kamera_jax.encode`.
    """
    for name, given in (("items", items), ("questions", questions)):
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError(f"{name} must be a list of stand-ins, one of each size; got {given!r}: put it in a list")
    max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", 1)
    if progress is not None and not callable(progress):
        raise ValueError(f"progress must be a function of (step, steps, what is compiled); got {progress!r}")
    session = Session(vlm, capacity, mode=mode, storage=storage, rank=rank)
    if max_new_tokens > capacity:  # before its sizes are counted up
        raise WindowFullError(
            f"max_new_tokens is {max_new_tokens}; a window of {capacity} slots holds no answer of so many tokens"
        )
    stand_ins = list(items) or _texts(vlm, session, SIZES)
    asked = list(questions)
    turns = _texts(vlm, session, _turn_sizes(vlm, session, asked, max_new_tokens), "turn")
    session.add("page")
    work: list[tuple[str, Callable[[], object]]] = []
    for number, item in enumerate(stand_ins, start=1):
        work.append((f"item {number} of {len(stand_ins)}", lambda item=item: _item(session, item)))
    for text in turns:  # as a kept turn is written
        work.append(("writing turns", lambda text=text: session.add(text, patch=False)))
    for number, text in enumerate(asked, start=1):
        what = f"question {number} of {len(asked)}"
        work.append((what, lambda text=text: _question(vlm, session, text, max_new_tokens)))
    for step, (what, compiled) in enumerate(work):
        if progress is not None:
            progress(step, len(work), what)
        compiled()


def _item(session: Session, item: Any) -> None:
    """Encode an item, form its patch, and write it to a window that the caller has and to one that nobody has."""
    key = session.add(item)  # behind another: the first item of a session has no patch
    window = session.window
    session.replace(key, " page")
    session.replace(session.keys[-1], item)
    del window
    own = session._kept.window  # as it is: what is handed out is bound to its device, which is another program
    slide(own, len(own.entries))


def _question(vlm: Backbone, session: Session, text: str, max_new_tokens: int) -> None:
    """Ask, and compile what answers of every length up to the longest take."""
    for _ in range(2):  # the second time behind a turn
        window = session._kept.window
        tail = question_tail(vlm, window, text)
        most = turn_slots(vlm, tail, Decoding(max_new_tokens, keep=True))
        gone = in_the_way(window, (), None, more=(most, tail.advance + most - int(tail.length)))
        compile_turns(vlm, without(window, gone), text, max_new_tokens=max_new_tokens)
        session.ask(text, max_new_tokens=max_new_tokens)
    session.ask(text, max_new_tokens=max_new_tokens, keep=False)


def _turn_sizes(vlm: Backbone, session: Session, questions: Sequence[str], max_new_tokens: int) -> list[int]:
    """Rows that a turn of one of the questions may have."""
    sizes: set[int] = set()
    for text in questions:
        tail = question_tail(vlm, session.window, text)
        most = turn_slots(vlm, tail, Decoding(max_new_tokens, keep=True))
        sizes |= {bucket(tokens) for tokens in range(most - max_new_tokens, most + 1)}
    return sorted(sizes)


def _texts(vlm: Backbone, session: Session, sizes: Sequence[int], word: str = "page") -> list[str]:
    """Texts of these sizes of which two fit the session's window; the shortest in any case."""
    window = session.window
    room = window.capacity - window.next_slot
    return [_text(vlm, size, word) for size in sizes if 2 * size <= room] or [_text(vlm, min(sizes), word)]


def _text(vlm: Backbone, tokens: int, word: str) -> str:
    """A text of at most so many tokens, and of more than half as many where the tokenizer lets it."""
    words = tokens
    while words > 1:
        text = " ".join([word] * words)
        length = int(vlm.prepare(text).length)
        if length <= tokens:
            return text
        words = min(words - 1, words * tokens // length)
    return word
