"""A turn while it is generated: a question and the tokens after it, in a state of their own beside the window.

Tokens are run on the device in blocks: it chooses, writes and ends by itself, and the host waits once for each block.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.backbone import Backbone, Output, call, with_defaults
from kamera_jax.errors import NonFiniteError
from kamera_jax.inference.decoding import BLOCK, Sampling, drawn
from kamera_jax.kv import KV, ChunkPool, KVSpec, Segment, WindowState, bucket_of_slots
from kamera_jax.placement import Placement, constrained
from kamera_jax.transfer import numbers, to_device, unpacked
from kamera_jax.types import Params
from kamera_jax.window.changes import turn_state
from kamera_jax.window.reuse import write
from kamera_jax.window.window import Window

_NONE = -1
"""In place of a token: there is none, as no logit is the largest."""

LEAST_ROWS = 64
"""Rows of a turn's state at least: turns of nearly the same length share what is compiled."""


ENDS = 4
"""Tokens that end an answer have arrays of a multiple of this."""


@flax.struct.dataclass
class Behind:
    """What a turn sees and does not write.

    Attributes:
        context: the window's slots; None for a backbone that does not read them there: the turn's state then has them.
        pools: the window's.
        start: the slot of its state that the turn begins at, i32.
    """

    context: WindowState | None
    pools: tuple[ChunkPool, ...]
    start: jax.Array | np.int32


@flax.struct.dataclass
class Written:
    """What a step hands to the next, which takes its buffers.

    Attributes:
        state: where the turn is written, rotated.
        kv: its tokens un-rotated, from row 0 on.
        token: to be run next, i32.
        done: how many tokens of the turn were run, i32.
        answered: how many of them were the answer's, i32.
        last: where the question's last token stands, f32[A].
    """

    state: WindowState
    kv: KV
    token: jax.Array
    done: jax.Array
    answered: jax.Array
    last: jax.Array


class Turn:
    """A question and its answer, a block of tokens at a time; each block is one call of the device.

    Attributes:
        answered: how many tokens of the answer were run.
    """

    def __init__(
        self, vlm: Backbone, window: Window, most: int, room: int, *, sampling: Sampling | None = None
    ) -> None:
        """Begin behind a window.

        Args:
            vlm: the model.
            window: what is asked; it is left as it is.
            most: tokens that the turn may have.
            room: rows of what is run to close it.
            sampling: how tokens are drawn; None is greedy.
        """
        self.answered = 0
        self._undefined = False
        self._params = vlm.params
        self._decoding = with_defaults(vlm).decoding_params(vlm.params)
        self._room = room
        self._slots = slots_of(most)
        self._state: WindowState | None = None
        self._written: Written | None = None
        context: WindowState | None = replace(window.state, pools=())
        start = 0
        if not with_defaults(vlm).reads_context:
            self._state, start = turn_state(window, self._slots)
            context = None
        behind = Behind(context, window.state.pools, np.int32(start))
        self._host = (behind, sampling, numbers(window.next_position), ends_of(vlm.eos))
        self._static = {"forward": vlm.forward, "spec": vlm.spec, "placement": with_defaults(vlm).placement}

    @property
    def kv(self) -> KV:
        """KV of the tokens that were run, un-rotated; rows past them hold anything."""
        assert self._written is not None
        return self._written.kv

    def ask(self, tail: Segment) -> int:
        """Run the question; the first token of the answer."""
        sizes = {"slots": self._slots, "room": self._room}
        tail, (self._behind, self._sampling, base, self._ends) = to_device((tail, self._host))  # one transfer
        given = (self._params, self._behind, self._sampling, self._state, tail, base)
        self._written = written = _ask(*given, **sizes, **self._static)
        (token,) = self._chosen([int(jax.device_get(written.token))])
        return token

    def next_tokens(self, most: int) -> list[int]:
        """Run the last token and those after it, at most so many; the tokens that were chosen, one at least.

        Fewer are run where one of them ends the answer.
        """
        assert self._written is not None
        if self._undefined:
            raise_undefined(self._written.kv)
        count = to_device(np.int32(min(most, BLOCK)))
        given = (self._decoding, self._behind, self._sampling, self._written, self._ends, count)
        self._written, chosen = _run(*given, **self._static)
        done, *tokens = jax.device_get(chosen).tolist()
        self.answered += done
        return self._chosen(tokens[:done])

    def _chosen(self, tokens: list[int]) -> list[int]:
        """Tokens that were chosen; the last may be none, which is an error as soon as nothing stands before it.

        Raises:
            NonFiniteError: it was chosen by logits that are not numbers.
        """
        assert self._written is not None
        tokens, self._undefined = whole(tokens)
        if not tokens:
            raise_undefined(self._written.kv)
        return tokens

    def close(self, tokens: Sequence[int], answered: int) -> None:
        """Run what follows the first ``answered`` tokens of the answer; what was run after them is forgotten."""
        assert self._written is not None
        ids = np.zeros(self._room, np.int32)
        ids[: len(tokens)] = tokens
        ids, counts = to_device((ids, np.asarray([len(tokens), answered], np.int32)))
        self._written = _close(self._params, self._behind, self._written, ids, counts, **self._static)


