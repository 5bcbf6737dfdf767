"""Several questions generated together: of one window, or of windows of one shape, by one program."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.arguments import check_list
from kamera_jax.backbone import Backbone, Output, with_defaults
from kamera_jax.inference.decoding import BLOCK, Decoding, Sampling
from kamera_jax.inference.generate import Answer, Generation, generate, question_tail, turn_slots
from kamera_jax.inference.turn import Behind, Written, after, asked, ends_of, raise_undefined, ran, slots_of, whole
from kamera_jax.kv import ChunkPool, KVSpec, Segment, WindowState, bucket
from kamera_jax.placement import Placement
from kamera_jax.transfer import numbers, to_device
from kamera_jax.types import Params
from kamera_jax.window.checks import check_room
from kamera_jax.window.window import Window

Seen = tuple[WindowState, tuple[ChunkPool, ...]]
"""A window's slots and its pools; of several windows stacked."""


def generate_many(
    vlm: Backbone,
    windows: Sequence[Window],
    texts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    stop: tuple[str, ...] = (),
) -> tuple[Generation, ...]:
    """Answer a question of each window, all together: the tokens are those of `generate`, one window after another.

    A token of one answer reads all weights, and so does a token of all answers together. Windows that are one object
    share what they hold; others are stacked, so they take their memory once more.

    Args:
        vlm: the model.
        windows: the contexts; all of one mode, and of as many slots. They are left as they are.
        texts: a question for each.
        max_new_tokens, temperature, top_k, top_p, stop: see `generate`.
        key: randomness; the answer of place i is that of ``generate(…, key=jax.random.fold_in(key, i))``.

    Returns:
        An answer for each, whose ``window`` is the window as it was.

    Raises:
        ValueError: there are not as many questions as windows, or the windows differ in shape; else see `generate`.
    """
    check_list(windows, Window, "windows", "of the windows that are asked")
    check_list(texts, str, "texts", "of one question for each window")
    if len(texts) != len(windows):
        raise ValueError(f"there are {len(texts)} questions of {len(windows)} windows; give one for each")
    decoding = Decoding(max_new_tokens, temperature, key, tuple(stop), None, False, top_k, top_p)
    if not windows:
        return ()
    if not with_defaults(vlm).reads_context:
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        keys = [None if key is None else jax.random.fold_in(key, place) for place in range(len(windows))]
        pairs = zip(windows, texts, keys, strict=True)
        return tuple(generate(vlm, w, text, key=own, stop=stop, keep=False, **given) for w, text, own in pairs)
    tails = [question_tail(vlm, window, text) for window, text in zip(windows, texts, strict=True)]
    for window, tail in zip(windows, tails, strict=True):
        most = turn_slots(vlm, tail, decoding)
        check_room(window, most, tail.advance + most - int(tail.length))
    _check_alike(windows)
    started = time.perf_counter()
    turns = _Turns(vlm, windows, tails, decoding)
    answers = [Answer(vlm, decoding) for _ in windows]
    goes_on = [answer.add(tokens) for answer, tokens in zip(answers, turns.ask(), strict=True)]
    first = time.perf_counter() - started
    for block in decoding.blocks:
        if not any(goes_on):
            break
        left = [decoding.max_new_tokens - len(answer.tokens) for answer in answers]
        most = [min(block, each) if on else 0 for each, on in zip(left, goes_on, strict=True)]
        for place, tokens in enumerate(turns.next_tokens(most)):
            goes_on[place] = goes_on[place] and answers[place].add(tokens)
    return tuple(
        Generation(answer.text, tuple(answer.tokens), first, window)
        for answer, window in zip(answers, windows, strict=True)
    )


def _check_alike(windows: Sequence[Window]) -> None:
    """Raise ValueError unless windows can be stacked."""
    kinds = {(window.mode, *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(window.state))) for window in windows}
    if len(kinds) > 1:
        slots = sorted({window.state.valid.shape[0] for window in windows})
        raise ValueError(
            f"the windows differ in mode, slots ({slots}) or pools; generate together takes windows of one shape: make "
            "them with one capacity, or ask those of each shape apart"
        )


