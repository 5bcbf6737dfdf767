"""The array pytrees that cross ``jit``: KV, Factors, ChunkPool, WindowState, Segment."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Self, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Shaped

from kamera_jax.dtypes import floating
from kamera_jax.errors import ModelLengthError
from kamera_jax.handle import in_bytes, shapes, traced
from kamera_jax.rope import RopeSpec
from pallas_kernels.chunk_attention.call import Unpack


@no_type_check  # pytrees are rebuilt with whatever a transformation puts in the leaves
@flax.struct.dataclass(eq=False, repr=False)
class KV:
    """KV of T tokens in the position-free frame.

    Attributes:
        rot: what RoPE rotates, stored un-rotated [L, T, Fr]: keys after QK-norm (GQA, MHA) or k_pe (MLA).
        free: what it does not [L, T, Ff]: values (GQA, MHA) or the normalised latent (MLA).
    """

    rot: Float[Array, "L T Fr"]
    free: Float[Array, "L T Ff"]

    __repr__ = shapes

    @property
    def features(self) -> Float[Array, "L T F"]:
        """rot and free side by side, the frame patches live in [L, T, Fr + Ff]."""
        return jnp.concatenate([self.rot, self.free], axis=-1)


@no_type_check
@flax.struct.dataclass(eq=False, repr=False)
class Factors:
    """A low-rank change of KV: per layer ``uᵀ v`` over the first ``ranks[l]`` of m components.

    Attributes:
        u: token factors, rank-major [L, m, T].
        v: feature factors [L, m, Fr + Ff].
        ranks: components in use per layer, i32[L].
        scale: of each component, f32[L, m]; u and v are then int8. None: they are floating point, and there is none.
    """

    u: Float[Array, "L m T"] | Int8[Array, "L m T"]
    v: Float[Array, "L m F"] | Int8[Array, "L m F"]
    ranks: Int[Array, " L"]
    scale: Float[Array, "L m"] | None = None

    __repr__ = shapes

    def floats(self, dtype: Any) -> tuple[Float[Array, "L m T"], Float[Array, "L m F"]]:
        """``u`` and ``v`` in a floating-point dtype, the scale in ``v``: what kernels take."""
        u = self.u.astype(dtype)
        v = self.v.astype(jnp.float32)
        return u, (v if self.scale is None else v * self.scale[..., None]).astype(dtype)


@dataclass(frozen=True)
class SketchSpec:
    """Which attention a `Sketch` keeps.

    Attributes:
        layers: of the model, from 0: where a chunk's tokens bind to what other chunks say, and where that shows.
        weights: how much a change counts in each of them; 1 by default.
        tokens: how many tokens of the chunk, in each layer its own.
    """

    layers: tuple[int, ...]
    weights: tuple[float, ...] = ()
    tokens: int = 24

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(map(operator.index, self.layers)))
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        object.__setattr__(self, "tokens", operator.index(self.tokens))
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.layers))
        if not self.layers or min(self.layers) < 0 or self.tokens < 1:
            raise ValueError(f"a sketch needs layers from 0 and at least one token; got {self.layers}, {self.tokens}")
        if len(self.weights) != len(self.layers) or min(self.weights) <= 0:
            raise ValueError(f"every layer of a sketch needs a weight above 0; got {self.weights} for {self.layers}")


@no_type_check
@flax.struct.dataclass(eq=False, repr=False)
class Sketch:
    """How a few tokens of a chunk attended, in some layers, while its patch was formed.

    Attributes:
        queries: un-rotated, times the scale of the scores [l, K, N, D] (MLA: absorbed, [l, K, N, R + Dr]).
        outputs: what attention gave each of them [l, K, N, Dv] (MLA: of the latents, [l, K, N, R]).
        tokens: which tokens of the chunk they are, i32[l, K].
        spec: what was asked for; not traced.
    """

    queries: Float[Array, "l K N D"]
    outputs: Float[Array, "l K N Dv"]
    tokens: Int[Array, "l K"]
    spec: SketchSpec = flax.struct.field(pytree_node=False)

    __repr__ = shapes

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in (self.queries, self.outputs, self.tokens))


@no_type_check
@flax.struct.dataclass(eq=False, repr=False)
class ChunkPool:
    """P places for chunks of one bucket, whose KV and patches lie as they are: un-rotated, in no order.

    Windows share the big arrays; ``lengths`` and ``bases`` are a window's own, and all that moving a chunk changes.

    Attributes:
        rot: un-rotated [L, P, T, Fr]; or the codes that it is packed in.
        free: [L, P, T, Ff]; or the codes that it is packed in.
        positions: of the tokens within their chunk, f32[P, A, T].
        lengths: valid tokens, i32[P]; 0 where the place holds no chunk of this window.
        bases: the absolute position each chunk starts at, f32[P].
        u: token factors [L, P, m, T]; None, as the next two, until a chunk comes with a patch.
        v: feature factors [L, P, m, Fr + Ff].
        ranks: components in use, i32[L, P]; 0 for no patch.
        bias: what is added to the scores of each token, f32[P, T]; None until a chunk comes with counts.
        packed: what rot and free are packed in beside their codes, [L, P, ...] by name; None for as they are.
        unpack: how one layer of a chunk comes out; static.
    """

    rot: Shaped[Array, "L P T Fr"]
    free: Shaped[Array, "L P T Ff"]
    positions: Float[Array, "P A T"]
    lengths: Int[Array, " P"]
    bases: Float[Array, " P"]
    u: Float[Array, "L P m T"] | None = None
    v: Float[Array, "L P m F"] | None = None
    ranks: Int[Array, "L P"] | None = None
    bias: Float[Array, "P T"] | None = None
    packed: dict[str, Shaped[Array, "L P ..."]] | None = None
    unpack: Unpack | None = flax.struct.field(pytree_node=False, default=None)

    __repr__ = shapes

    @property
    def layers(self) -> dict[str, jax.Array]:
        """What differs from layer to layer, by name, each with L leading: for a decoder to index by its layer."""
        named = {"rot": self.rot, "free": self.free, "u": self.u, "v": self.v, "ranks": self.ranks}
        return {name: array for name, array in named.items() if array is not None} | (self.packed or {})


@no_type_check
@flax.struct.dataclass(eq=False, repr=False)
class WindowState:
    """What attention reads: keys rotated to absolute positions and patched, and chunks that lie in pools.

    Attributes:
        rot: rotated keys [L, S, Fr].
        free: values or latents [L, S, Ff].
        positions: absolute positions f32[A, S].
        valid: slots that hold a token, bool[S].
        pools: chunks to be read where they lie, by bucket; none in a materialised window.
        context: the slots of the window that a turn's own state stands behind, read and never written; None elsewhere.
        bias: what is added to the scores of each slot, f32[S]: the logarithm of how many tokens its row stands for;
            None where no chunk ever brought counts, and for 0.
    """

    rot: Float[Array, "L S Fr"]
    free: Float[Array, "L S Ff"]
    positions: Float[Array, "A S"]
    valid: Bool[Array, " S"]
    pools: tuple[ChunkPool, ...] = ()
    context: "WindowState | None" = None
    bias: Float[Array, " S"] | None = None

    __repr__ = shapes


@no_type_check
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Segment:
    """Tokens ready for a backbone's forward.

    A pytree of its arrays; ``advance`` and ``content`` stay on the host and do not cross ``jit``: they are then None
    and empty. `dataclasses.replace` drops ``content`` too: what else is read was made from something else.

    Attributes:
        inputs: what the backbone reads, each with T leading, at least ``tokens`` i32[T]; media features stand beside
            them.
        positions: f32[A, T]: local (from 0) as prepared, absolute as given to ``forward``.
        length: valid tokens, i32 scalar, of numpy where it is known, as the host asks for it; rows past it are padding.
        advance: how far the next segment starts after this one's start, in positions (not the token count under
            M-RoPE).
        content: sha256 of the decoded content this was made from; where it is empty, a chunk's key is made of what the
            model reads.
    """

    inputs: dict[str, Any]
    positions: Float[Array, "A T"]
    length: Int[Array, ""]
    advance: float = 0.0
    content: str = field(init=False)

    __repr__ = shapes

    def __init__(
        self,
        inputs: dict[str, Any],
        positions: Float[Array, "A T"],
        length: Int[Array, ""] | np.integer | int,
        advance: float | jax.Array = 0.0,
        content: str = "",
    ) -> None:
        """See the class."""
        for name, value in zip(_SEGMENT, (inputs, positions, length, advance, content), strict=True):
            object.__setattr__(self, name, value)

    def at(self, base: jax.Array | float) -> Self:
        """The same tokens with positions that start at ``base``."""
        moved = self.positions + jnp.asarray(base, jnp.float32)
        return type(self)(self.inputs, moved, self.length, self.advance, self.content)

    @property
    def valid(self) -> Bool[Array, " T"]:
        """Which rows are tokens, bool[T]."""
        return jnp.arange(self.positions.shape[-1], dtype=jnp.int32) < self.length


def _flatten_segment(segment: Segment) -> tuple[tuple[Any, ...], None]:
    return (segment.inputs, segment.positions, segment.length), None


def _unflatten_segment(_: None, data: Iterable[Any]) -> Segment:
    segment = object.__new__(Segment)
    for name, value in zip(_SEGMENT, (*data, None, ""), strict=True):
        object.__setattr__(segment, name, value)
    return segment


_SEGMENT = tuple(each.name for each in fields(Segment))
jax.tree_util.register_pytree_node(Segment, _flatten_segment, _unflatten_segment)


@dataclass(frozen=True)
class KVSpec:
    """Shape and meaning of a backbone's KV.

    Attributes:
        layers: L.
        rot_dim: Fr, width of what is rotated (G * D).
        free_dim: Ff, width of what is not.
        heads: G, KV heads the rotated features split into.
        rope: how they are rotated.
        dtype: storage dtype name: float32, bfloat16 or float16; given by any of their names.
        fingerprint: config + weights revision of the model.
        identity: what the fingerprint was made from, as pairs of a name and a digest (the configuration, the
            preprocessing, the weights): for errors to name what differs; empty if the backbone does not say.
        max_positions: the model's length: a token may stand at positions below this, and windows refuse others. None:
            at any. It is no part of keys, since it changes no KV.
    """

    layers: int
    rot_dim: int
    free_dim: int
    heads: int
    rope: RopeSpec
    dtype: str
    fingerprint: str
    identity: tuple[tuple[str, str], ...] = ()
    max_positions: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", floating(self.dtype, "the KV's dtype").name)

    def __repr__(self) -> str:
        limit = "" if self.max_positions is None else f", {self.max_positions} positions"
        return (
            f"<KVSpec layers={self.layers}, rot_dim={self.rot_dim}, free_dim={self.free_dim}, heads={self.heads}, "
            f"{self.dtype}, {in_bytes(self.token_bytes)} a token{limit}, model {self.fingerprint[:12]}, "
            f"rope={self.rope!r}>"
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's KV over all layers."""
        return self.layers * (self.rot_dim + self.free_dim) * jnp.dtype(self.dtype).itemsize

    def differences(self, other: "KVSpec") -> tuple[str, ...]:
        """In what this model is not ``other``, for people; empty where neither says."""
        shape = ("layers", "rot_dim", "free_dim", "heads", "dtype")
        differing = [f"{name} ({mine}, not {theirs})" for name, mine, theirs in _pairs(self, other, shape)]
        turned = [name for name, _, _ in _pairs(self.rope, other.rope, tuple(each.name for each in fields(RopeSpec)))]
        if turned:
            differing.append(f"RoPE ({', '.join(turned)})")
        theirs = dict(other.identity)
        return (*differing, *(name for name, digest in self.identity if theirs.get(name, digest) != digest))

    def empty_state(self, slots: int) -> WindowState:
        """A window state of ``slots`` empty slots."""
        return WindowState(
            rot=jnp.zeros((self.layers, slots, self.rot_dim), self.dtype),
            free=jnp.zeros((self.layers, slots, self.free_dim), self.dtype),
            positions=jnp.zeros((self.rope.axes, slots), jnp.float32),
            valid=jnp.zeros((slots,), bool),
        )


