"""Checking a library against its digests, and collecting what was deleted: packs that are not worth their room."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kamera_jax.errors import LibraryCorruptError
from kamera_jax.library.commit import PACK_BYTES, STAGING, Committer
from kamera_jax.library.facts import Collected, LibraryReport
from kamera_jax.library.files import discard
from kamera_jax.library.index import FOLDERS, TOMBSTONES, Index
from kamera_jax.library.rows import Kind, Row

SMALL_ROWS = 16
"""Packs of fewer rows are put together."""


def checked(index: Index) -> LibraryReport:
    """Read everything and compare it with its digests."""
    index.refresh(force=True)
    damaged = dict(index.damaged)
    rows = 0
    packs = index.packs()
    for name, keys in packs.items():
        try:
            wrong = index.pack(name).check()
        except (FileNotFoundError, KeyError):  # collected meanwhile
            continue
        except LibraryCorruptError as error:
            damaged[name] = str(error)
            continue
        rows += len(keys.keys)
        alive = set(index.live(name))
        damaged |= {what: message for what, message in wrong.items() if what in alive or what not in keys.keys}
    return LibraryReport(len(packs), rows, damaged, index.lost())


def collect(committer: Committer) -> Collected:
    """Drop packs of which less than half is alive, and put small ones together; on the writer's thread."""
    index = committer.index
    root = committer.root
    with committer.writing():
        swept = committer.sweep()
        before = size(root)
        moved = 0
        dropped = []
        kept = []
        for kind in FOLDERS:
            rows: list[Row] = []
            for name in _to_collect(index, kind):
                try:
                    taken = list(_rows(index, name, kind))
                except LibraryCorruptError:
                    kept.append(name)
                    continue
                rows += taken
                moved += len(taken)
                dropped.append((name, kind))
                if sum(row.nbytes for row in rows) >= PACK_BYTES:
                    committer.write(kind, rows)
                    rows = []
            if rows:
                committer.write(kind, rows)
        index.give_up_missing()
        index.mark_deleted(name for name, _ in dropped)
        for name, kind in dropped:
            with contextlib.suppress(OSError):  # it is marked: nobody sees it
                discard(index.folder(kind) / name, root / STAGING)
            for mark in (root / TOMBSTONES).glob(f"{name}.*"):
                with contextlib.suppress(OSError):
                    mark.unlink()
        index.refresh(force=True)
        index.save()
        return Collected(len(dropped), moved, before - size(root), swept, tuple(kept))


def _to_collect(index: Index, kind: Kind) -> list[str]:
    """Packs of which less than half is alive, and those of few rows where there are several."""
    live = {name: len(index.live(name)) for name, keys in index.packs().items() if keys.kind == kind}
    half = [name for name, count in live.items() if 2 * count < len(index.packs()[name].keys)]
    small = [name for name, count in live.items() if count < SMALL_ROWS and name not in half]
    return half + (small if len(small) > 1 or any(live[name] for name in half) else [])


def _rows(index: Index, name: str, kind: Kind) -> Iterator[Row]:
    """What is alive in a pack, as it is stored."""
    pack = index.pack(name)
    for key in index.live(name):
        about, spec, leaves = pack.row(key)
        digests = {leaf: at.sha256 for leaf, at in pack.manifest.leaves(key).items()}
        yield Row(key, kind, about, spec, leaves, digests)


def size(root: Path) -> int:
    """Bytes of all files of a library."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):  # collected meanwhile
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
