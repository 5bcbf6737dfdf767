"""A library as it was published to an object store: its state, and how it is read in place.

::

    PUBLISHED                    the state that is to be read, by its digest: the one object that is ever written again
    states/<digest>.json         which packs there are, with their keys, and of every object its size and digest
    packs/<id>/…  patches/<id>/…  the packs' files, as in a folder

So whoever reads has one state, whole, and goes on reading it whatever is published later.
"""

import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.errors import LibraryCorruptError, LibraryNotFoundError, LibraryVersionError
from kamera_jax.library.digests import agrees, check_digest, digest
from kamera_jax.library.files import MALFORMED, SEALED_BYTES, sealed, sha256, unsealed
from kamera_jax.library.index_file import PackKeys, listed, listed_keys
from kamera_jax.library.layout import FORMAT_VERSION, READABLE
from kamera_jax.library.marks import MARK, Marks
from kamera_jax.library.objects import Objects, Part
from kamera_jax.library.places import FOLDERS, MANIFEST, Span
from kamera_jax.library.rows import Kind
from kamera_jax.library.stamps import Stamps

POINTER = "PUBLISHED"
POINTER_BYTES = 1024
"""It has always so many, so that it is read without knowing how many."""

VERSION = 1
"""Of how a library is published."""

REMEDY = "remove the object, and publish the library again"

BATCH = 2**26
"""Bytes of rows that are asked for together."""

_GAP = 2**16
"""Bytes between two spans that are read along rather than asked for apart."""

_REQUEST = 2**24
"""Bytes that one request asks for, about."""

_ATTEMPTS = 3
_PATH = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")

Object = tuple[int, str]
"""The bytes of an object, and its digest as `kamera_jax.library.digests` has them."""


def digest_of(payload: bytes) -> str:
    """The digest of an object."""
    return digest(np.frombuffer(payload, np.uint8), 1)


@dataclass(frozen=True)
class State:
    """What was published at one time.

    Attributes:
        format_version: of the library.
        uuid: of the library.
        packs: their keys, by name.
        files: of every pack, by path below it.
        deleted: marks of rows in these packs.
    """

    format_version: int
    uuid: str
    packs: Mapping[str, PackKeys]
    files: Mapping[str, Mapping[str, Object]]
    deleted: Collection[str]

    def objects(self) -> dict[str, Object]:
        """Every object of the packs, by its whole name."""
        return {
            f"{FOLDERS[self.packs[name].kind]}/{name}/{path}": at
            for name, files in self.files.items()
            for path, at in files.items()
        }

    def written(self) -> bytes:
        """As the object of a state has it.

        Raises:
            ValueError: it is too long.
        """
        body = {
            "format_version": self.format_version,
            "uuid": self.uuid,
            "packs": {name: at | {"files": self.files[name]} for name, at in listed(self.packs).items()},
            "deleted": sorted(self.deleted),
        }
        return sealed("the published state", body)

    @staticmethod
    def parsed(payload: bytes) -> "State":
        """Read what `written` gives.

        Raises:
            ValueError, KeyError, TypeError: it is no such thing.
        """
        body = unsealed("the published state", payload)
        packs: dict[str, Any] = body["packs"]
        keys = {name: listed_keys(name, at) for name, at in packs.items()}
        files = {name: {path: _object(path, *of) for path, of in at["files"].items()} for name, at in packs.items()}
        if not all(isinstance(mark, str) and MARK.fullmatch(mark) for mark in body["deleted"]):
            raise ValueError("it has deleted marks that are none")
        return State(body["format_version"], str(body["uuid"]), keys, files, frozenset(body["deleted"]))


def _object(path: str, nbytes: Any, said: Any) -> Object:
    if not _PATH.fullmatch(path) or ".." in path or type(nbytes) is not int or nbytes < 0:
        raise ValueError(f"{path!r:.80} of {nbytes!r:.40} bytes is no object")
    check_digest(said, 1)
    return nbytes, said


def pointer(state: str, nbytes: int, uuid: str) -> bytes:
    """What `POINTER` has: the digest of a state and its bytes."""
    return sealed(POINTER, {"version": VERSION, "state": state, "bytes": nbytes, "uuid": uuid}).ljust(POINTER_BYTES)


