"""KVCapsule as its abstract has it: some keys, a network for the others, components of values along the sequence.

Of the paper (arXiv 2605.16439) the abstract alone was at hand, and there is no code: this is a reconstruction. Keys of
a chosen share of rows are stored; the others lie between their two neighbours among these, but for what a small network
adds, which was trained once for the model (`kamera_jax.compress.training`). Values are stored as their leading
components along the sequence, of a basis that is the model's too. Layers have budgets that fall with depth.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kamera_jax.compress.mixed import leverage
from kamera_jax.compress.packing import pack, packed_width, unpack, zeros_past
from kamera_jax.compress.stage import LOW_RANK, SHARE, Basis, Layout, Layouts, Leaves
from kamera_jax.errors import BasisError, CodecError

LEAST = 0.1
"""The share that a layer keeps at least, where all keep that much in the mean."""

TILT = 0.3
"""By which share of the mean the first layer keeps more, and the last one less."""

READ = 16
"""Components of a row's values that the network is told, at most."""

NEAR = 16.0
"""Rows that a distance to a neighbour is measured in."""

NETWORK = ("first", "first_bias", "second", "second_bias")
"""Arrays of the network."""


@dataclass(frozen=True, eq=False, repr=False)
class CapsuleBasis:
    """What ``capsule`` takes of a model: a network for the keys of each layer, and components of its values.

    Attributes:
        model: of which model it is; see `kamera_jax.compress.basis.subject`.
        rot_mean, free_mean: of each channel f32[L, F].
        rot_scale, free_scale: its deviation, above 0, f32[L, F].
        sequence: orthonormal components along the rows of chunks of T tokens, as columns f32[L, T, T]; chunks of other
            lengths, and all where T is 0, have those of a discrete cosine transform.
        read: components of a row's values that the network is told, as columns f32[L, Ff, E].
        first, first_bias: from both neighbours, three numbers of their distances and E of the values f32[L, I, H],
            f32[L, H].
        second, second_bias: to what is added to a key between its neighbours f32[L, H, Fr], f32[L, Fr].
    """

    model: str
    rot_mean: Float[np.ndarray, "L Fr"]
    rot_scale: Float[np.ndarray, "L Fr"]
    free_mean: Float[np.ndarray, "L Ff"]
    free_scale: Float[np.ndarray, "L Ff"]
    sequence: Float[np.ndarray, "L T T"]
    read: Float[np.ndarray, "L Ff E"]
    first: Float[np.ndarray, "L I H"]
    first_bias: Float[np.ndarray, "L H"]
    second: Float[np.ndarray, "L H Fr"]
    second_bias: Float[np.ndarray, "L Fr"]

    def __post_init__(self) -> None:
        layers, rot = self.rot_mean.shape
        shapes = network_shapes(layers, rot, self.free_mean.shape[1], self.sequence.shape[1], self.first.shape[2])
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise BasisError(
                    f"{name} of what was trained for capsule is {array.dtype}{list(array.shape)}; expected finite "
                    f"float32{list(shape)}: train it anew, kamera_jax.calibrate_codec(vlm, chunks, capsule=True)"
                )
        if min(self.rot_scale.min(), self.free_scale.min()) <= 0:
            raise BasisError("scales of what was trained for capsule are to be above 0; train it anew")
        off = np.einsum("ltr,lts->lrs", self.sequence, self.sequence) - np.eye(self.tokens, dtype=np.float32)
        if np.abs(off).max(initial=0) > 1e-3:
            raise BasisError("components along the sequence are not orthonormal; train what capsule takes anew")

    def __repr__(self) -> str:
        layers, width = self.rot_mean.shape
        return f"<CapsuleBasis of {layers} layers, {width} features of keys, {self.tokens} rows, {self.digest[:12]}>"

    @property
    def tokens(self) -> int:
        """Of how many tokens the chunks are whose components are known; 0 for none."""
        return self.sequence.shape[1]

    @cached_property
    def digest(self) -> str:
        """What names it where chunks are stored."""
        made = hashlib.sha256(f"capsule {self.model}".encode())
        for array in self.arrays.values():
            made.update(np.ascontiguousarray(array, "<f4").tobytes())
        return made.hexdigest()

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the codec is given."""
        return {name: getattr(self, name) for name in ARRAYS}

    def shapes(self, given: Layouts) -> dict[str, tuple[int, ...]]:
        """Those that its arrays would have for KV of these layouts."""
        return network_shapes(
            given["rot"].layers, given["rot"].width, given["free"].width, self.tokens, self.first.shape[2]
        )


ARRAYS = tuple(each.name for each in fields(CapsuleBasis) if each.name != "model")
"""Names of the arrays of a `CapsuleBasis`."""


def network_shapes(layers: int, rot: int, free: int, tokens: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a `CapsuleBasis`.

    Args:
        layers: L.
        rot, free: Fr and Ff.
        tokens: T; may be 0.
        hidden: H.
    """
    read = min(READ, free)
    return {
        "rot_mean": (layers, rot),
        "rot_scale": (layers, rot),
        "free_mean": (layers, free),
        "free_scale": (layers, free),
        "sequence": (layers, tokens, tokens),
        "read": (layers, free, read),
        "first": (layers, 2 * rot + 3 + read, hidden),
        "first_bias": (layers, hidden),
        "second": (layers, hidden, rot),
        "second_bias": (layers, rot),
    }


