"""Chunks and patches as rows of a pack: plain fields, arrays, digests, and the key that the index has."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import numpy as np

from kamera_jax.arguments import check_type
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.compress.basis import Measured, arrays_of, for_codec
from kamera_jax.compress.codec import INT8, Codec, Shape, check_storable
from kamera_jax.compress.compressed import codec_of, packing
from kamera_jax.compress.stage import PARTS
from kamera_jax.errors import (
    BasisError,
    CodecError,
    DonatedError,
    LibraryCorruptError,
    MissingKeyError,
    UnstorableError,
)
from kamera_jax.handle import deleted
from kamera_jax.identity import EXACT, content_key
from kamera_jax.kv import KV, Factors, KVSpec, Segment, Sketch, SketchSpec
from kamera_jax.library import int8
from kamera_jax.library.arrays import DTYPES
from kamera_jax.library.digests import digest
from kamera_jax.library.fields import (
    AXES,
    KEY,
    NAME,
    NAME_LENGTH,
    check_chunk,
    check_kv,
    check_patch,
    check_spec,
    packed_basis,
    packed_shape,
)
from kamera_jax.library.files import MALFORMED
from kamera_jax.library.origin import Origin
from kamera_jax.record import Arrays, Plain, join_chunk, join_patch, spec_of, split_chunk, split_patch

Storage = str
"""How a chunk's KV is stored: ``"exact"``, bit for bit, or by a codec; see `kamera_jax.compress`."""

Kind = Literal["chunks", "patches"]

_FACTORS = tuple(f"patch.{field.name}" for field in fields(Factors) if field.name != "ranks")
_TOKENS_LAST = ("patch.u",)

DESCRIBED_BYTES = 2**24
"""What a row says of itself beside its arrays is no longer, as JSON: manifests are read whole."""


@dataclass(frozen=True)
class Row:
    """What a pack keeps of one chunk or patch.

    Attributes:
        key: its name in the index.
        kind: which packs it belongs in.
        about: its plain fields; the model's spec stands apart.
        spec: of the model, or None.
        leaves: its arrays as stored, by dotted name.
        digests: of every leaf, as stored; see `kamera_jax.library.digests`.
    """

    key: str
    kind: Kind
    about: Plain
    spec: Plain | None
    leaves: Arrays
    digests: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(leaf.nbytes for leaf in self.leaves.values())

    @property
    def described(self) -> int:
        """Bytes of all the rest, as JSON has it, about."""
        return len(json.dumps([self.about, self.spec, self.digests])) + 150 * len(self.leaves)


def blocks(name: str, shape: tuple[int, ...]) -> int:
    """How many digests a leaf has: one a layer where layers can be read apart, else one."""
    return shape[0] if name.startswith("kv.") else 1


def row_of(item: Chunk | Patch, storage: Storage, origin: Origin | None = None) -> Row:
    """A copy that shares nothing with the device, of an item that comes back as it is.

    Raises:
        ValueError: neither a chunk nor a patch, an unknown storage, or the origin of a patch.
        MissingKeyError: it has no key.
        UnstorableError: something in it cannot be stored, or would not come back as it is.
        DonatedError: its arrays were given away.
    """
    check_storage(storage)
    if not isinstance(item, Chunk | Patch):
        raise ValueError(f"a library stores chunks and patches; got {type(item).__name__}: encode it first")
    what = type(item).__name__.lower()
    check_type(origin, (Origin, type(None)), "origin", "kamera_jax.Origin('report.pdf', page=3), or None")
    if origin is not None and not isinstance(item, Chunk):
        raise ValueError(f"a patch has no origin of its own, its chunk has; got {origin.where!r:.80}: leave it out")
    if item.key is None or (isinstance(item.key, str) and not item.key):
        raise MissingKeyError(
            f"the {what} has no key, so nothing says how its arrays were computed: it, or what it was run behind, was "
            "built by hand or went through a JAX transformation or dataclasses.replace; put what encode or form_patch "
            "gave, and move that with its .to(...)"
        )
    if not isinstance(item.key, str) or not KEY.fullmatch(item.key):
        raise UnstorableError(f"the {what}'s key is {item.key!r}; expected 64 hexadecimal digits in lower case")
    try:
        if deleted(item):
            raise DonatedError(f"the arrays of {what} {item.key[:12]} were donated; put what took their place")
        return _chunk_row(item, storage, origin) if isinstance(item, Chunk) else _patch_row(item)
    except (DonatedError, BasisError):
        raise
    except (*MALFORMED, RuntimeError) as error:  # whatever comes of fields of other types than they have
        raise UnstorableError(f"{what} {item.key[:12]} cannot be stored: {error}") from error


