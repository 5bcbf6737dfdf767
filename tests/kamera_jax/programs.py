"""Counting what JAX compiles, and sessions whose turns have items of mixed sizes to count it over."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

import kamera_jax as kj

WORDS = "red blue star page cell the colour of is left right green and on a in".split()


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the name of everything XLA compiles, the smallest eager operation included."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(kwargs.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def mixed_item(random: np.random.Generator, cell: int, most: int, side: int = 8) -> Any:
    """A text of up to ``most`` words, or an image of up to ``side`` × ``side`` cells."""
    if random.random() < 0.5:
        return " ".join(random.choice(WORDS, int(random.integers(3, most))))
    rows, columns = random.integers(1, side + 1, 2) * cell
    return random.integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def turn(session: kj.Session, random: np.random.Generator, cell: int, most: int = 60, side: int = 8) -> None:
    """One to three items, a question, and sometimes a question that is not kept or an old item again."""
    for _ in range(int(random.integers(1, 4))):
        session.add(mixed_item(random, cell, most, side))
    question = " ".join(random.choice(WORDS, int(random.integers(2, 9))))
    session.ask(question + " ?", max_new_tokens=int(random.integers(1, 6)), keep=bool(random.random() < 0.7))
    if session.evicted and random.random() < 0.4:
        session.recall(str(random.choice(session.evicted)))


@contextmanager
def transfers() -> Iterator[list[int]]:
    """Collects of every explicit transfer to the device how many arrays it had."""
    seen: list[int] = []
    put = jax.device_put

    def counting(x: Any, *args: Any, **options: Any) -> Any:
        seen.append(sum(not isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)))
        return put(x, *args, **options)

    jax.device_put = counting
    try:
        yield seen
    finally:
        jax.device_put = put
