"""Codecs by name, as ``"kivi:4"`` or ``"xkv:1:16+kivi:4"``: stages that KV goes through to fewer bytes, and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.compress.capsule import capsule, network_shapes
from kamera_jax.compress.lowrank import model_components, own_components
from kamera_jax.compress.mixed import mixed
from kamera_jax.compress.quantise import Int8, Kivi, Normal, Quantised, Quantiser, Rotated
from kamera_jax.compress.rows import OPTIONS, check_rows, merge, select
from kamera_jax.compress.stage import (
    LOW_RANK,
    MERGE,
    ORDER,
    PARTS,
    QUANTISE,
    SELECT,
    Basis,
    Layout,
    Layouts,
    Leaves,
    Marking,
    Packer,
    RowStage,
    Stage,
)
from kamera_jax.errors import CodecError
from kamera_jax.identity import EXACT, SELECTS
from kamera_jax.kv import KV, KVSpec
from kamera_jax.merging import MERGES

INT8 = "int8"

NOTHING: Basis = {}
"""For codecs that are not calibrated."""


@dataclass(frozen=True)
class Shape:
    """How wide KV is.

    Attributes:
        rot: Fr.
        free: Ff.
        heads: G; 1 for an MLA, whose latents are wider than what is rotated.
        layers: L, for codecs that put layers side by side; 0 where the arrays show it.
    """

    rot: int
    free: int
    heads: int
    layers: int = 0

    @staticmethod
    def of(kv: KV, spec: KVSpec | None) -> "Shape":
        """Of KV whose heads a spec knows; where there is none they count as one."""
        return Shape(kv.rot.shape[-1], kv.free.shape[-1], 1 if spec is None else spec.heads, kv.rot.shape[0])

    def layouts(self, rows: int, layers: int) -> dict[str, Layout]:
        """Of ``rot`` and of ``free``."""
        latent = self.heads == 1 and self.rot != self.free
        layers = self.layers or layers
        return {
            "rot": Layout(rows, self.rot, self.heads, keys=True, latent=False, layers=layers),
            "free": Layout(rows, self.free, self.heads, keys=False, latent=latent, layers=layers),
        }

    @property
    def plain(self) -> dict[str, int]:
        """What a library says of KV in few bits."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "layers" or self.layers}


