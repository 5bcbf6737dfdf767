"""What a codec may know of a model beforehand: the directions in which its keys and values vary, measured once.

A basis is of one model, whatever dtype that is loaded in. It is found by the model's name in `subject`: models bring
theirs when they are loaded, and `kamera_jax.calibrate_codec` makes one.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from kamera_jax.compress.asking import REMEDY as ASK
from kamera_jax.compress.asking import QueryStatistics
from kamera_jax.compress.capsule import CapsuleBasis
from kamera_jax.compress.codec import NOTHING, Codec, basis_shapes
from kamera_jax.compress.stage import PARTS, Basis, Layout, Layouts
from kamera_jax.errors import BasisError
from kamera_jax.identity import content_key
from kamera_jax.kv import KV, KVSpec

REMEDY = (
    "measure one, kamera_jax.calibrate_codec(vlm, chunks), and keep it, models.hub.basis.keep(vlm, basis), or give the "
    "one that there was, kamera_jax.compress.basis.hold(basis)"
)


def subject(spec: KVSpec | None, model: str) -> str:
    """A model without the dtype that it is loaded in: of its configuration, preprocessing, weights and widths.

    Args:
        spec: the model's.
        model: its fingerprint, for models that do not say what it was made from.
    """
    if spec is None or not spec.identity:
        return model
    return content_key({"identity": spec.identity, "kv": [spec.layers, spec.rot_dim, spec.free_dim]})


@dataclass(frozen=True, eq=False, repr=False)
class CodecBasis:
    """For each layer of a model an orthonormal basis of its un-rotated keys, and one of its values.

    Components stand in the order of how much varies along them. An MLA has one of k_pe and one of its latents.

    Attributes:
        model: of which model it is; see `subject`.
        rot, free: components as columns f32[L, F, F].
        rot_mean, free_mean: what is taken off before f32[L, F].
        rot_variance, free_variance: along each component f32[L, F].
        capsule: what was trained for ``capsule``; None for nothing. It has a digest of its own.
        queries: of questions, for ``expected:R:measured``; None for nothing. Its digest stands in
            the codec of a chunk whose rows it chose.
    """

    model: str
    rot: Float[np.ndarray, "L Fr Fr"]
    rot_mean: Float[np.ndarray, "L Fr"]
    rot_variance: Float[np.ndarray, "L Fr"]
    free: Float[np.ndarray, "L Ff Ff"]
    free_mean: Float[np.ndarray, "L Ff"]
    free_variance: Float[np.ndarray, "L Ff"]
    capsule: CapsuleBasis | None = None
    queries: QueryStatistics | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            basis, mean, variance = (getattr(self, f"{part}{name}") for name in ("", "_mean", "_variance"))
            layers = basis.shape[0]
            width = basis.shape[-1]
            if basis.shape != (layers, width, width) or {mean.shape, variance.shape} != {(layers, width)}:
                raise BasisError(
                    f"a basis is [L, F, F], its mean and variances [L, F]; got {basis.shape}, {mean.shape}"
                )
            if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in (basis, mean, variance)):
                raise BasisError(f"the basis of {part} is not of finite float32; {REMEDY}")
            off = np.einsum("lfr,lfs->lrs", basis, basis) - np.eye(width, dtype=np.float32)
            if np.abs(off).max(initial=0) > 1e-3:
                raise BasisError(f"the basis of {part} is not orthonormal; {REMEDY}")
        for name in ("capsule", "queries"):
            each = getattr(self, name)
            if each is not None and each.model != self.model:
                raise BasisError(f"{name} is of another model than the basis; {REMEDY}")

    def __repr__(self) -> str:
        layers, width = self.rot_mean.shape
        trained = ", with capsule" if self.capsule else ""
        features = f"{width} and {self.free_mean.shape[1]} features"
        return f"<CodecBasis of {layers} layers, {features}{trained}, {self.digest[:12]}>"

    @cached_property
    def digest(self) -> str:
        """What names it where chunks are stored."""
        made = hashlib.sha256(self.model.encode())
        for part in PARTS:
            for name in (part, f"{part}_mean"):
                made.update(np.ascontiguousarray(getattr(self, name), "<f4").tobytes())
        return made.hexdigest()

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a codec is given."""
        return {name: getattr(self, name) for part in PARTS for name in (part, f"{part}_mean")}

    def shapes(self, given: Layouts) -> dict[str, tuple[int, ...]]:
        """Those that these would have for KV of these layouts."""
        return {name: each.shape for name, each in basis_shapes(given).items()}


Measured = CodecBasis | CapsuleBasis
"""What a codec may take of a model."""

_HELD: dict[str, Measured] = {}
_LATEST: dict[str, CodecBasis] = {}
_OFFERED: dict[str, Callable[[], CodecBasis | None]] = {}


