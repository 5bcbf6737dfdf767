"""Standard output and error: they outlive their readers, as in `kamera … | head`, and say no more than is wanted."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_QUIET: list[bool] = []
"""Whether notes and progress are left out, by the commands that are running."""


@contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """The context in which a command leaves out notes and progress, if that is wanted."""
    if not wanted:
        yield
        return
    from rich.progress import Progress

    _QUIET.append(True)
    shown = (Progress.start, Progress.stop)
    Progress.start = Progress.stop = lambda self: None
    try:
        yield
    finally:
        Progress.start, Progress.stop = shown
        _QUIET.pop()


def note(text: str) -> None:
    """Print something beside the result on standard error, unless it is to be quiet."""
    if not _QUIET:
        print(text, file=sys.stderr)


class Forgiving(io.FileIO):
    """An open file that takes what is written for written once nobody reads it any more."""

    def write(self, content: Any, /) -> int:
        """Write; where that fails, nothing more is written: later lines would only fail again.

        Raises:
            OSError: it failed otherwise than by a pipe that was closed, such as on a full disk.
        """
        try:
            return super().write(content) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno != errno.EPIPE:
                raise
            return len(content)


def protect() -> None:
    """Put such files in the place of standard output and error, of this process's own and no others'."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by who started it: the next file would take its number, and be printed into
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _protected(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _protected(sys.stderr, sys.__stderr__, 2)


def _protected(stream: Any, original: Any, descriptor: int) -> Any:
    if stream is not original:  # put in its place by somebody else
        return stream
    if stream is not None:
        stream.flush()
    raw = Forgiving(descriptor, "wb", closefd=False)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    lines = descriptor == 2 or raw.isatty()
    # Names of files may hold bytes that are no text: they are printed as escapes.
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
