"""Compiling the programs of a session before its first turn."""

from collections.abc import Callable, Sequence
from typing import Any

from kamera_jax.backbone import Backbone
from kamera_jax.session.session import Session
from kamera_jax.window.window import Mode

Progress = Callable[[int, int, str], None]
"""Called before each step with its number from 0, the number of steps, and what is compiled."""

SIZES = (16, 32, 64, 128, 256)
"""Tokens of the texts that are run where no items are given."""


def warm(
    vlm: Backbone,
    capacity: int,
    *,
    mode: Mode = "materialise",
    rank: int = 32,
    items: Sequence[Any] = (),
    question: str = "What is shown here?",
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> None:
    """Compile what a session runs, so that its first turns do not wait for it.

    Sessions of a short life are run on items that stand for what is to come: JAX then has the programs in memory, and
    in its persistent cache where there is one. Images compile the vision tower for their own sizes: give some.

    Args:
        vlm: the model.
        capacity, mode, rank: of the session to come; see `kamera_jax.Session`.
        items: what `kamera_jax.encode` takes, one of each size that will come; by default texts of 16 to 256 tokens.
        question: a question as it will be asked.
        max_new_tokens: of an answer.
        progress: see `Progress`.

    Raises:
        WindowFullError: an item of the caller's, or the question, does not fit the capacity.
        ValueError: see `kamera_jax.Session` and `kamera_jax.encode`.
    """
    given = list(items)
    if not given:
        given = [_text(vlm, size) for size in SIZES if 2 * size + max_new_tokens <= capacity] or [_text(vlm, 16)]
    steps = 2 * len(given)
    step = 0
    for lent in (False, True):
        session = Session(vlm, capacity, mode=mode, rank=rank)
        for number, item in enumerate(given):
            if progress is not None:
                progress(step, steps, f"item {number + 1} of {len(given)}")
            step += 1
            for patch in (False, True):
                if lent:  # a window that the caller keeps is copied where it would be handed on
                    _ = session.window
                session.add(item, patch=patch)
            for keep in (False, True):
                session.ask(question, max_new_tokens=max(2, max_new_tokens), keep=keep)


def _text(vlm: Backbone, tokens: int) -> str:
    """A text of at most so many tokens, and of more than half as many where the tokenizer lets it."""
    words = tokens
    while words > 1:
        text = " ".join(["page"] * words)
        length = int(vlm.prepare(text).length)
        if length <= tokens:
            return text
        words = min(words - 1, words * tokens // length)
    return "page"
