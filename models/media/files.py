"""Files that users name, opened without waiting: a pipe, a device or a folder is named, and never read."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from kamera_jax.library.opening import QUIET
from models.hub.files import LFS_POINTER

MAX_TEXT_BYTES = 2**24
"""A text, or a text file, of more bytes than this is not read."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class MediaFileError(ValueError):
    """A path that is no regular file, cannot be opened, is larger than what is read, or a pointer of Git LFS."""


def opened(path: Path) -> BinaryIO:
    """A regular file, opened for reading; links are followed.

    Raises:
        FileNotFoundError: there is no such file, or it is a link to one that does not exist.
        MediaFileError: it is a folder, a pipe, a socket or a device, may not be read, or is a pointer of Git LFS; the
            message says which.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)
        # Without waiting: what was a file a moment ago may be a pipe now.
        descriptor = os.open(path, os.O_RDONLY | QUIET)
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which does not exist") from None
        raise FileNotFoundError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if isinstance(error, MediaFileError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise MediaFileError(f"{path} cannot be opened ({reason}); expected a file that may be read") from error
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
        if os.pread(descriptor, len(LFS_POINTER), 0) == LFS_POINTER:
            raise MediaFileError(
                f"{path} is a Git-LFS pointer: a few lines in place of the file, whose content was not fetched; run "
                f"`git lfs pull` in {path.parent}"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is no such file.
        MediaFileError: it cannot be opened, or is longer than `MAX_TEXT_BYTES`.
        UnicodeDecodeError: it is not UTF-8.
    """
    with opened(path) as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise MediaFileError(
            f"{path} is longer than {MAX_TEXT_BYTES} bytes, which is the most that a text may have: split it into files"
        )
    return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def describe_undecodable(path: Path, error: UnicodeDecodeError) -> str:
    """Why a file is no text in UTF-8: the byte, its place and its line, and what makes UTF-8 of it."""
    content = error.object
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"{path} is text in UTF-16, expected UTF-8: save it as UTF-8, or iconv -f utf-16 -t utf-8 {path} > NEW"
    line = content.count(b"\n", 0, error.start) + 1
    return (
        f"{path} is no UTF-8 text: byte 0x{content[error.start]:02X} at position {error.start}, in line {line}; save "
        f"it as UTF-8, or, if it is Latin-1 (Windows-1252), iconv -f cp1252 -t utf-8 {path} > NEW"
    )


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
    raise MediaFileError(f"{path} is {kind}; expected a regular file")