def pointed(url: str, payload: bytes) -> tuple[str, int, str]:
    """The digest of the state that is to be read, its bytes, and the library's uuid.

    Raises:
        LibraryVersionError: it was published by a version that does it otherwise.
        LibraryCorruptError: it is not as it was written.
    """
    try:
        body = unsealed(POINTER, payload.rstrip(b" "))
        if body["version"] != VERSION:
            raise LibraryVersionError(
                f"what is published at {url} has version {body['version']!r:.40}; this version reads {VERSION}: use a "
                "newer kamera-jax"
            )
        nbytes = body["bytes"]
        check_digest(body["state"], 1)
        if type(nbytes) is not int or not 0 < nbytes <= SEALED_BYTES:
            raise ValueError(f"a state of {nbytes!r:.40} bytes")
        return body["state"], nbytes, str(body["uuid"])
    except (LibraryVersionError, LibraryCorruptError):
        raise
    except MALFORMED as error:
        raise LibraryCorruptError(f"{url}{POINTER} is not as it was written ({error}); {REMEDY}") from error


def state_name(said: str) -> str:
    """The name of a state's object, by its digest."""
    return f"states/{said.partition(':')[2]}.json"


def read_state(objects: Objects, said: str, nbytes: int) -> State:
    """A state, by its digest.

    Raises:
        FileNotFoundError: it is not there.
        LibraryCorruptError, LibraryVersionError, LibraryDiskError: see `opened`.
    """
    name = state_name(said)
    payload = objects.read(name, 0, nbytes)
    try:
        if not agrees(np.frombuffer(payload, np.uint8), said, 0, 1):
            raise ValueError("it has another digest")
        state = State.parsed(payload)
    except LibraryCorruptError:
        raise
    except MALFORMED as error:
        raise LibraryCorruptError(f"{objects.url}{name} is not as it was written ({error}); {REMEDY}") from error
    if state.format_version not in READABLE:
        raise LibraryVersionError(
            f"{objects.url} has format {state.format_version!r:.40}; this version reads up to {FORMAT_VERSION}: use a "
            "newer kamera-jax"
        )
    return state


def opened(objects: Objects) -> "Published":
    """What is published at an address, as of now.

    Raises:
        LibraryNotFoundError: nothing is.
        LibraryVersionError: it is of a version or a format that this version does not read.
        LibraryCorruptError: it is not as it was written.
        LibraryDiskError: the store does not answer, or refuses.
    """
    for _ in range(_ATTEMPTS):
        try:
            payload = objects.read(POINTER, 0, POINTER_BYTES)
        except FileNotFoundError as error:
            raise LibraryNotFoundError(
                f"no library is published at {objects.url}: there is no {POINTER}; write one to a folder, and "
                "publish() it there"
            ) from error
        said, nbytes, _ = pointed(objects.url, payload)
        try:
            return Published(objects, read_state(objects, said, nbytes))
        except FileNotFoundError:  # another was published meanwhile, and this one removed
            continue
    raise LibraryCorruptError(f"{objects.url} has lost {state_name(said)}; publish the library again")


class Published:
    """A library in an object store, as it was when it was opened; see `kamera_jax.library.places.Place`."""

    batch: int | None = BATCH

    def __init__(self, objects: Objects, state: State) -> None:
        """See `opened`."""
        self.root = objects.url
        self._objects = objects
        self._state = state

    def marks(self) -> Marks:
        """See `Place.marks`."""
        return Marks(frozenset(self._state.deleted), frozenset(), frozenset(), "", {})

    def listed(self) -> tuple[Mapping[str, PackKeys], dict[str, str]]:
        """See `Place.listed`."""
        return self._state.packs, {}

    def names(self, kind: Kind) -> Iterable[str]:
        """See `Place.names`."""
        return [name for name, at in self._state.packs.items() if at.kind == kind]

    def stamps(self) -> Stamps:
        """See `Place.stamps`: it never changes."""
        return ((1,),)

    def files(self, kind: Kind, name: str) -> "PublishedFiles":
        """See `Place.files`."""
        return PublishedFiles(self._objects, f"{FOLDERS[kind]}/{name}", self._state.files[name])

    def size(self) -> int:
        """See `Place.size`."""
        return sum(nbytes for files in self._state.files.values() for nbytes, _ in files.values())

    def errors(self) -> AbstractContextManager[None]:
        """See `Place.errors`: they have their names already."""
        return nullcontext()


