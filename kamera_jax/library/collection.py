"""Checking a library, deleting from it, and collecting what was deleted.

A collection holds the lock for one pack at a time, and reads what is alive without it. Before a pack is dropped it
makes sure, under the lock, that everything alive in it was copied: what was deleted meanwhile is left out, and a pack
in which something else came alive stays.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Container, Iterable, Iterator

from kamera_jax.errors import LibraryCorruptError, LibraryFullError
from kamera_jax.library import marks
from kamera_jax.library.arrays import writer
from kamera_jax.library.commit import PACK_BYTES, PACK_ROWS, Committer
from kamera_jax.library.facts import Collected, LibraryReport, LibraryStats
from kamera_jax.library.failures import is_full
from kamera_jax.library.files import sync
from kamera_jax.library.index import FOLDERS, Index
from kamera_jax.library.leftovers import size, sweep
from kamera_jax.library.rows import Kind, Row
from kamera_jax.library.writers import Turn

SMALL_ROWS = 16
"""Packs of fewer rows are put together."""

_LOOKS = 8
"""Times that packs are checked which a collection made while others were checked."""


def dead_bytes(index: Index) -> int:
    """Bytes of the arrays of rows that were deleted, and lie in packs that are there; only such packs are looked at."""
    found = 0
    for name, keys in index.packs().items():
        if dead := set(keys.keys) - set(index.live(name)):
            with contextlib.suppress(FileNotFoundError, KeyError, LibraryCorruptError):  # gone meanwhile, or damaged
                manifest = index.pack(name).manifest
                found += sum(manifest.row_nbytes(key) for key in dead)
    return found


def counted(index: Index) -> LibraryStats:
    """What a library holds."""
    index.refresh()
    packs = index.packs()
    return LibraryStats(
        chunks=len(index.keys("chunks")),
        patches=len(index.keys("patches")),
        packs=len(packs),
        bytes=index.place.size(),
        deleted=sum(len(keys.keys) - len(index.live(name)) for name, keys in packs.items()),
        damaged=len(index.damaged),
        lost=len(index.lost()),
        deleted_bytes=dead_bytes(index),
    )


def checked(index: Index) -> LibraryReport:
    """Read everything and compare it with its digests; of what is collected meanwhile, the copy."""
    index.refresh(force=True)
    found: dict[str, dict[str, str]] = {}
    for _ in range(_LOOKS):
        fresh = [name for name in index.packs() if name not in found]
        for name in fresh:
            try:
                found[name] = index.pack(name).check()
            except (FileNotFoundError, KeyError):  # collected meanwhile
                continue
            except LibraryCorruptError as error:
                found[name] = {name: str(error)}
        index.refresh(force=True)
        if not fresh:
            break
    packs = index.packs()
    damaged = index.damaged | index.broken
    for name, wrong in found.items():
        if name in packs:
            keys = set(packs[name].keys)
            alive = set(index.live(name))
            for what, message in wrong.items():
                if what in alive or what not in keys:
                    damaged[what if what in keys or what == name else f"{name}/{what}"] = message
    rows = sum(len(packs[name].keys) for name in found if name in packs)
    return LibraryReport(len(packs), rows, damaged, index.lost())


def delete(committer: Committer, key: str) -> bool:
    """Delete a chunk with its patches, or a patch; whether there was something to delete."""
    index = committer.index
    with committer.writing() as turn:
        keys = (*index.patches(key), key)
        try:
            return index.mark_deleted(keys)
        except OSError as error:
            packs = {name for each in keys for name in index.packs_of(each)}
            alive = {each for name in packs for each in index.packs()[name].keys if name in index.packs_of(each)}
            if not is_full(error) or not packs or not alive <= set(keys):
                raise
            if _drop(turn, index, packs)[-1]:  # the disk has no room for a mark, and these packs need none
                raise
            index.save()
            return True


class _Tally:
    """What a collection has done so far."""

    def __init__(self, committer: Committer) -> None:
        self.committer = committer
        self.dropped = 0
        self.moved = 0
        self.freed = 0
        self.swept = 0
        self.kept: list[str] = []
        self.left: list[str] = []

    def drop(self, turn: Turn, names: Iterable[str]) -> list[str]:
        """Remove packs for good; the names of those that cannot be removed."""
        freed, dropped, stuck = _drop(turn, self.committer.index, names)
        self.freed += freed
        self.dropped += dropped
        return stuck


def collect(committer: Committer) -> Collected:
    """Drop packs of which less than half is alive, and put small ones together.

    The steps that change the library run on the writer's thread, one by one.
    """
    tally = _Tally(committer)
    plan = writer().submit(_begin, tally).result()
    for kind, names in plan.items():
        batch: dict[str, list[Row]] = {}
        for name in names:
            try:
                batch[name] = list(_rows(committer.index, name, kind))
            except LibraryCorruptError:
                tally.kept.append(name)
            except (FileNotFoundError, KeyError):  # another process has collected it
                continue
            rows = [row for each in batch.values() for row in each]
            if sum(row.nbytes for row in rows) >= PACK_BYTES or len(rows) >= PACK_ROWS:
                _replace(tally, kind, batch)
                batch = {}
        if batch:
            _replace(tally, kind, batch)
    writer().submit(_end, tally).result()
    return Collected(
        tally.dropped, tally.moved, tally.freed, tally.swept, tuple(tally.kept), tuple(sorted(set(tally.left)))
    )


def _begin(tally: _Tally) -> dict[Kind, list[str]]:
    """Sweep, drop the packs of which nothing is alive, which needs no room, and say which are to be rewritten."""
    committer = tally.committer
    index = committer.index
    with committer.writing() as turn:
        swept = sweep(committer.root, turn.staging)
        tally.swept = len(swept)
        tally.freed = sum(swept) + _beside(committer)
        dead = index.dead()
        stuck = set(tally.drop(turn, dead))
        return {kind: _to_collect(index, kind, stuck) for kind in FOLDERS}


def _to_collect(index: Index, kind: Kind, but: Container[str]) -> list[str]:
    """Packs of which less than half is alive, and those of few rows where there are several; some are left out."""
    packs = {name: keys for name, keys in index.packs().items() if keys.kind == kind and name not in but}
    live = {name: len(index.live(name)) for name in packs}
    half = [name for name, count in live.items() if 2 * count < len(packs[name].keys)]
    sparse = set(half)
    small = [name for name, count in live.items() if count < SMALL_ROWS and name not in sparse]
    return half + (small if len(small) > 1 or half else [])


def _rows(index: Index, name: str, kind: Kind) -> Iterator[Row]:
    """What is alive in a pack, as it is stored."""
    pack = index.pack(name)
    for key in index.live(name):
        about, spec, leaves = pack.row(key)
        digests = {leaf: at.digest for leaf, at in pack.manifest.leaves(key).items()}
        yield Row(key, kind, about, spec, leaves, digests)


def _replace(tally: _Tally, kind: Kind, batch: dict[str, list[Row]]) -> None:
    """Have one pack in place of several; where there is no room for that, in place of each by itself."""
    try:
        writer().submit(_write, tally, kind, batch).result()
    except LibraryFullError:
        packs = tally.committer.index.packs()
        for name in sorted(batch, key=lambda name: sum(row.nbytes for row in batch[name])):
            rows = batch[name]
            if len(batch) > 1 and name in packs and len(rows) < len(packs[name].keys):
                _replace(tally, kind, {name: rows})
            else:
                tally.left.append(name)


def _write(tally: _Tally, kind: Kind, batch: dict[str, list[Row]]) -> None:
    committer = tally.committer
    index = committer.index
    with committer.writing() as turn:
        packs = index.packs()
        wanted: list[Row] = []
        done = []
        for name, rows in batch.items():
            live = set(index.live(name))
            if name in packs and live <= {row.key for row in rows}:
                done.append(name)
                wanted += [row for row in rows if row.key in live]
        if wanted:
            tally.freed -= sum(map(size, committer.write(turn, kind, wanted)))
            tally.moved += len(wanted)
        if stuck := tally.drop(turn, done):
            index.mark_packs(stuck)


def _drop(turn: Turn, index: Index, names: Iterable[str]) -> tuple[int, int, list[str]]:
    """Remove packs for good: at once for whoever looks, then their files.

    Returns:
        Bytes that are free now, how many packs were removed, and the names of those that cannot be.
    """
    places = {name: index.folder(index.names[name]) / name for name in names if name in index.names}
    if not places:
        return 0, 0, []
    gone = {}
    with index.changing():
        turn.check()
        for name, place in places.items():
            path = turn.staging / uuid.uuid4().hex
            with contextlib.suppress(OSError):
                os.rename(place, path)
                gone[name] = path
        for folder in {places[name].parent for name in gone}:
            sync(folder)
        index.removed(gone)
    freed = sum(map(size, gone.values()))
    for path in gone.values():
        shutil.rmtree(path, ignore_errors=True)  # the next writer sweeps away what is left
    return freed, len(gone), [name for name in places if name not in gone]


def _end(tally: _Tally) -> None:
    """Write down what is where, and let go of marks whose packs are gone."""
    committer = tally.committer
    root = committer.root
    with committer.writing() as turn:
        with contextlib.suppress(OSError):  # nothing depends on it
            committer.index.collected()
            marks.begin(root, turn.through)
        tally.freed -= _beside(committer)


def _beside(committer: Committer) -> int:
    """Bytes of the files that lie beside the packs."""
    return sum(size(path) for path in committer.root.iterdir() if path.is_file())
