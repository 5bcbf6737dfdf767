"""Files that are there whole or not at all: sealed JSON, durable folders, one writer at a time.

Nothing here knows what is stored. What is read back was sealed: a digest stands before it, so that a
flipped bit is noticed.
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEALED_BYTES = 2**28
"""No sealed file is longer; a longer one is not read."""

MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, MemoryError),
)
"""What comes of JSON that does not say what it should, or asks for what cannot be."""

_OPENING = b'{"sha256": "'
_BODY = b'", "body": '
_CLOSING = b"}\n"
_BEGIN = len(_OPENING) + 64 + len(_BODY)


def sha256(payload: Any) -> str:
    """Hexadecimal digest of bytes, or of what holds bytes."""
    return hashlib.sha256(payload).hexdigest()


def digests(folder: Path, but: Collection[str] = ()) -> dict[str, str]:
    """sha256 of every file below a folder, by its path there; those whose path is in ``but`` are left out."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256(path.read_bytes()) for name, path in files.items() if name not in but}


def sync(folder: Path) -> None:
    """Bring a folder's entries to the disk: files made in it, renamed into it or removed from it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring everything below a folder to the disk, and the folder."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync(Path(place))


def write_sealed(path: Path, body: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write JSON with its digest, in place of what was there: all of it or nothing.

    Args:
        path: the file.
        body: what JSON can hold.
        durable: wait for the disk.
    """
    payload = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            file.write(_OPENING + sha256(payload).encode() + _BODY + payload + _CLOSING)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not as it was written.
    """
    with path.open("rb") as file:
        written = file.read(SEALED_BYTES + 1)
    body = memoryview(written)[_BEGIN : -len(_CLOSING)]
    sealed = _OPENING + sha256(body).encode() + _BODY
    if len(written) > SEALED_BYTES or not (written.startswith(sealed) and written.endswith(_CLOSING)):
        raise ValueError(f"{path} is not as it was written")
    try:
        body_read = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not as it was written") from error
    if not isinstance(body_read, dict):
        raise ValueError(f"{path} is not as it was written")
    return body_read


def discard(path: Path, staging: Path) -> None:
    """Remove a folder at once for whoever looks, then its files; what a killed process leaves lies in ``staging``."""
    gone = staging / uuid.uuid4().hex
    path.rename(gone)
    sync(path.parent)
    shutil.rmtree(gone)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The context in which no other thread or process has the lock; a process that dies releases it.

    Raises:
        OSError: the file cannot be opened for writing.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor too
        os.close(descriptor)