class PublishedFiles:
    """The objects of a pack; see `kamera_jax.library.places.Files`."""

    remedy = REMEDY
    piece = 2**23

    def __init__(self, objects: Objects, prefix: str, files: Mapping[str, Object]) -> None:
        """Ask for nothing yet."""
        self.folder: Path | None = None
        self.name = prefix.rpartition("/")[2]
        self.where = f"{objects.url}{prefix}"
        self._objects = objects
        self._prefix = prefix
        self._files = files
        self._asked: list[Part] = []
        self._lock = threading.Lock()

    def manifest(self) -> dict[str, Any]:
        """See `Files.manifest`."""
        nbytes, said = self._at(MANIFEST)
        payload = self._read(self._objects.asked(f"{self._prefix}/{MANIFEST}", 0, min(nbytes, SEALED_BYTES)))
        if not agrees(np.frombuffer(payload, np.uint8), said, 0, 1):
            raise ValueError("it has another digest than was published")
        return unsealed(f"{self.where}/{MANIFEST}", payload)

    def there(self) -> bool:
        """See `Files.there`: what is gone says so where it is read."""
        return True

    def check(self, path: str, nbytes: int) -> None:
        """See `Files.check`; of the object itself it is known once it is read."""
        if self._at(path)[0] != nbytes:
            raise LibraryCorruptError(f"{self.where}/{path} was published with other bytes than its pack has; {REMEDY}")

    def fill(self, path: str, start: int, into: np.ndarray) -> None:
        """See `Files.fill`."""
        if not into.nbytes:
            return
        name = f"{self._prefix}/{path}"
        stop = start + into.nbytes
        part = self._part(name, start, stop) or self._objects.asked(name, start, stop)
        into[:] = np.frombuffer(self._read(part), np.uint8)[start - part.start : stop - part.start]

    def digests(self, but: Collection[str]) -> dict[str, str]:
        """See `Files.digests`; of the objects that were published."""
        asked = {
            path: self._objects.asked(f"{self._prefix}/{path}", 0, nbytes)
            for path, (nbytes, _) in self._files.items()
            if path not in but and nbytes <= SEALED_BYTES
        }
        found = {}
        for path, part in asked.items():
            try:
                found[path] = sha256(self._read(part))
            except LibraryCorruptError as error:
                found[path] = str(error)
        return found

    @contextmanager
    def ahead(self, spans: Iterable[Span]) -> Iterator[None]:
        """See `Files.ahead`: those that lie close by each other are one request."""
        named = sorted({(f"{self._prefix}/{path}", start, start + nbytes) for path, start, nbytes in spans if nbytes})
        fresh = [span for span in named if self._part(*span) is None]
        parts = [self._objects.asked(*span) for span in _joined(fresh)]
        with self._lock:
            self._asked = [*self._asked, *parts]
        try:
            yield
        finally:
            with self._lock:
                self._asked = [part for part in self._asked if part not in parts]

    def _part(self, name: str, start: int, stop: int) -> Part | None:
        """What was asked for and has these bytes in it."""
        asked = self._asked
        return next((part for part in asked if part.name == name and part.start <= start and stop <= part.stop), None)

    def _at(self, path: str) -> Object:
        try:
            return self._files[path]
        except KeyError:
            raise LibraryCorruptError(f"{self.where}/{path} was not published; {REMEDY}") from None

    def _read(self, part: Part) -> bytes:
        try:
            return part.read()
        except FileNotFoundError as error:
            raise LibraryCorruptError(
                f"{error} is gone: open the library again, if another state was published since and this one removed; "
                "else publish it again"
            ) from error


def _joined(spans: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Spans of objects in order, those that lie close by each other as one, up to `_REQUEST` bytes."""
    last: tuple[str, int, int] | None = None
    for name, start, stop in spans:
        if last is not None and last[0] == name and start - last[2] <= _GAP and stop - last[1] <= _REQUEST:
            last = (name, last[1], max(stop, last[2]))
            continue
        if last is not None:
            yield last
        last = (name, start, stop)
    if last is not None:
        yield last