class _Turns:
    """The turns of several questions, a block of tokens at a time."""

    def __init__(self, vlm: Backbone, windows: Sequence[Window], tails: Sequence[Segment], decoding: Decoding) -> None:
        longest = max(tail.positions.shape[-1] for tail in tails)
        padded = [_padded(jax.device_get(tail), longest) for tail in tails]
        bases = np.stack([numbers(window.next_position) for window in windows])
        places = np.arange(len(windows), dtype=np.int32)
        self._sent = (jax.tree.map(lambda *rows: np.stack(rows), *padded), bases, places, ends_of(vlm.eos))
        most = max(int(tail.length) for tail in tails) + decoding.max_new_tokens
        self._sizes = {"slots": slots_of(most), "room": bucket(1)}
        shared = all(window.state is windows[0].state for window in windows)
        seen = [(replace(window.state, pools=()), window.state.pools) for window in windows]
        self._seen = seen[0] if shared else jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
        self._sampling = decoding.sampling
        self._static = {"forward": vlm.forward, "spec": vlm.spec, "shared": shared}
        self._static["placement"] = with_defaults(vlm).placement
        self._params = vlm.params
        self._decoding = with_defaults(vlm).decoding_params(vlm.params)
        self._undefined = [False] * len(windows)

    def ask(self) -> list[list[int]]:
        """Run the questions; the first token of each answer."""
        tails, bases, self._places, self._ends = to_device(self._sent)
        given = (self._params, self._seen, self._sampling, self._places, tails, bases)
        self._written = _ask_many(*given, **self._sizes, **self._static)
        return self._chosen([[token] for token in jax.device_get(self._written.token).tolist()])

    def next_tokens(self, most: Sequence[int]) -> list[list[int]]:
        """Run the last token of each answer and those after it, at most so many of each."""
        if any(count and undefined for count, undefined in zip(most, self._undefined, strict=True)):
            raise_undefined(self._written.kv)
        counts = to_device(np.minimum(np.asarray(most, np.int32), BLOCK))
        given = (self._decoding, self._seen, self._sampling, self._places, self._written, self._ends, counts)
        self._written, chosen = _run_many(*given, **self._static)
        rows = jax.device_get(chosen).tolist()
        return self._chosen([tokens[: min(count, wanted)] for (count, *tokens), wanted in zip(rows, most, strict=True)])

    def _chosen(self, rows: list[list[int]]) -> list[list[int]]:
        """Of each answer the tokens that were chosen.

        Raises:
            NonFiniteError: one was chosen by logits that are not numbers, and nothing stands before it.
        """
        cut = [whole(tokens) for tokens in rows]
        self._undefined = [undefined or before for (_, undefined), before in zip(cut, self._undefined, strict=True)]
        if any(undefined and not tokens for tokens, undefined in cut):
            raise_undefined(self._written.kv)
        return [tokens for tokens, _ in cut]


def _padded(segment: Segment, tokens: int) -> Segment:
    """The same segment with rows of padding behind it."""
    more = tokens - segment.positions.shape[-1]
    inputs = {name: np.pad(rows, ((0, more), *((0, 0),) * (rows.ndim - 1))) for name, rows in segment.inputs.items()}
    positions: Any = np.pad(segment.positions, ((0, 0), (0, more)))
    return Segment(inputs, positions, np.int32(segment.length), segment.advance)


def _own(sampling: Sampling | None, place: jax.Array) -> Sampling | None:
    """How the tokens of the answer of a place are drawn."""
    return None if sampling is None else replace(sampling, key=jax.random.fold_in(sampling.key, place))


@partial(jax.jit, static_argnames=("slots", "room", "forward", "spec", "shared", "placement"))
def _ask_many(
    params: Params,
    seen: Seen,
    sampling: Sampling | None,
    places: jax.Array,
    tails: Segment,
    bases: jax.Array,
    *,
    slots: int,
    room: int,
    forward: Callable[..., Output],
    spec: KVSpec,
    shared: bool,
    placement: Placement | None,
) -> Written:
    """`kamera_jax.inference.turn.asked` of several windows, or several times of one."""

    def one(seen: Seen, place: jax.Array, tail: Segment, base: jax.Array) -> Written:
        behind = Behind(*seen, np.int32(0))
        return asked(params, behind, _own(sampling, place), None, tail, base, slots, room, forward, spec, placement)

    return jax.vmap(one, in_axes=(None if shared else 0, 0, 0, 0))(seen, places, tails, bases)


@partial(jax.jit, static_argnames=("forward", "spec", "shared", "placement"), donate_argnames="written")
def _run_many(
    params: Params,
    seen: Seen,
    sampling: Sampling | None,
    places: jax.Array,
    written: Written,
    ends: jax.Array,
    most: jax.Array,
    *,
    forward: Callable[..., Output],
    spec: KVSpec,
    shared: bool,
    placement: Placement | None,
) -> tuple[Written, jax.Array]:
    """`kamera_jax.inference.turn.ran` of several turns, until the last of them has ended."""

    def one(seen: Seen, place: jax.Array, written: Written) -> Written:
        return after(params, Behind(*seen, np.int32(0)), _own(sampling, place), written, forward, spec, placement)

    run = jax.vmap(one, in_axes=(None if shared else 0, 0, 0))
    return ran(lambda written: run(seen, places, written), written, ends, most)
