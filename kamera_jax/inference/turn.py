"""A turn while it is generated: a question and the tokens after it, in a state of their own beside the window."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.backbone import Backbone, Output, call, with_defaults
from kamera_jax.errors import NonFiniteError
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


@flax.struct.dataclass
class Sampling:
    """How tokens are drawn; None in its place is greedy.

    Attributes:
        temperature: above 0, f32.
        key: randomness.
    """

    temperature: jax.Array | np.float32
    key: jax.Array


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
    """A question and its answer, token by token; each token is one call of the device.

    Attributes:
        answered: how many tokens of the answer were run.
    """

    def __init__(
        self, vlm: Backbone, window: Window, most: int, room: int, *, temperature: float, key: jax.Array | None
    ) -> None:
        """Begin behind a window.

        Args:
            vlm: the model.
            window: what is asked; it is left as it is.
            most: tokens that the turn may have.
            room: rows of what is run to close it.
            temperature: 0 is greedy.
            key: randomness; not used where the temperature is 0.
        """
        self.answered = 0
        self._params = vlm.params
        self._room = room
        self._slots = LEAST_ROWS if most <= LEAST_ROWS else bucket_of_slots(most)
        self._state: WindowState | None = None
        self._written: Written | None = None
        context: WindowState | None = replace(window.state, pools=())
        start = 0
        if not with_defaults(vlm).reads_context:
            self._state, start = turn_state(window, self._slots)
            context = None
        sampling = None if temperature == 0 or key is None else Sampling(np.float32(temperature), key)
        self._host = (Behind(context, window.state.pools, np.int32(start)), sampling, numbers(window.next_position))
        self._static = {"forward": vlm.forward, "spec": vlm.spec, "placement": with_defaults(vlm).placement}

    @property
    def kv(self) -> KV:
        """KV of the tokens that were run, un-rotated; rows past them hold anything."""
        assert self._written is not None
        return self._written.kv

    def ask(self, tail: Segment) -> int:
        """Run the question; the first token of the answer."""
        sizes = {"slots": self._slots, "room": self._room}
        tail, (self._behind, self._sampling, base) = to_device((tail, self._host))  # one transfer
        given = (self._params, self._behind, self._sampling, self._state, tail, base)
        self._written = written = _ask(*given, **sizes, **self._static)
        return _token(written)

    def next_token(self) -> int:
        """Run the last token; the one after it."""
        assert self._written is not None
        self._written = written = _next(self._params, self._behind, self._sampling, self._written, **self._static)
        self.answered += 1
        return _token(written)

    def close(self, tokens: Sequence[int], answered: int) -> None:
        """Run what follows the first ``answered`` tokens of the answer; what was run after them is forgotten."""
        assert self._written is not None
        ids = np.zeros(self._room, np.int32)
        ids[: len(tokens)] = tokens
        ids, counts = to_device((ids, np.asarray([len(tokens), answered], np.int32)))
        self._written = _close(self._params, self._behind, self._written, ids, counts, **self._static)


def _token(written: Written) -> int:
    """The token that was chosen, which the host waits for.

    Raises:
        NonFiniteError: it was chosen by logits that are not numbers.
    """
    token = int(jax.device_get(written.token))
    if token == _NONE:
        raise NonFiniteError(
            f"the model's logits are NaN or infinite, so they name no token (KV of dtype {written.kv.rot.dtype.name}): "
            "its weights have such values, or what it computes exceeds its dtype; check the weights, and load the "
            'model in a dtype of more range: load(…, dtype="float32"), or "bfloat16" in place of "float16"'
        )
    return token


@partial(jax.jit, static_argnames=("slots", "room", "forward", "spec", "placement"), donate_argnames="state")
def _ask(
    params: Params,
    behind: Behind,
    sampling: Sampling | None,
    state: WindowState | None,
    tail: Segment,
    numbers: jax.Array,
    *,
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


@partial(jax.jit, static_argnames=("forward", "spec", "placement"), donate_argnames="written")
def _next(
    params: Params,
    behind: Behind,
    sampling: Sampling | None,
    written: Written,
    *,
    forward: Callable[..., Output],
    spec: KVSpec,
    placement: Placement | None = None,
) -> Written:
    """Run the token that was chosen last, and choose the one after it."""
    answered = written.answered + 1
    position = written.last[:, None] + answered.astype(jnp.float32)
    segment = Segment({"tokens": written.token[None]}, position, jnp.ones((), jnp.int32))
    return _step(params, behind, sampling, replace(written, answered=answered), segment, forward, spec, placement)


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
    token = jnp.argmax(output.logits[0]).astype(jnp.int32)
    if sampling is not None:
        key = jax.random.fold_in(sampling.key, done)
        token = jax.random.categorical(key, output.logits[0] / sampling.temperature).astype(jnp.int32)
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
