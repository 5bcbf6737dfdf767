"""The index file: which keys are in which pack, so that whoever opens the library need not read every manifest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kamera_jax.library.files import MALFORMED, read_sealed, write_sealed
from kamera_jax.library.manifest import KEY, Manifest
from kamera_jax.library.rows import Kind

INDEX = "index.json"

PACK = re.compile(r"[0-9a-f]{32}")
"""Names of packs."""


@dataclass(frozen=True)
class PackKeys:
    """The keys of a pack's rows, and for each the chunk it is of: itself, or the patch's."""

    kind: Kind
    keys: tuple[str, ...]
    chunks: tuple[str, ...]


def keys_of(manifest: Manifest) -> PackKeys:
    """The keys that a manifest has."""
    return PackKeys(manifest.kind, manifest.keys, manifest.chunks)


def write(root: Path, packs: Mapping[str, PackKeys], through: Path | None = None) -> None:
    """Write the file, in place of what was there; see `kamera_jax.library.files.write_sealed`.

    Raises:
        OSError: it cannot be written.
        ValueError: there are too many keys for a file that is read again.
    """
    write_sealed(root / INDEX, {"packs": listed(packs)}, through=through)


def listed(packs: Mapping[str, PackKeys]) -> dict[str, dict[str, Any]]:
    """Packs as JSON has them."""
    return {name: {"kind": at.kind, "keys": at.keys, "chunks": at.chunks} for name, at in packs.items()}


def read(root: Path) -> tuple[dict[str, PackKeys], dict[str, str]]:
    """What the file says, and what is wrong with it: nothing is known if it is not as it was written."""
    try:
        packs: dict[str, Any] = read_sealed(root / INDEX)["packs"]
        found = {name: listed_keys(name, at) for name, at in packs.items()}
    except FileNotFoundError:
        return {}, {}
    except (OSError, *MALFORMED):
        return {}, {INDEX: f"{root / INDEX} is not as it was written; gc() writes it again from what the packs say"}
    return found, {}


def listed_keys(name: str, at: Mapping[str, Any]) -> PackKeys:
    """What `listed` has of a pack.

    Raises:
        ValueError, KeyError, TypeError: it is nothing of a pack.
    """
    keys = tuple(at["keys"])
    chunks = keys if at["chunks"] == at["keys"] else tuple(at["chunks"])
    named = keys if chunks is keys else (*keys, *chunks)
    known = PACK.fullmatch(name) and at["kind"] in get_args(Kind) and len(keys) == len(chunks)
    if not known or not all(isinstance(key, str) and KEY.fullmatch(key) for key in named):
        raise ValueError(f"{name!r} is listed as no pack can be")
    return PackKeys(at["kind"], keys, chunks)