def normalised(part: str, values: jax.Array, length: jax.Array | int, basis: Basis) -> jax.Array:
    """Rows [L, T, F] less each channel's mean, over its deviation, f32; padding is zero."""
    mean, scale = (jnp.asarray(basis[f"{part}_{name}"])[:, None, :] for name in ("mean", "scale"))
    return zeros_past((values.astype(jnp.float32) - mean) / scale, length)


def along_sequence(sequence: Any, rows: int, components: int, length: jax.Array | int) -> jax.Array:
    """Orthonormal components of chunks of so many tokens, as columns f32[L, T, r]; of padding and past it zero.

    Args:
        sequence: see `CapsuleBasis`.
        rows: T.
        components: r.
        length: valid rows.
    """
    sequence = jnp.asarray(sequence, jnp.float32)
    tokens = sequence.shape[1]
    size = jnp.maximum(jnp.asarray(length, jnp.float32), 1.0)
    time = jnp.arange(rows, dtype=jnp.float32)[:, None]
    number = jnp.arange(components, dtype=jnp.float32)[None, :]
    cosines = jnp.cos(jnp.pi * (time + 0.5) * number / size) * jnp.sqrt(jnp.where(number == 0, 1.0, 2.0) / size)
    cosines = jnp.where((time < size) & (number < size), cosines, 0.0)[None]
    own = sequence[:, :rows, :components]
    own = jnp.pad(own, ((0, 0), (0, rows - own.shape[1]), (0, components - own.shape[2])))
    return jnp.where(jnp.asarray(length, jnp.int32) == tokens, own, cosines)


def network(basis: Basis, given: jax.Array) -> jax.Array:
    """What is added to keys [L, T, Fr], of inputs [L, T, I]: two layers with a SiLU between them."""
    first, first_bias, second, second_bias = (jnp.asarray(basis[name]) for name in NETWORK)
    hidden = jnp.einsum("lti,lih->lth", given, first, precision="highest") + first_bias[:, None]
    return jnp.einsum("lth,lhf->ltf", jax.nn.silu(hidden), second, precision="highest") + second_bias[:, None]


def inputs(before: jax.Array, behind: jax.Array, places: "Places", values: jax.Array, basis: Basis) -> jax.Array:
    """What the network is told of rows [L, T, I]: both neighbours' keys, where these stand, and the row's own values.

    Args:
        before, behind: keys of the neighbours [L, T, Fr], normalised.
        places: of the neighbours.
        values: as they come back [L, T, Ff], normalised.
        basis: of the model.
    """
    told = jnp.einsum("ltf,lfe->lte", values, jnp.asarray(basis["read"]), precision="highest")
    return jnp.concatenate([before, behind, places.told, told], axis=-1)


@dataclass(frozen=True)
class Places:
    """Where the neighbours of rows stand whose keys are stored.

    Attributes:
        first: number of the last stored row that is not behind each, in its layer, i32[L, T].
        second: of the next one; the same for stored rows, and behind the last.
        told: distance to both, in `NEAR` rows, and the weight of the first f32[L, T, 3].
    """

    first: jax.Array
    second: jax.Array
    told: jax.Array

    @staticmethod
    def of(chosen: jax.Array) -> "Places":
        """Of which rows are stored bool[L, T], the first of each layer among them."""
        number = chosen.shape[1]
        at = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32)[None], chosen.shape)
        count = chosen.sum(axis=1, dtype=jnp.int32)[:, None]
        first = jnp.cumsum(chosen, axis=1, dtype=jnp.int32) - 1
        before = jax.lax.cummax(jnp.where(chosen, at, 0), axis=1)
        behind = jax.lax.cummin(jnp.where(chosen, at, number), axis=1, reverse=True)
        there = behind < number
        second = jnp.where(chosen, first, jnp.minimum(first + 1, count - 1))
        behind = jnp.where(there, behind, before)
        gaps = [(at - before).astype(jnp.float32), (behind - at).astype(jnp.float32)]
        apart = (behind - before).astype(jnp.float32)
        weight = jnp.where(apart > 0, gaps[1] / jnp.maximum(apart, 1.0), 1.0)
        return Places(first, second, jnp.stack([gaps[0] / NEAR, gaps[1] / NEAR, weight], axis=-1))

    def between(self, before: jax.Array, behind: jax.Array) -> jax.Array:
        """Rows between their neighbours [L, T, F], in proportion to the distances."""
        weight = self.told[:, :, 2:]
        return weight * before + (1.0 - weight) * behind


