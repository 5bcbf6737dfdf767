"""Files that users name, opened without waiting: a pipe, a device or a folder is named, and never read."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from kamera_jax.library.opening import QUIET

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
    """A path that is no regular file, cannot be opened, or is larger than what is read."""


def opened(path: Path) -> BinaryIO:
    """A regular file, opened for reading; links are followed.

    Raises:
        FileNotFoundError: there is no such file, or it is a link to one that does not exist.
        MediaFileError: it is a folder, a pipe, a socket or a device, or may not be read; the message says which.
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


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
    raise MediaFileError(f"{path} is {kind}; expected a regular file")