def hold(basis: CodecBasis) -> None:
    """Let codecs use a basis: of its model this one from now on, and for what it packed before whenever it is read."""
    _HELD[basis.digest] = basis
    if basis.capsule is not None:
        _HELD[basis.capsule.digest] = basis.capsule
    _LATEST[basis.model] = basis


def offer(model: str, read: Callable[[], CodecBasis | None]) -> None:
    """Say how a model's basis is read, where one is asked for."""
    _OFFERED[model] = read


def _take(model: str) -> None:
    read = _OFFERED.pop(model, None)
    basis = None if read is None else read()
    if basis is None:
        return
    _HELD.setdefault(basis.digest, basis)
    if basis.capsule is not None:
        _HELD.setdefault(basis.capsule.digest, basis.capsule)
    _LATEST.setdefault(model, basis)


def of_model(spec: KVSpec | None, model: str) -> CodecBasis:
    """The basis of a model.

    Raises:
        BasisError: none is known, or it is of other widths.
    """
    named = subject(spec, model)
    if named not in _LATEST:
        _take(named)
    if named not in _LATEST:
        raise BasisError(f"nothing was measured for a codec of model {model[:12]}: {REMEDY}")
    return _LATEST[named]


def by_digest(digest: str) -> Measured:
    """The basis that packed something.

    Raises:
        BasisError: it is not known.
    """
    if digest not in _HELD:
        for model in tuple(_OFFERED):
            _take(model)
    if digest not in _HELD:
        raise BasisError(
            f"what packed this, the basis {digest[:12]}, is not known: load the model that it is of (models.load), or "
            "give it, kamera_jax.compress.basis.hold(basis)"
        )
    return _HELD[digest]


def for_codec(named: Codec, spec: KVSpec | None, model: str) -> Measured | None:
    """What a codec is to be given of a model; None if it needs nothing.

    Raises:
        BasisError: it is not known of this model.
    """
    if not named.needs:
        return None
    basis = of_model(spec, model)
    if "capsule" not in named.needs:
        return basis
    if basis.capsule is None:
        raise BasisError(
            f"nothing was trained for capsule of model {model[:12]}: train it, kamera_jax.calibrate_codec(vlm, chunks, "
            "capsule=True), and keep it, models.hub.basis.keep(vlm, basis)"
        )
    return basis.capsule


def queries_of_model(spec: KVSpec, model: str) -> QueryStatistics:
    """How a model's questions ask.

    Raises:
        BasisError: it is not known.
    """
    queries = of_model(spec, model).queries
    if queries is None:
        raise BasisError(f"nothing is known of the questions of model {model[:12]}: {ASK}")
    return queries


def arrays_of(basis: Measured | None, given: dict[str, Layout]) -> Basis:
    """The arrays of a basis for KV of these layouts.

    Raises:
        BasisError: they are of other layers or widths.
    """
    if basis is None:
        return NOTHING
    shapes = basis.shapes(given)
    if shapes != {name: each.shape for name, each in basis.arrays.items()}:
        raise BasisError(f"{basis!r} is of other KV, which has {shapes}; give the basis of this model")
    return basis.arrays


def measured(model: str, kvs: Iterable[tuple[KV, int]]) -> CodecBasis:
    """The basis of KV [L, T, ·] with so many valid rows each: principal components over all rows, in float64.

    The sign of a component is that of its largest entry, so that the same KV give the same basis.

    Raises:
        BasisError: there are no rows, or they are of different widths or not finite.
    """
    sums: dict[str, Any] = {}
    squares: dict[str, Any] = {}
    rows = 0
    for kv, length in kvs:
        rows += length
        for part in PARTS:
            x = np.asarray(getattr(kv, part)[:, :length], np.float64)
            if part in sums and sums[part].shape != (x.shape[0], x.shape[2]):
                raise BasisError(f"chunks have KV of different widths, {x.shape} and others; give those of one model")
            sums[part] = sums.get(part, 0) + x.sum(axis=1)
            squares[part] = squares.get(part, 0) + np.einsum("ltf,ltg->lfg", x, x)
    if rows < 2:
        raise BasisError(f"a basis is measured on chunks of at least two tokens; got {rows}")
    arrays = {}
    for part in PARTS:
        mean = sums[part] / rows
        covariance = squares[part] / rows - np.einsum("lf,lg->lfg", mean, mean)
        if not np.isfinite(covariance).all():
            raise BasisError(f"kv.{part} has values that are not finite; encode the chunks anew")
        variance, basis = np.linalg.eigh(covariance)
        basis = basis[:, :, ::-1]
        largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=1)[:, None, :], axis=1)
        arrays[part] = np.where(largest < 0, -basis, basis).astype(np.float32)
        arrays[f"{part}_mean"] = mean.astype(np.float32)
        arrays[f"{part}_variance"] = np.maximum(variance[:, ::-1], 0).astype(np.float32)
    return CodecBasis(model, **arrays)