def slots_of(tokens: int) -> int:
    """Rows of the state of a turn of at most so many tokens."""
    return LEAST_ROWS if tokens <= LEAST_ROWS else bucket_of_slots(tokens)


def whole(tokens: list[int]) -> tuple[list[int], bool]:
    """Tokens that were chosen, up to where none could be, and whether there is such a place."""
    undefined = _NONE in tokens
    return (tokens[: tokens.index(_NONE)] if undefined else tokens), undefined


def raise_undefined(kv: KV) -> NoReturn:
    """Raise NonFiniteError: logits that are not numbers have chosen no token."""
    raise NonFiniteError(
        f"the model's logits are NaN or infinite, so they name no token (KV of dtype {kv.rot.dtype.name}): "
        "its weights have such values, or what it computes exceeds its dtype; check the weights, and load the "
        'model in a dtype of more range: load(…, dtype="float32"), or "bfloat16" in place of "float16"'
    )


def ends_of(eos: Sequence[int]) -> np.ndarray:
    """The tokens that end an answer, i32, filled up with what no token is: few shapes."""
    ends = sorted(map(int, eos))
    return np.asarray(ends + [_NONE] * (ENDS - len(ends) % ENDS), np.int32)


def asked(
    params: Params,
    behind: Behind,
    sampling: Sampling | None,
    state: WindowState | None,
    tail: Segment,
    numbers: jax.Array,
    slots: int,
    room: int,
    forward: Callable[..., Output],
    spec: KVSpec,
    placement: Placement | None = None,
) -> Written:
    """Run a question at the position that ``numbers`` packs, and choose the token after it."""
    tail = tail.at(unpacked(numbers)[0])
    own = spec.empty_state(slots) if state is None else state
    rows = spec.empty_state(max(slots, tail.positions.shape[1]) + room)
    nothing = jnp.zeros((), jnp.int32)
    last = jax.lax.dynamic_index_in_dim(tail.positions, tail.length - 1, 1, keepdims=False)
    written = Written(own, KV(rows.rot, rows.free), nothing, nothing, nothing, last)
    return _step(params, behind, sampling, written, tail, forward, spec, placement)


_ask = partial(jax.jit, static_argnames=("slots", "room", "forward", "spec", "placement"), donate_argnames="state")(
    asked
)


def after(
    params: Params,
    behind: Behind,
    sampling: Sampling | None,
    written: Written,
    forward: Callable[..., Output],
    spec: KVSpec,
    placement: Placement | None = None,
) -> Written:
    """Run the token that was chosen last, and choose the one after it."""
    answered = written.answered + 1
    position = written.last[:, None] + answered.astype(jnp.float32)
    segment = Segment({"tokens": written.token[None]}, position, jnp.ones((), jnp.int32))
    return _step(params, behind, sampling, replace(written, answered=answered), segment, forward, spec, placement)