class Told(NamedTuple):
    """What is known of the rows of a chunk before the network is asked; all but the last are normalised.

    Attributes:
        inputs: of the network [L, T, I].
        between: keys between their neighbours, or as they are stored [L, T, Fr].
        values: as they come back [L, T, Ff].
        chosen: whose keys are stored, bool[L, T].
    """

    inputs: jax.Array
    between: jax.Array
    values: jax.Array
    chosen: jax.Array


@dataclass(frozen=True)
class Capsule:
    """The stage ``capsule:ρ``; see the module, and `kamera_jax.compress.stage.Stage`.

    Layer l of L keeps ρ (1 + tilt (1 − 2 l/(L − 1))) of its keys and as many components of its values: in the mean ρ.
    Rows are chosen by `leverage`, and the first and the last always. The stored arrays of all layers stand behind each
    other, for each has a number of its own; what of a row is stored in which layer takes a bit.

    Attributes:
        share: ρ.
        tilt: negative where deeper layers keep more.
    """

    share: float
    tilt: float = TILT
    kind: ClassVar[str] = LOW_RANK
    needs: ClassVar[frozenset[str]] = frozenset({"capsule"})

    def check(self, given: Layouts) -> None:
        """Any keys and values will do."""

    def shares(self, layers: int) -> np.ndarray:
        """What each layer keeps f64[L]; none less than `LEAST` or more than all, and ρ in the mean."""
        room = min(abs(self.tilt) * self.share, 1.0 - self.share, max(self.share - LEAST, 0.0))
        depth = np.linspace(1.0, -1.0, layers) if layers > 1 else np.zeros(layers)
        return self.share + np.copysign(room, self.tilt) * depth

    def counts(self, layers: int, rows: int) -> np.ndarray:
        """How many keys, and components of values, each layer keeps of chunks of 0 to so many tokens i32[L, T + 1]."""
        lengths = np.arange(rows + 1)
        rounded = np.floor(self.shares(layers)[:, None] * lengths + 0.5)
        return np.clip(rounded, np.minimum(lengths, 2), lengths).astype(np.int32)

    def left(self, given: Layouts) -> dict[str, Layout]:
        """Chosen keys as ``rot.kept`` and components of values as ``free.kept``, the layers behind each other."""
        rot = given["rot"]
        free = given["free"]
        kept = int(self.counts(rot.layers, rot.rows)[:, -1].sum())
        return {
            "rot.kept": Layout(kept, rot.width, rot.heads, keys=True, latent=False, tokens=False),
            "free.kept": Layout(kept, free.width, free.heads, keys=False, latent=False, tokens=False),
        }

    def widths(self, given: Layouts) -> dict[str, int]:
        """See `kamera_jax.compress.stage.Marking`."""
        return {"rot": packed_width(given["rot"].layers, 1), "free": 0}

    def chosen(self, keys: jax.Array, count: jax.Array, length: jax.Array | int) -> jax.Array:
        """Which rows' keys are stored bool[L, T], of keys [L, T, Fr] and how many of each layer."""
        at = jnp.arange(keys.shape[1], dtype=jnp.int32)[None]
        scores = jnp.where((at == 0) | (at == length - 1), jnp.inf, leverage(keys, length))
        order = jnp.argsort(jnp.where(at < length, -scores, jnp.inf), axis=1, stable=True)
        return (jnp.argsort(order, axis=1, stable=True) < count[:, None]) & (at < length)

    def _count(self, layout: Layout, length: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """How many are kept in each layer i32[L], and where each layer's begin."""
        count = jnp.asarray(self.counts(layout.layers, layout.rows))[:, jnp.asarray(length, jnp.int32)]
        return count, jnp.cumsum(count, dtype=jnp.int32) - count

    def _components(self, basis: Basis, layout: Layout, length: jax.Array | int) -> jax.Array:
        """Along the sequence [L, T, r], as many as any layer keeps."""
        most = int(self.counts(layout.layers, layout.rows)[:, -1].max())
        return along_sequence(basis["sequence"], layout.rows, most, length)

    def encode(
        self, parts: Mapping[str, jax.Array], length: jax.Array | int, given: Layouts, basis: Basis
    ) -> tuple[dict[str, jax.Array], Leaves]:
        """See `Stage`."""
        layout = given["rot"]
        count, starts = self._count(layout, length)
        size = self.left(given)["rot.kept"].rows
        keys, values = (normalised(part, parts[part], length, basis) for part in ("rot", "free"))
        chosen = self.chosen(keys, count, length)
        along = self._components(basis, layout, length)
        components = jnp.einsum("ltr,ltf->lrf", along, values, precision="highest")
        number = jnp.arange(along.shape[2], dtype=jnp.int32)[None]

        def behind_each_other(rows: jax.Array, which: jax.Array, numbers: jax.Array) -> jax.Array:
            at = jnp.where(which, numbers + starts[:, None], size)
            flat = jnp.zeros((size, rows.shape[2]), jnp.float32).at[at].set(rows, mode="drop")
            # The last one again in place of padding, which is then in no scale of a quantiser.
            return flat[jnp.minimum(jnp.arange(size, dtype=jnp.int32), count.sum(dtype=jnp.int32) - 1)][None]

        left = {
            "rot.kept": behind_each_other(keys, chosen, jnp.cumsum(chosen, axis=1, dtype=jnp.int32) - 1),
            "free.kept": behind_each_other(components, number < count[:, None], number),
        }
        marks = pack(chosen.T.astype(jnp.uint8)[None], 1)
        return left, {"rot": marks, "free": jnp.zeros((1, layout.rows, 0), jnp.uint8)}

    def told(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, Any],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> "Told":
        """What is known of each row without the network; see `decode`."""
        layout = given["rot"]
        count, starts = self._count(layout, length)
        along = self._components(basis, layout, length)
        number = jnp.arange(along.shape[2], dtype=jnp.int32)[None]
        kept = jnp.where((number < count[:, None])[..., None], parts["free.kept"][0][number + starts[:, None]], 0.0)
        values = jnp.einsum("ltr,lrf->ltf", along, kept, precision="highest")
        chosen = unpack(leaves["rot"], 1, layout.layers)[0].T > 0
        places = Places.of(chosen)
        before, behind = (parts["rot.kept"][0][at + starts[:, None]] for at in (places.first, places.second))
        between = places.between(before, behind)
        return Told(inputs(before, behind, places, values, basis), between, values, chosen)

    def decode(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, Any],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> dict[str, jax.Array]:
        """See `Stage`."""
        told = self.told(parts, leaves, length, given, basis)
        more = jnp.where(told.chosen[..., None], 0.0, network(basis, told.inputs))
        back = {"rot": told.between + more, "free": told.values}
        restored = {}
        for part, rows in back.items():
            mean, scale = (jnp.asarray(basis[f"{part}_{name}"])[:, None, :] for name in ("mean", "scale"))
            restored[part] = zeros_past(rows * scale + mean, length)
        return restored

    def nbytes(self, given: Layouts) -> int:
        """A bit for each layer and row."""
        return given["rot"].rows * packed_width(given["rot"].layers, 1)

    def model_bytes(self, given: Layouts, basis: Basis) -> int:
        """Bytes of the network, and of the components that any chunk's values are made of."""
        arrays = {name: np.asarray(basis[name]) for name in ARRAYS}
        tokens = arrays["sequence"].shape[1]
        along = 4 * tokens * int(self.counts(given["rot"].layers, tokens)[:, -1].sum())
        return along + sum(array.nbytes for name, array in arrays.items() if name != "sequence")


def capsule(*given: str) -> Capsule:
    """``capsule:ρ``, or with the tilt, ``capsule:ρ:δ``.

    Raises:
        CodecError: it has no share above 0 and at most 1, or its tilt is not between −1 and 1.
    """
    share = float(given[0]) if given and SHARE.fullmatch(given[0]) else 0.0
    tilt = TILT
    if len(given) > 1:
        sign, digits = (-1.0, given[1][1:]) if given[1].startswith("-") else (1.0, given[1])
        tilt = sign * float(digits) if SHARE.fullmatch(digits) else 2.0
    if not 0 < share <= 1 or len(given) > 2 or abs(tilt) >= 1:
        raise CodecError(
            "capsule needs the share of keys and of components of values to keep, above 0 and at most 1, as in "
            "capsule:0.4, and may have by which share of it the first layer keeps more and the last one less, between "
            f"-1 and 1, as in capsule:0.4:-0.3; got {':'.join(('capsule', *given))!r:.80}"
        )
    return Capsule(share, tilt)