def _pairs(mine: Any, theirs: Any, names: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """Fields that differ, with both values."""
    pairs = [(name, getattr(mine, name), getattr(theirs, name)) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]


def bucket(tokens: int) -> int:
    """The padded length of a segment: 1, a power of two from 16 to 128, or a multiple of 128.

    Few shapes, so nothing recompiles after warm-up.
    """
    if tokens <= 1:
        return 1
    for size in (16, 32, 64, 128):
        if tokens <= size:
            return size
    return -(-tokens // 128) * 128


def bucket_of_slots(slots: int) -> int:
    """The slots that arrays for so many have: 128, 256, 384, 512, 768, 1024, 1536, and so on, two for each doubling.

    Few shapes, so that windows of nearly the same size share what is compiled.
    """
    size = 128
    while size < slots:
        if size > 128 and slots <= size + size // 2:
            return size + size // 2
        size *= 2
    return size


def bucket_of_ranks(rank: int) -> int:
    """The components that a patch of so many has arrays for: a power of two from 4; the others are zero, and unused."""
    return max(4, 1 << (rank - 1).bit_length())


def check_length(spec: KVSpec, start: float | jax.Array, advance: int | float | jax.Array) -> None:
    """Raise ModelLengthError unless the model is for ``advance`` positions from ``start`` on."""
    limit = spec.max_positions
    if limit is not None and not traced(start, advance) and start + advance > limit:
        raise ModelLengthError(
            f"{advance:g} positions from {start:g} on reach beyond the model's length of {limit} positions; slide the "
            "window, or add less to it: beyond its length the model was not made to attend"
        )