def ran(
    run: Callable[[Written], Written], written: Written, ends: jax.Array, most: jax.Array
) -> tuple[Written, jax.Array]:
    """Run the token that was chosen last, and those chosen after it, of one turn or of several with a leading axis.

    It goes on as long as a turn does; what is chosen in one that has ended means nothing.

    Args:
        run: `after` of the turn, or of all of them.
        written: what they have.
        ends: the tokens that end an answer, i32[e].
        most: tokens of each turn that are run at most, up to `BLOCK`, i32[·].

    Returns:
        What was written, and i32[·, 1 + BLOCK]: how many tokens were run, and as many tokens, each chosen by one.
    """

    def goes_on(carry: tuple[Written, jax.Array, jax.Array]) -> jax.Array:
        token = carry[0].token
        ended = (token == _NONE) | jnp.isin(token, ends)
        return ((carry[2] < most) & ~ended).any()

    def step(carry: tuple[Written, jax.Array, jax.Array]) -> tuple[Written, jax.Array, jax.Array]:
        written, tokens, count = carry
        written = run(written)
        return written, tokens.at[..., count].set(written.token), count + 1

    tokens = jnp.full((*written.token.shape, BLOCK), _NONE, jnp.int32)
    start = (written, tokens, jnp.zeros((), jnp.int32))
    written, tokens, count = jax.lax.while_loop(goes_on, step, start)
    return written, jnp.concatenate([jnp.broadcast_to(count, (*tokens.shape[:-1], 1)), tokens], axis=-1)


@partial(jax.jit, static_argnames=("forward", "spec", "placement"), donate_argnames="written")
def _run(
    params: Params,
    behind: Behind,
    sampling: Sampling | None,
    written: Written,
    ends: jax.Array,
    most: jax.Array,
    *,
    forward: Callable[..., Output],
    spec: KVSpec,
    placement: Placement | None = None,
) -> tuple[Written, jax.Array]:
    """`ran` of one turn."""
    return ran(lambda own: after(params, behind, sampling, own, forward, spec, placement), written, ends, most)


@partial(jax.jit, static_argnames=("forward", "spec", "placement"), donate_argnames="written")
def _close(
    params: Params,
    behind: Behind,
    written: Written,
    ids: jax.Array,
    numbers: jax.Array,
    *,
    forward: Callable[..., Output],
    spec: KVSpec,
    placement: Placement | None = None,
) -> Written:
    """Run tokens after the first ``answered`` of the answer; ``numbers`` has how many they are, and ``answered``."""
    length, answered = numbers
    after = (answered + 1 + jnp.arange(len(ids), dtype=jnp.int32)).astype(jnp.float32)
    segment = Segment({"tokens": ids}, written.last[:, None] + after[None, :], length)
    written = replace(written, done=written.done - written.answered + answered, answered=answered)
    return _step(params, behind, None, written, segment, forward, spec, placement)


def _step(
    params: Params,
    behind: Behind,
    sampling: Sampling | None,
    written: Written,
    segment: Segment,
    forward: Callable[..., Output],
    spec: KVSpec,
    placement: Placement | None = None,
) -> Written:
    """Run a segment, choose the token after it, and keep the segment's KV: in the state, and un-rotated in the turn.

    ``written.done`` tokens of the turn went before; what a stop text took back of those that were run after them is
    forgotten.
    """
    done = written.done
    slot = behind.start + done
    state = written.state
    state = replace(state, valid=state.valid & (jnp.arange(state.valid.shape[0], dtype=jnp.int32) < slot))
    seen = replace(state, pools=behind.pools, context=behind.context)
    output = call(forward, params, segment, seen, logits_at=segment.length[None] - 1)
    assert output.logits is not None
    token = (
        jnp.argmax(output.logits[0]).astype(jnp.int32) if sampling is None else drawn(output.logits[0], sampling, done)
    )
    token = jnp.where(jnp.isfinite(jnp.max(output.logits[0])), token, jnp.int32(_NONE))
    # A token's slot is no multiple of 16, which the kernels write from.
    length = segment.length
    at = (segment.positions, length, spec.rope)
    state = write(state, slot, output.kv, None, *at, implementation="xla", placement=placement)
    kv = jax.tree.map(
        lambda whole, rows: jax.lax.dynamic_update_slice_in_dim(whole, rows, done, 1), written.kv, output.kv
    )
    written = Written(state, kv, token, (done + length).astype(jnp.int32), written.answered, written.last)
    return constrained(written, placement)