def check_storage(storage: Any) -> None:
    """Raise CodecError unless it is ``"exact"`` or names a codec."""
    try:
        packing(storage)
    except CodecError as error:
        raise CodecError(f"storage is exact or a codec: {error}") from None


def _chunk_row(chunk: Chunk, storage: Storage, origin: Origin | None) -> Row:
    for name, kind in (("kv", KV), ("source", Segment | None), ("spec", KVSpec | None)):
        _check_kind(getattr(chunk, name), kind, name)
    given = {"kv.rot": chunk.kv.rot, "kv.free": chunk.kv.free, "positions": chunk.positions}
    if chunk.counts is not None:
        given["counts"] = chunk.counts
    if chunk.source is not None:
        _check_kind(chunk.source.inputs, Mapping, "source.inputs")
        given |= {f"inputs.{_text(name)}": array for name, array in chunk.source.inputs.items()}
        given["source.positions"] = chunk.source.positions
    _check_arrays(given)
    _check_tuple(chunk.antecedents, "antecedents")
    about, leaves = split_chunk(chunk)
    _check_storable(leaves)
    spec = about.pop("spec")
    plain: Plain | None = None if spec is None else _plain(spec)
    if plain is not None:
        check_spec(plain)
        if spec_of(plain) != chunk.spec:
            raise ValueError(f"the model's spec comes back as another one, of other types; got {chunk.spec!r:.300}")
    about = _plain(about) | {"spec": None if plain is None else content_key(plain)}
    about |= {"storage": storage, "dtype": leaves["kv.rot"].dtype.name}
    if origin is not None:
        about["origin"] = origin.plain
    check_kv({}, leaves)
    if not leaves["kv.rot"].size or not leaves["kv.free"].size:
        raise ValueError(f"its KV, {leaves['kv.rot'].shape} and {leaves['kv.free'].shape}, has no values")
    if storage != EXACT:
        if leaves["kv.rot"].dtype != leaves["kv.free"].dtype:
            raise ValueError(f"kv.rot and kv.free have different dtypes, of which {storage} keeps one; put it as it is")
        by = packing(storage)
        shape = Shape.of(chunk.kv, chunk.spec)
        basis = for_codec(by, chunk.spec, chunk.model)
        leaves |= _packed(by, leaves, chunk, shape, basis)
        if storage != INT8:
            about["packed"] = (replace(shape, layers=0) if by.by_layer else shape).plain
        if basis is not None:
            about["packed"] |= {"basis": basis.digest}
    check_chunk(about, plain, leaves)
    return _checked(Row(chunk.key, "chunks", about, plain, leaves, _digests(leaves)))


def _packed(by: Codec, leaves: Arrays, chunk: Chunk, shape: Shape, basis: Measured | None) -> Arrays:
    """KV in few bits. Eight are made on the host, as they always were: what is stored is the same to the bit."""
    for part in PARTS:
        check_storable(leaves[f"kv.{part}"], chunk.length, f"kv.{part}", by)
    if by.name == INT8:
        return int8.quantised(leaves["kv.rot"], leaves["kv.free"], chunk.length)
    by.check_shape(shape)
    arrays = arrays_of(basis, shape.layouts(1, shape.layers))
    return {name: np.asarray(leaf) for name, leaf in by.encode(chunk.kv, chunk.length, shape.heads, arrays).items()}


def check_row(row: Row) -> None:
    """Raise ValueError unless a row that another library has is one that `row_of` may give."""
    leaves = dict(row.leaves)
    _check_storable(leaves)
    if row.kind == "patches":
        check_patch(row.about, leaves)
    else:
        named = row.about.get("spec")
        if named != (None if row.spec is None else content_key(row.spec)):
            raise ValueError(f"its model's spec is not the one of the digest {named!r:.80}")
        check_chunk(row.about, row.spec, leaves)
    _checked(row)


