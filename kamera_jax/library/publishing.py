"""Publishing a library to an object store: what is missing is uploaded, and at last one object says what there is.

Packs never change, so an object of a pack that is there need not be looked at. The last write is refused if another
has written since this one looked.
"""

import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kamera_jax.errors import ExportError, LibraryCorruptError, PublishedMeanwhileError
from kamera_jax.library.facts import Publication
from kamera_jax.library.failures import reading_errors
from kamera_jax.library.files import read_sealed
from kamera_jax.library.index import Index
from kamera_jax.library.layout import LIBRARY
from kamera_jax.library.objects import Objects, Writing
from kamera_jax.library.opening import open_regular
from kamera_jax.library.packs import Pack
from kamera_jax.library.places import FOLDERS
from kamera_jax.library.published import (
    POINTER,
    Object,
    State,
    digest_of,
    pointed,
    pointer,
    read_state,
    state_name,
)

UPLOADING = 2**28
"""Bytes that are uploaded at once, at most, or one object."""

_ATTEMPTS = 5
_OWN = re.compile(r"(packs|patches)/[0-9a-f]{32}/.+|states/[0-9a-f]{64}\.json")
"""What publishing makes, and may remove again."""


def publish(index: Index, root: Path, objects: Objects, *, prune: bool) -> Publication:
    """See `kamera_jax.ChunkLibrary.publish`.

    Args:
        index: of the library.
        root: its folder.
        objects: of the address.
        prune: remove what the new state does not name.
    """
    about = read_sealed(root / LIBRARY)
    before, seen = objects.seen(POINTER)
    known: Mapping[str, Mapping[str, Object]] = {}
    if before is not None:
        said, nbytes, uuid = pointed(objects.url, before)
        if uuid != about["uuid"]:
            raise ExportError(
                f"another library, {uuid!r:.40}, is published at {objects.url}; this one is {about['uuid']!r:.40}: "
                "give another address"
            )
        try:
            known = read_state(objects, said, nbytes).files
        except (FileNotFoundError, LibraryCorruptError):
            pass  # what is wrong there is published anew
    uploads = _Uploads(objects)
    with reading_errors(root):
        state = _state(index, about, known, uploads)
    payload = state.written()
    said = digest_of(payload)
    uploads.put(state_name(said), payload)
    uploads.wait()
    now = pointer(said, len(payload), state.uuid)
    if now != before:
        seen = _point(objects, now, seen)
    removed = 0
    if prune:
        named = {*state.objects(), state_name(said)}
        extra = sorted(name for name in uploads.there - named if _OWN.fullmatch(name))
        for name in extra:
            objects.remove(name)
        removed = len(extra)
        if removed:  # who looked before, and found one of these there, is not to name it
            _point(objects, now, seen)
    return Publication(objects.url, said, uploads.count, uploads.nbytes, uploads.known, removed)


def _point(objects: Objects, payload: bytes, seen: bytes) -> bytes:
    """Have readers open another state, and give what is seen then."""
    if (own := objects.replace(POINTER, payload, seen)) is None:
        raise PublishedMeanwhileError(
            f"another published to {objects.url} meanwhile: what readers open there is theirs, whole. Publish again if "
            "this library is to take its place"
        )
    return own


def _state(
    index: Index, about: Mapping[str, Any], known: Mapping[str, Mapping[str, Object]], uploads: "_Uploads"
) -> State:
    """What the library has now, of which every object is uploaded or about to be.

    Raises:
        LibraryCorruptError: something is not as it was written.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # a pack was collected meanwhile
            return _state_now(index, about, known, uploads)
    raise LibraryCorruptError(f"packs of {index.root} go while they are uploaded; publish again once nobody collects")


def _state_now(
    index: Index, about: Mapping[str, Any], known: Mapping[str, Mapping[str, Object]], uploads: "_Uploads"
) -> State:
    index.refresh(force=True)
    for name, message in (index.damaged | index.lost()).items():
        raise LibraryCorruptError(f"{name[:12]} of {index.root} is damaged or lost ({message}); see verify()")
    dead = set(index.dead())
    packs = {name: keys for name, keys in index.packs().items() if name not in dead}
    files: dict[str, Mapping[str, Object]] = {}
    for name, keys in packs.items():
        prefix = f"{FOLDERS[keys.kind]}/{name}/"
        if name in known and all(f"{prefix}{path}" in uploads.there for path in known[name]):
            files[name] = known[name]
            uploads.known += len(known[name])
            continue
        try:
            pack = index.pack(name)
        except KeyError as error:
            raise FileNotFoundError(name) from error
        for message in pack.check().values():
            raise LibraryCorruptError(f"{message}; nothing is published")
        files[name] = {path: uploads.put(f"{prefix}{path}", payload) for path, payload in _files_of(pack)}
    deleted = {mark for mark in index.place.marks().deleted if mark.partition(".")[0] in packs}
    return State(about["format_version"], about["uuid"], packs, files, deleted)


def _files_of(pack: Pack) -> Iterator[tuple[str, bytes]]:
    """The files of a pack, by their paths below it; the manifest is the last."""
    for path in pack.paths():
        with os.fdopen(open_regular(Path(pack.files.where, path)), "rb") as file:
            yield path, file.read()


class _Uploads:
    """Objects on their way to a store."""

    def __init__(self, objects: Objects) -> None:
        """See which are there."""
        self._objects = objects
        self.there = objects.names()
        self.count = 0
        self.nbytes = 0
        self.known = 0
        self._under_way: deque[tuple[Writing, int]] = deque()

    def put(self, name: str, payload: bytes) -> Object:
        """Upload an object unless it is there, and give its size and digest."""
        if name in self.there:
            self.known += 1
        else:
            while self._under_way and sum(each for _, each in self._under_way) + len(payload) > UPLOADING:
                self._under_way.popleft()[0].done()
            self._under_way.append((self._objects.begin(name, payload), len(payload)))
            self.there.add(name)
            self.count += 1
            self.nbytes += len(payload)
        return len(payload), digest_of(payload)

    def wait(self) -> None:
        """Wait until all are there for good."""
        while self._under_way:
            self._under_way.popleft()[0].done()
