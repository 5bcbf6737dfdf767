"""What a model must offer to be served by the operator. Users bring their own JAX model by meeting this protocol."""

from collections.abc import Sequence
from typing import Any, Protocol, no_type_check, runtime_checkable

import flax.struct
import jax
from jaxtyping import Array, Float

from kamera_jax.kv import KV, KVSpec, Segment, WindowState
from kamera_jax.types import Params


@no_type_check
@flax.struct.dataclass
class Output:
    """What a forward returns.

    Attributes:
        logits: f32[n, V] at the n requested tokens, or None.
        kv: un-rotated KV of the segment; padded rows are zero.
        aux: collected extras by name; ``attention_mass`` f32[L, S + T]: the share of attention each slot, then each
            token of the segment, received, averaged over the segment's valid queries and heads; ``queries`` f32[L, T,
            N, D], un-rotated and times the scale of the scores, and with them ``attended`` [L, T, N, Dv], what
            attention gave them before the output projection (MLA: both in the absorbed form, [L, T, N, R + Dr] and
            [L, T, N, R]).
    """

    logits: Float[Array, "n V"] | None
    kv: KV
    aux: dict[str, jax.Array]


@runtime_checkable
class Backbone(Protocol):
    """A decoder whose KV the operator can keep, move and patch.

    One whose forward also reads ``state.pools`` (see `kamera_jax.window.reuse.attend_in_place`) says so with an
    attribute ``attends_in_place = True``, and is then offered windows of ``mode="in_place"``.

    One whose forward reads ``inputs["slots"]``, i32[T], of a segment says ``fills_slots = True``: its tokens then stand
    among what the state holds, in ascending slots, and each sees of the state only valid slots below its own.

    One with a chat template may say what stands between turns. ``closing``, token ids, are those after an answer up to
    the next question (end of turn, user header): they are run when a turn is kept; none by default. ``follow_up(text)``
    is the `tail` of a question right after them, for tokenizers to which that makes a difference; `tail` by default.
    """

    spec: KVSpec
    params: Params
    fingerprint: str
    preamble: Segment
    """System text and user header: pinned at slot 0 of every window."""
    eos: tuple[int, ...]
    """Token ids that end a generation."""

    def prepare(self, item: Any) -> Segment:
        """A chunk's tokens from text, an image, …, with local positions.

        Raises:
            ValueError: it cannot read the item.
        """
        ...

    def tail(self, text: str) -> Segment:
        """The question and the assistant header, with local positions."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        ...

    def forward(
        self,
        params: Params,
        segment: Segment,
        state: WindowState | None,
        *,
        logits_at: jax.Array | None = None,
        collect: Sequence[str] = (),
    ) -> Output:
        """Run a segment (absolute positions) on top of a window: pure, one sequence, vmap-safe.

        It must be the same object on every access and hash by identity or value: it keys what is compiled.

        Args:
            params: the parameters.
            segment: tokens to run; they see the state's valid slots, the chunks of its pools and each other causally.
            state: what came before, or None.
            logits_at: indices i32[n] into the segment whose logits are wanted, or None for no logits.
            collect: names of extra outputs.
        """
        ...


def forward_flops(vlm: Backbone, tokens: int, slots: int) -> float:
    """FLOPs of a forward of ``tokens`` tokens that see ``slots`` more.

    A backbone may say it, ``flops(tokens, slots)``; else two for each parameter and token.
    """
    if (flops := getattr(vlm, "flops", None)) is not None:
        return float(flops(tokens, slots))
    return 2.0 * tokens * sum(leaf.size for leaf in jax.tree.leaves(vlm.params))
