"""Whole packs at once: onto the devices of a mesh through Orbax, onto one by reading the files."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Chunk
from kamera_jax.compress.compressed import codec_of, packing
from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError
from kamera_jax.identity import EXACT
from kamera_jax.library.fields import check_kv, grouped, packed_basis, packed_shape
from kamera_jax.library.manifest import Leaf
from kamera_jax.library.packs import Pack
from kamera_jax.library.reading import Reader
from kamera_jax.library.rows import chunk_of
from kamera_jax.placement import Placement
from kamera_jax.record import Plain

Where = jax.sharding.Sharding | Placement
"""Where arrays come to: of KV [N, L, T, F] a sharding, or the placement of a model."""


@dataclass(frozen=True)
class Stacked:
    """N chunks of equal shapes.

    Attributes:
        keys: of the rows, in order; None for one that was deleted.
        arrays: ``kv.rot`` and ``kv.free`` [N, L, T, ·], ``positions`` [N, A, T], and ``inputs.*``.
        about: plain fields of every row.
        specs: of the models, by their digest.
    """

    keys: tuple[str | None, ...]
    arrays: dict[str, jax.Array]
    about: tuple[Plain, ...]
    specs: dict[str, Plain]

    def chunk(self, row: int) -> Chunk:
        """The chunk of one row."""
        about = self.about[row]
        about = {**about, "codec": codec_of(about["codec"], about["storage"]), "storage": "exact"}
        return chunk_of(about, self.specs.get(str(about["spec"])), {name: a[row] for name, a in self.arrays.items()})


def restore_pack(reader: Reader, name: str, sharding: Where | None) -> tuple[Stacked, ...]:
    """All chunks of the pack of a name; see `ChunkLibrary.restore`."""
    index = reader.index
    index.refresh()
    check = reader.checks_pack(name)
    try:
        pack = index.pack(name)
        stacked = restore(pack, index.live(name), sharding, verified=check)
    except (KeyError, FileNotFoundError) as error:
        raise ChunkNotFoundError(f"{reader.root} has no pack {name!r} of chunks; packs() names them") from error
    if check:
        reader.checked_pack(name)
    return stacked


def restore(pack: Pack, live: Sequence[str], sharding: Where | None, *, verified: bool) -> tuple[Stacked, ...]:
    """All chunks of a pack, checked while they are read; see `ChunkLibrary.restore`."""
    if isinstance(sharding, Placement):
        sharding = sharding.of_features(4)
    if sharding is not None and not isinstance(sharding, jax.sharding.Sharding):
        raise ValueError(
            f"sharding is {sharding!r}; expected a jax.sharding.Sharding of [N, L, T, F], such as "
            "SingleDeviceSharding(device) or NamedSharding(mesh, PartitionSpec(...)), a model's placement, or None"
        )
    manifest = pack.manifest
    if manifest.kind != "chunks":
        raise ChunkNotFoundError(f"pack {pack.name} has {manifest.kind} and no chunks; see packs()")
    with pack.manifest_errors():
        rows = {key: manifest.leaves(key) for key in manifest.entries}
        groups = _groups(pack, rows)
    if sharding is None:
        whole = pack.whole(rows.values(), verified=verified)
        loaded = {name: jax.device_put(array, may_alias=True) for name, array in whole.items()}
    else:
        mixed = {group for group, keys in groups.items() if grouped(manifest.entries[keys[0]]["about"])}
        targets = {name: _target(name, *at, sharding, mixed) for name, at in manifest.arrays.items()}
        folder = pack.files.folder
        with ThreadPoolExecutor(1) as pool:
            checking = pool.submit(pack.check) if verified and folder is not None else None
            if folder is None:
                whole = pack.whole(rows.values(), verified=verified)
                loaded = {name: _split(array, targets[name].sharding) for name, array in whole.items()}
            else:
                loaded = pack.restored(folder, targets)
            for message in {} if checking is None else checking.result().values():
                raise LibraryCorruptError(message)
    with pack.manifest_errors():
        return tuple(_stacked(pack, group, keys, loaded, frozenset(live), sharding) for group, keys in groups.items())


def _groups(pack: Pack, leaves: dict[str, dict[str, Leaf]]) -> dict[str, list[str]]:
    """The keys of the chunks that are stacked in the same arrays, in the order of their rows there.

    Raises:
        ValueError: the manifest does not say which row is whose.
    """
    manifest = pack.manifest
    groups: dict[str, list[str]] = {}
    for key in sorted(leaves, key=lambda key: leaves[key]["kv.rot"].start):
        check_kv(manifest.entries[key]["about"], leaves[key])
        groups.setdefault(leaves[key]["kv.rot"].array.partition(".")[0], []).append(key)
    for group, keys in groups.items():
        ways = [[manifest.entries[key]["about"].get(name) for name in ("storage", "packed")] for key in keys]
        if any(way != ways[0] for way in ways):
            raise ValueError("chunks that are stored in different ways are stacked")
        for row, key in enumerate(keys):
            for name, leaf in leaves[key].items():
                stacked = (leaf.dtype, (len(keys), *leaf.shape))
                if leaf.array and leaf.dtype == np.bool_:
                    stacked = (np.dtype(np.uint8), stacked[1])
                at = (leaf.array, leaf.start, manifest.arrays.get(leaf.array))
                if leaf.array and at != (f"{group}.{name}", row * leaf.nbytes, stacked):
                    raise ValueError(f"array {name!r} of {key[:12]} is not row {row} of what is stacked")
    return groups


def _target(
    name: str, dtype: Any, shape: tuple[int, ...], sharding: jax.sharding.Sharding, mixed: Collection[str]
) -> Any:
    # Codes of few bits, and components of features or layers, are split once they are unpacked.
    group, _, leaf = name.partition(".")
    whole = dtype == np.uint8 or leaf not in ("kv.rot", "kv.free") or group in mixed
    if whole and isinstance(sharding, jax.sharding.NamedSharding):
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    try:
        sharding.shard_shape(shape)
    except Exception as error:  # JAX says it with various ones
        raise ValueError(
            f"sharding is {sharding}, which does not split {name}, {dtype.name}{list(shape)} = [N, L, T, F], evenly "
            f"({error}); split axes that the mesh axes divide, or restore without a sharding: the pack is in order"
        ) from error
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _split(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _stacked(
    pack: Pack,
    group: str,
    keys: Sequence[str],
    loaded: dict[str, jax.Array],
    live: frozenset[str],
    sharding: jax.sharding.Sharding | None,
) -> Stacked:
    manifest = pack.manifest
    leaves = {name.partition(".")[2]: array for name, array in loaded.items() if name.partition(".")[0] == group}
    about = tuple(dict(manifest.entries[key]["about"]) for key in keys)
    for name, leaf in manifest.leaves(keys[0]).items():
        if not leaf.array:
            leaves[name] = jnp.zeros((len(keys), *leaf.shape), leaf.dtype)
        elif leaf.dtype == bool:
            leaves[name] = leaves[name].astype(bool)
    if about[0]["storage"] != EXACT:
        leaves |= _unpacked(about, {name: leaves.pop(name) for name in packing(about[0]["storage"]).names}, sharding)
    return Stacked(tuple(key if key in live else None for key in keys), leaves, about, manifest.specs)


def _unpacked(
    about: Sequence[Plain], leaves: dict[str, jax.Array], sharding: jax.sharding.Sharding | None
) -> dict[str, jax.Array]:
    """KV [N, L, T, ·] of chunks in few bits."""
    packed = packing(about[0]["storage"])
    shape = packed_shape(about[0], leaves)
    basis = packed_basis(about[0], shape)
    lengths = jnp.asarray([each["length"] for each in about], jnp.int32)

    def decoded(leaves: dict[str, jax.Array], lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        kv = jax.vmap(lambda own, length: packed.decode(own, length, shape, about[0]["dtype"], basis))(leaves, lengths)
        return kv.rot, kv.free

    there = leaves["kv.rot"].sharding if sharding is None else sharding
    rot, free = jax.jit(decoded, out_shardings=there)(leaves, lengths)
    return {"kv.rot": rot, "kv.free": free}
