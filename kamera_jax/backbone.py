"""What a model must offer to be served by the operator, and what it may offer: users bring their own JAX model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, no_type_check, runtime_checkable
from weakref import WeakSet

import flax.struct
import jax
from jaxtyping import Array, Float

from kamera_jax.contract import METHODS, OPTIONAL, check_identity, check_members, check_output
from kamera_jax.items import Video
from kamera_jax.kv import KV, KVSpec, Segment, WindowState
from kamera_jax.placement import Placement
from kamera_jax.types import Params


@no_type_check
@flax.struct.dataclass(eq=False)
class Output:
    """What a forward returns.

    Attributes:
        logits: f32[n, V] at the n requested tokens, or None.
        kv: un-rotated KV of the segment; padded rows are zero.
        aux: collected extras by name; ``attention_mass`` f32[L, S + T]: the share of attention each slot, then each
            token of the segment, received, averaged over the segment's valid queries and heads; ``owner_mass`` f32[L,
            n], its sum over the slots and tokens of each of the n owners in the segment's ``inputs["owners"]``, bool[S
            + T, n]; ``queries`` f32[L, T, N, D], un-rotated and times the scale of the scores, and with them
            ``attended`` [L, T, N, Dv], what attention gave them before the output projection (MLA: both in the absorbed
            form, [L, T, N, R + Dr] and [L, T, N, R]).
    """

    logits: Float[Array, "n V"] | None
    kv: KV
    aux: dict[str, jax.Array]


@runtime_checkable
class Backbone(Protocol):
    """A decoder whose KV the operator can keep, move and patch: what it must have.

    Whatever has these members is one. Inherit from `BackboneBase` to be given what a backbone may leave out; one that
    does not inherit may have the same members beside these.
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

        It must be one object, or equal on every access, and be hashable: it keys what is compiled. Parameters are an
        argument, and never closed over.

        Args:
            params: the parameters.
            segment: tokens to run; they see the state's valid slots, the chunks of its pools and each other causally.
            state: what came before, or None.
            logits_at: indices i32[n] into the segment whose logits are wanted, or None for no logits.
            collect: names of extra outputs, which are then in ``aux``; see `Output` and `BackboneBase.collects`.
        """
        ...


class BackboneBase(Backbone):
    """A backbone to inherit from: what one may leave out has its default here.

    Give it `Backbone`'s attributes and methods; see ``examples/own_backbone.py``. It is hashed and weakly referenced,
    so a dataclass is declared with ``@dataclass(eq=False)``.
    """

    closing: tuple[int, ...] = ()
    """Token ids after an answer, up to the next question (end of turn, user header): run when a turn is kept."""
    attends_in_place: bool = False
    """Whether ``forward`` reads ``state.pools``, as windows of ``mode="in_place"`` take; see
    `kamera_jax.window.reuse.attend_in_place`."""
    reads_context: bool = False
    """Whether ``forward`` reads the slots of ``state.context`` too, before the state's own: a turn is then generated
    beside its window, which is not copied for it."""
    reads_bias: bool = False
    """Whether ``forward`` adds the ``bias`` of a state, of its context and of its pools to the scores of their keys,
    where it is not None: rows of a chunk may then stand for several tokens; see `kamera_jax.share_rows`."""
    fills_slots: bool = False
    """Whether ``forward`` reads ``inputs["slots"]``, i32[T], of a segment: its tokens then stand among what the state
    holds, in ascending slots, and each sees of the state only valid slots below its own."""
    collects: tuple[str, ...] = ("attention_mass",)
    """What ``forward`` returns in ``aux`` where it is asked to: forming a patch takes ``owner_mass`` where it is
    offered, which is quicker, else ``attention_mass``; a sketch takes ``queries``."""
    placement: Placement | None = None
    """Where the KV of a model on a mesh lies, and with it windows, pools and patches; None on one device. ``forward``
    then gives KV that lies so."""

    def follow_up(self, text: str) -> Segment:
        """The `tail` of a question right after a kept turn, for tokenizers to which that makes a difference."""
        return self.tail(text)

    def flops(self, tokens: int, slots: int) -> float:
        """FLOPs of a forward of ``tokens`` tokens that see ``slots`` more: two for each parameter and token."""
        return 2.0 * tokens * sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def cut(self, item: Any, *, tokens: int) -> tuple[Any, ...]:
        """A long item in parts that `prepare` takes, each of at most ``tokens`` tokens; whole by default."""
        return (item,)

    def segments(self, item: Any, *, seconds: float | int) -> Iterator[Any]:
        """An item's parts of so many seconds, which `prepare` takes, each made when it is asked for.

        By default a `kamera_jax.Video` is cut by its times, and anything else stays whole.
        """
        yield from item.segments(seconds) if isinstance(item, Video) else (item,)

    def decoding_params(self, params: Params) -> Params:
        """``params`` as ``forward`` takes them for single tokens, which are run often; by default as they are.

        Another layout of the same values may be quicker there. It is asked for at each turn, so it is to be kept.
        """
        return params

    def leading(self, layers: int) -> Backbone:
        """The model cut off after its first ``layers`` layers; the whole model where it cannot be cut."""
        return self


class _Completed(BackboneBase):
    """A backbone that does not inherit, or has None for a member, with the defaults for what it leaves out."""

    collects = ("attention_mass", "queries")  # it does not say; whether it returned them is seen when it was asked

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        own = {name: getattr(backbone, name, None) for name in (*METHODS, *OPTIONAL, "placement")}
        vars(self).update({name: member for name, member in own.items() if member is not None})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def leading(self, layers: int) -> Backbone:
        return self._backbone


_CHECKED: WeakSet[Any] = WeakSet()


def with_defaults(vlm: Any) -> BackboneBase:
    """The backbone with all that it may leave out; checked when it is first seen.

    Raises:
        BackboneError: something is missing, or of a wrong type.
    """
    check_identity(vlm)
    if vlm not in _CHECKED:
        check_members(vlm, Backbone)
        _CHECKED.add(vlm)
    if isinstance(vlm, BackboneBase) and all(getattr(vlm, name) is not None for name in OPTIONAL):
        return vlm
    return _Completed(vlm)  # pyright: ignore[reportAbstractUsage]


def forward_flops(vlm: Backbone, tokens: int, slots: int) -> float:
    """FLOPs of a forward of ``tokens`` tokens that see ``slots`` more; see `BackboneBase.flops`."""
    return float(with_defaults(vlm).flops(tokens, slots))


def call(
    forward: Callable[..., Output],
    params: Params,
    segment: Segment,
    state: WindowState | None,
    *,
    logits_at: jax.Array | None = None,
    collect: Sequence[str] = (),
) -> Output:
    """`Backbone.forward`, and a look at the shapes of what it returned: once for each that is compiled.

    Raises:
        BackboneError: something that was asked for is not there, or has another shape.
    """
    output = forward(params, segment, state, logits_at=logits_at, collect=collect)
    check_output(forward, output, segment, state, logits_at, collect)
    return output
