"""Files that are there whole or not at all: sealed JSON, durable folders, one writer at a time.

Nothing here knows what is stored. What is read back was sealed: a digest stands before it, so that a
flipped bit is noticed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kamera_jax.library.locks import locked as locked
from kamera_jax.library.opening import is_folder, open_regular, read_regular

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


def digests(folder: Path, but: Collection[str] = (), most: int | None = None) -> dict[str, str]:
    """sha256 of every file below a folder, by its path there.

    What is no regular file, or cannot be read, has words in place of a digest, which no digest is equal to.

    Args:
        folder: the folder; one that is not there has no files.
        but: paths that are left out.
        most: bytes of the longest file that is read.
    """
    found: dict[str, str] = {}
    _digest_below(folder, "", but, most, found)
    return dict(sorted(found.items()))


def _digest_below(folder: Path, prefix: str, but: Collection[str], most: int | None, found: dict[str, str]) -> None:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        found[prefix or "."] = f"cannot be read: {error}"
        return
    for name in names:
        path = folder / name
        place = f"{prefix}{name}"
        if place in but:
            continue
        try:
            if is_folder(path):
                _digest_below(path, f"{place}/", but, most, found)
            else:
                found[place] = _digest(path, most)
        except FileNotFoundError:  # collected meanwhile
            continue
        except (OSError, ValueError) as error:
            found[place] = f"cannot be read: {error}"


def _digest(path: Path, most: int | None) -> str:
    with os.fdopen(open_regular(path), "rb") as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"{path} is longer than {most} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(folder: Path) -> None:
    """Bring a folder's entries to the disk: files made in it, renamed into it or removed from it."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring everything below a folder to the disk, and the folder."""
    for place, _, names in os.walk(folder, topdown=False, onerror=_raise):
        for name in names:
            descriptor = open_regular(os.path.join(place, name), os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync(Path(place))


def _raise(error: OSError) -> None:
    raise error


def write_sealed(path: Path, body: Mapping[str, Any], *, durable: bool = True, through: Path | None = None) -> None:
    """Write JSON with its digest, in place of what was there: all of it or nothing.

    Args:
        path: the file.
        body: what JSON can hold.
        durable: wait for the disk.
        through: the folder in which it is written, and renamed from; by default that of the file.
    """
    written = sealed(path, body)
    beside = (through or path.parent) / f"{path.name}.{uuid.uuid4().hex}"
    try:
        with os.fdopen(open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(written)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sealed(path: str | Path, body: Mapping[str, Any]) -> bytes:
    """JSON with its digest.

    Raises:
        ValueError: it is too long to be read again.
    """
    payload = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    written = _OPENING + sha256(payload).encode() + _BODY + payload + _CLOSING
    if len(written) > SEALED_BYTES:
        raise ValueError(f"{path} would have {len(written)} bytes; expected at most {SEALED_BYTES}, or it is not read")
    return written


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is not as it was written, or no regular file.
    """
    return unsealed(path, read_regular(path, SEALED_BYTES))


def unsealed(path: str | Path, written: bytes) -> dict[str, Any]:
    """What `sealed` has in it; raises ValueError as `read_sealed`."""
    body = memoryview(written)[_BEGIN : -len(_CLOSING)]
    beginning = _OPENING + sha256(body).encode() + _BODY
    if not (written.startswith(beginning) and written.endswith(_CLOSING)):
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