def _check_arrays(given: Mapping[str, Any]) -> None:
    """Before they are copied, which makes an array of anything."""
    for name, array in given.items():
        if not isinstance(array, jax.Array | np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise ValueError(f"{name} is a {type(array).__name__}; expected an array, of JAX or numpy")


def _check_tuple(value: Any, name: str) -> None:
    if type(value) is not tuple:
        raise ValueError(f"{name} is {value!r:.80}; expected a tuple of keys")


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"an input has the name {name!r:.80}; expected a text")
    return name


def _plain(fields: Any) -> Any:
    """Fields as JSON gives them back; numbers of numpy are Python's."""
    return json.loads(json.dumps(fields, default=_number))


def _number(value: Any) -> Any:
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    raise ValueError(f"a field is {value!r:.80}, a {type(value).__name__}; expected texts and numbers")


def _check_kind(value: Any, kind: Any, name: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"its {name} is a {type(value).__name__}; expected {getattr(kind, '__name__', kind)}")


def _check_storable(leaves: Arrays) -> None:
    """Raise ValueError for an array that would not come back; bring all into the machine's byte order."""
    for name, leaf in leaves.items():
        if leaf.dtype.name not in DTYPES:
            raise ValueError(f"array {name!r} has dtype {leaf.dtype}; stored are {', '.join(DTYPES)}")
        if not leaf.dtype.isnative:
            leaves[name] = leaf = leaf.astype(leaf.dtype.newbyteorder("="))
        if (kept := jax.dtypes.canonicalize_dtype(leaf.dtype)) != leaf.dtype:
            raise ValueError(
                f"array {name!r} has dtype {leaf.dtype}, and would come back as {kept}: JAX has no more bits unless "
                f"jax_enable_x64 is set; make it {kept}"
            )
        if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
            raise ValueError(
                f"array {name!r:.200} has a name that cannot be stored; expected letters from A to Z, digits and "
                f"underscores, with dots between them, at most {NAME_LENGTH} in all"
            )
        if leaf.ndim > AXES:
            raise ValueError(f"array {name!r} has {leaf.ndim} axes; expected at most {AXES}")


def _digests(leaves: Arrays) -> dict[str, str]:
    return {name: digest(leaf, blocks(name, leaf.shape)) for name, leaf in leaves.items()}


def _checked(row: Row) -> Row:
    if row.described > DESCRIBED_BYTES:
        raise ValueError(f"its plain fields take {row.described} bytes; expected at most {DESCRIBED_BYTES}")
    return row


def _patch_row(patch: Patch) -> Row:
    for name, kind in (("factors", Factors), ("sketch", Sketch | None)):
        _check_kind(getattr(patch, name), kind, name)
    given = {f"patch.{name}": getattr(patch.factors, name) for name in ("u", "v", "ranks")}
    if patch.factors.scale is not None:
        given["patch.scale"] = patch.factors.scale
    if patch.sketch is not None:
        _check_kind(patch.sketch.spec, SketchSpec, "sketch.spec")
        given |= {f"sketch.{name}": getattr(patch.sketch, name) for name in ("queries", "outputs", "tokens")}
    mass = vars(patch)["_mass"]  # not as it is read, which may take it to the device
    _check_arrays(given | {"patch.residual": patch.residual, "patch.mass": getattr(mass, "array", mass)})
    _check_tuple(patch.antecedents, "antecedents")
    about, leaves = split_patch(patch)
    _check_storable(leaves)
    ranks = leaves.pop("patch.ranks")
    _check_factors(leaves, ranks)
    components, rows = leaves["patch.u"].shape[1:]
    about = _plain(about) | {"ranks": ranks.tolist(), "components": components, "rows": rows}
    _check_packable(about, leaves)
    used = _used(about)
    whole = dict(leaves)
    for name in _FACTORS:
        if name in leaves:
            packed = leaves[name][used]
            leaves[name] = np.ascontiguousarray(packed[:, : patch.length] if name in _TOKENS_LAST else packed)
    check_patch(about, leaves)
    for name in _FACTORS:
        if name in whole and np.count_nonzero(whole[name]) != np.count_nonzero(leaves[name]):
            raise ValueError(f"{name} has values in components or tokens that are not in use; make them 0")
    return _checked(Row(patch.key, "patches", about, None, leaves, _digests(leaves)))