@dataclass(frozen=True)
class Codec:
    """A way to store KV.

    Attributes:
        name: as it is written.
        packing: the stages that pack KV, in order: low rank, then quantise.
        rows: the stages before them, which say which rows a chunk has; a chunk goes through these with its model.
    """

    name: str
    packing: tuple[Stage, ...]
    rows: tuple[RowStage, ...] = field(default=())

    @property
    def storage(self) -> str:
        """The name of the stages that pack; ``"exact"`` where there are none."""
        return "+".join(self.name.split("+")[len(self.rows) :]) or EXACT

    @property
    def needs(self) -> frozenset[str]:
        """What packing is to be given beside KV; see `Stage`."""
        return frozenset().union(*(stage.needs for stage in self.packing))

    @property
    def by_layer(self) -> bool:
        """Whether a layer's KV comes back from that layer's arrays alone."""
        return all(stage.kind == QUANTISE for stage in self.packing)

    def check_shape(self, shape: "Shape") -> None:
        """Raise CodecError for KV of a shape that cannot be packed."""
        given: Layouts = shape.layouts(1, 1)
        for stage in self.packing:
            stage.check(given)
            given = stage.left(given)

    def encode(self, kv: KV, length: jax.Array | int, heads: int, basis: Basis = NOTHING) -> Leaves:
        """The packed arrays of KV [L, T, ·], each with L (or groups of layers) leading.

        They are ``kv.rot`` and ``kv.free``, their scales and so on.

        Args:
            kv: un-rotated, of any floating-point dtype.
            length: valid rows.
            heads: G, KV heads; 1 for an MLA.
            basis: of the model, if the codec `needs` one.
        """
        return _encode(kv, length, basis, packing=self.packing, heads=heads)

    def decode(
        self, leaves: Mapping[str, Any], length: jax.Array | int, shape: "Shape", dtype: Any, basis: Basis = NOTHING
    ) -> KV:
        """The KV [L, T, ·] that is served in place of what `encode` was given; rows past ``length`` are zero."""
        given = {name: jnp.asarray(leaves[name]) for name in self.names}
        return _decode(given, length, basis, packing=self.packing, shape=shape, dtype=jnp.dtype(dtype).name)

    def nbytes(self, length: int, layers: int, shape: "Shape", dtype: Any) -> int:
        """Bytes of KV over valid rows, as stored: codes, scales, factors; not what is calibrated once for a model.

        Args:
            length, layers, shape: of the KV.
            dtype: of the KV, in which stands what no stage quantises.
        """
        given: Layouts = shape.layouts(length, layers)
        stored = 0
        for stage in self.packing:
            stored += stage.nbytes(given)
            given = stage.left(given)
        kept = sum(layout.layers * layout.rows * layout.width for layout in given.values())
        return stored + kept * jnp.dtype(dtype).itemsize

    def model_bytes(self, layers: int, shape: "Shape", basis: Basis = NOTHING) -> int:
        """Bytes of what is calibrated once for a model, as far as this codec uses it."""
        given: Layouts = shape.layouts(1, layers)
        taken = 0
        for stage in self.packing:
            taken += stage.model_bytes(given, basis)
            given = stage.left(given)
        return taken

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return _names(self)

    def widths(self, rows: int, shape: "Shape") -> dict[str, int]:
        """The last axis of ``kv.rot`` and ``kv.free`` of T rows as stored, found without tracing anything."""
        given: Layouts = shape.layouts(rows, 1)
        for stage in self.packing:
            if isinstance(stage, Marking):
                return stage.widths(given)
            if isinstance(stage, Packer):
                return {name: stage.width(given[name]) for name in PARTS}
            given = stage.left(given)
        return {name: given[name].width for name in PARTS}

    def arrays(self, layers: int, rows: int, shape: "Shape", dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the packed arrays of KV of L layers and T rows."""
        return _arrays(self, shape.layers or layers, rows, shape, dtype)


@lru_cache(maxsize=256)
def _names(codec: Codec) -> tuple[str, ...]:
    return tuple(codec.arrays(1, 1, Shape(8, 8, 1), "float32"))


@lru_cache(maxsize=256)
def _arrays(codec: Codec, layers: int, rows: int, shape: Shape, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    codec.check_shape(shape)
    given = shape.layouts(rows, layers)
    parts: Any = [jax.ShapeDtypeStruct((layers, rows, given[part].width), dtype) for part in PARTS]
    kv = KV(*parts)
    encoded = partial(_encode, packing=codec.packing, heads=shape.heads)
    basis = basis_shapes(given) if "basis" in codec.needs else {}
    if "capsule" in codec.needs:
        shapes = network_shapes(shape.layers or layers, shape.rot, shape.free, tokens=1, hidden=1)  # any will do
        basis = {name: jax.ShapeDtypeStruct(each, jnp.float32) for name, each in shapes.items()}
    return jax.eval_shape(encoded, kv, rows, basis)


def basis_shapes(given: Layouts) -> dict[str, jax.ShapeDtypeStruct]:
    """What is calibrated for a model whose KV has these layouts."""
    shapes = {}
    for part, layout in given.items():
        shapes[part] = jax.ShapeDtypeStruct((layout.layers, layout.width, layout.width), jnp.float32)
        shapes[f"{part}_mean"] = jax.ShapeDtypeStruct((layout.layers, layout.width), jnp.float32)
    return shapes


@partial(jax.jit, static_argnames=("packing", "heads"))
def _encode(kv: KV, length: jax.Array | int, basis: Basis, *, packing: tuple[Stage, ...], heads: int) -> Leaves:
    layers, rows, width = kv.rot.shape
    given: Layouts = Shape(width, kv.free.shape[-1], heads).layouts(rows, layers)
    parts = {name: getattr(kv, name) for name in PARTS}
    stored: Leaves = {}
    for stage in packing:
        parts, leaves = stage.encode(parts, length, given, basis)
        given = stage.left(given)
        stored |= leaves
    stored |= {name: part.astype(kv.rot.dtype) for name, part in parts.items()}
    return {f"kv.{name}": array for name, array in stored.items()}


@partial(jax.jit, static_argnames=("packing", "shape", "dtype"))
def _decode(
    leaves: Mapping[str, jax.Array],
    length: jax.Array | int,
    basis: Basis,
    *,
    packing: tuple[Stage, ...],
    shape: Shape,
    dtype: str,
) -> KV:
    own = {name.removeprefix("kv."): array for name, array in leaves.items()}
    layers, rows, _ = own["rot"].shape
    given: list[Layouts] = [shape.layouts(rows, layers)]
    for stage in packing:
        given.append(stage.left(given[-1]))
    parts = {name: own[name].astype(jnp.float32) for name in given[-1]}
    for stage, layouts in zip(reversed(packing), reversed(given[:-1]), strict=True):
        parts = stage.decode(parts, own, length, layouts, basis)
    return KV(*(parts[name].astype(dtype) for name in PARTS))


def check_storable(values: np.ndarray, length: int, name: str, by: Codec) -> None:
    """Raise CodecError unless valid rows of values [L, T, ·] are finite, and of a size that float16 scales can have.

    A coefficient of a component is at most as large as its row.
    """
    values = values[:, :length].astype(np.float32)
    if not np.isfinite(values).all():
        raise CodecError(f"{name} has values that are not finite, which {by.name} cannot store; encode the chunk anew")
    sizes = np.abs(values) if by.by_layer else np.linalg.norm(values.astype(np.float64), axis=-1)
    largest = float(sizes.max(initial=0.0))
    if by.name != INT8 and largest * 2 > float(np.finfo(np.float16).max):
        raise CodecError(
            f"{name} has values up to {largest:.3g}, whose scales {by.name} would have to store as float16; store it "
            "exactly, or as int8"
        )


@dataclass(frozen=True)
class Kind:
    """What stages of one name are.

    Attributes:
        kind: which place in a codec they take, one of `ORDER`.
        make: a stage of what is written behind the name, split at colons; raises CodecError for what it cannot be.
        written: how they are written, for messages.
    """

    kind: str
    make: Callable[..., Stage | RowStage]
    written: str


def _bits(name: str, given: tuple[str, ...], *known: str) -> tuple[int, tuple[str, ...]]:
    """Bits and options of a quantiser."""
    bits, *rest = given or ("",)
    text = ":".join((name, *given))
    if not (bits.isascii() and bits.isdigit() and len(bits) == 1 and 1 <= int(bits) <= 8):
        raise CodecError(f"{name} needs bits from 1 to 8, as in {name}:4; got {text!r:.80}")
    if len(rest) > 1 or any(option not in known for option in rest):
        raise CodecError(f"{text!r:.80} has options that {name} does not know; there are {written()}")
    return int(bits), tuple(rest)


def _int8(*given: str) -> Quantised:
    if given:
        raise CodecError(f"no codec {':'.join((INT8, *given))!r:.80}: int8 has no options. There are {written()}")
    return Quantised(Int8())


def _kivi(*given: str) -> Quantised:
    bits, options = _bits("kivi", given, "channel")
    return Quantised(Kivi(bits, by_channel=bool(options)))


def _by_bits(name: str, make: Callable[[int], Quantiser]) -> Callable[..., Quantised]:
    return lambda *given: Quantised(make(_bits(name, given)[0]))


def _selection(how: str) -> Kind:
    options = [f"{how}:R:{option}" for option in OPTIONS.get(how, ())]
    return Kind(SELECT, partial(select, how), ", ".join([f"{how}:R", *options]))


STAGES: dict[str, Kind] = {
    **{how: _selection(how) for how in SELECTS},
    "merge": Kind(MERGE, merge, ", ".join(f"merge:{how}" for how in MERGES)),
    "pca": Kind(LOW_RANK, model_components, "pca:share"),
    "xkv": Kind(LOW_RANK, own_components, "xkv:l:r"),
    "capsule": Kind(LOW_RANK, capsule, "capsule:share, capsule:share:tilt"),
    INT8: Kind(QUANTISE, _int8, "int8"),
    "kivi": Kind(QUANTISE, _kivi, "kivi:B, kivi:B:channel"),
    "saw": Kind(QUANTISE, _by_bits("saw", Rotated), "saw:B"),
    "turbo": Kind(QUANTISE, _by_bits("turbo", Normal), "turbo:B"),
    "mixed": Kind(QUANTISE, mixed, "mixed:share:B:B"),
}
"""Stages by name."""

CODECS = tuple(STAGES)
"""Names of stages."""


def written() -> str:
    """What codecs there are, for messages."""
    listed = ", ".join(stage.written for stage in STAGES.values())
    numbers = "with a share R of the rows, as in kvzip:0.5, and B bits from 1 to 8, as in kivi:4"
    return f"{listed} {numbers}, joined by + in the order {', '.join(ORDER)}"


def codec(name: str) -> Codec:
    """A codec by its name: stages joined by ``+``, of each kind at most one, in the order of `ORDER`.

    Raises:
        CodecError: there is no such stage, its number is missing or out of bounds, an option is not known, or stages
            cannot stand together so.
    """
    if not isinstance(name, str):
        raise CodecError(f"the codec is {name!r:.80}; expected a text: {written()}")
    return _codec(name)


@lru_cache(maxsize=256)
def _codec(name: str) -> Codec:
    rows: list[RowStage] = []
    packing: list[Stage] = []
    before = ""
    for text in name.split("+"):
        first, *given = text.split(":")
        if first not in STAGES:
            near = get_close_matches(first, CODECS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise CodecError(f"no codec {text!r:.80}{hint} There are {written()}")
        kind = STAGES[first].kind
        if before and ORDER.index(kind) <= ORDER.index(before):
            raise CodecError(
                f"{text!r:.80} ({kind}) cannot stand behind {before} in {name!r:.80}: stages stand in the order "
                f"{', '.join(ORDER)}, at most one of each"
            )
        before = kind
        stage = STAGES[first].make(*given)
        packing.append(stage) if isinstance(stage, Stage) else rows.append(stage)
    check_rows(name, rows)
    return Codec(name, tuple(packing), tuple(rows))


def check_packs(named: Codec) -> None:
    """Raise CodecError for a codec with stages that take a chunk's model: a library packs without it."""
    if named.rows:
        raise CodecError(
            f"{named.rows[0].name} of {named.name!r:.80} says which rows a chunk has, and takes its model; use "
            "kamera_jax.compress first, and store what its restore() gives"
        )