def _check_packable(about: Plain, leaves: Arrays) -> None:
    """Raise ValueError unless a length and ranks are of a patch's factors."""
    length = about["length"]
    if type(length) is not int or not 0 <= length <= about["rows"]:
        raise ValueError(f"its length is {length!r}; expected a whole number of at most its {about['rows']} rows")
    if not about["ranks"] or not all(0 <= rank <= about["components"] for rank in about["ranks"]):
        raise ValueError(f"its ranks are {about['ranks']!r:.80}; expected 0 to {about['components']} for each layer")


def _check_factors(leaves: Arrays, ranks: np.ndarray) -> None:
    u = leaves["patch.u"]
    v = leaves["patch.v"]
    scale = leaves.get("patch.scale")
    if u.ndim != 3 or v.ndim != 3 or u.shape[:2] != v.shape[:2] or ranks.shape != u.shape[:1]:
        raise ValueError(f"its factors are u {u.shape}, v {v.shape}, ranks {ranks.shape}; expected [L, m, ·] and [L]")
    if scale is not None and scale.shape != u.shape[:2]:
        raise ValueError(f"the scales of its factors are {scale.shape}; expected {u.shape[:2]}")
    if ranks.dtype != np.int32:
        raise ValueError(f"its ranks are {ranks.dtype}; expected int32")


def _used(about: Mapping[str, Any]) -> np.ndarray:
    """Which components are in use, bool[L, m]."""
    return np.arange(about["components"])[None, :] < np.asarray(about["ranks"], np.int32)[:, None]


REMEDY = "delete its key and put it anew"


@contextmanager
def _wellformed(what: str) -> Iterator[None]:
    try:
        yield
    except (LibraryCorruptError, BasisError):
        raise
    except (*MALFORMED, RuntimeError) as error:  # of the device too, for shapes that it cannot have
        raise LibraryCorruptError(f"what is stored of {what} does not make one: {error}; {REMEDY}") from error


def chunk_of(about: Mapping[str, Any], spec: Plain | None, leaves: Mapping[str, Any]) -> Chunk:
    """The chunk of a row, on the device; its codec says what storing it did to the KV."""
    with _wellformed("a chunk"):
        check_chunk(about, spec if about["spec"] else None, leaves)
        about = {**about, "codec": codec_of(about["codec"], about["storage"])}
        return join_chunk({**about, "spec": spec if about["spec"] else None}, {**leaves, **kv_leaves(about, leaves)})


def kv_leaves(about: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """``kv.rot`` and ``kv.free`` of a row in the model's dtype; of any layers of it."""
    with _wellformed("a chunk"):
        check_kv(about, leaves)
        if about["storage"] == EXACT:
            return {name: leaves[name] for name in ("kv.rot", "kv.free")}
        if about["storage"] == INT8:
            return int8.restored(leaves, DTYPES[about["dtype"]])
        shape = packed_shape(about, leaves)
        basis = packed_basis(about, shape)
        kv = packing(about["storage"]).decode(leaves, about["length"], shape, about["dtype"], basis)
        return {"kv.rot": kv.rot, "kv.free": kv.free}


def patch_of(about: Mapping[str, Any], leaves: Arrays) -> Patch:
    """The patch of a row, on the device; what its packing left out is zero."""
    with _wellformed("a patch"):
        check_patch(about, leaves)
        return join_patch(about, _unpacked(about, leaves))


def _unpacked(about: Mapping[str, Any], leaves: Arrays) -> Arrays:
    used = _used(about)
    whole = dict(leaves)
    for name in _FACTORS:
        if name in leaves:
            packed = leaves[name]
            rest = (about["rows"],) if name in _TOKENS_LAST else packed.shape[1:]
            whole[name] = np.zeros((*used.shape, *rest), packed.dtype)
            if name in _TOKENS_LAST:
                whole[name][used, : about["length"]] = packed
            else:
                whole[name][used] = packed
    whole["patch.ranks"] = np.asarray(about["ranks"], np.int32)
    return whole
