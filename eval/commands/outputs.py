"""Files that commands write for the user: looked at before the work is done, and written whole or not at all.

``-`` is standard output. What is no regular file (a pipe, a terminal, another device) is written through, never
replaced, and a link stays a link: the file behind it is replaced. Nothing here imports JAX.
"""

import os
import re
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

STDOUT = Path("-")

PLOTS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""Endings of figures' files; one without an ending is a PNG file."""

PATIENCE = 10.0
"""Seconds that a named pipe is waited for, until another program reads it."""

_OPEN = re.compile(r"/dev/(?P<name>stdin|stdout|stderr)|(?:/dev|/proc/(?:self|\d+))/fd/(?P<number>\d+)")
"""Names of files that this process has open already."""


_KEPT: list[Any] = []
"""Standard output, while what is printed goes to standard error."""


class OutputError(ValueError):
    """A file that a result cannot be written to, or two results for one file."""


def is_stdout(path: Path | None) -> bool:
    """Whether a path is standard output, by any of its names."""
    return path is not None and (path == STDOUT or _descriptor(path) == 1)


def check(files: Iterable[tuple[str, Path]], folders: Iterable[tuple[str, Path]] = ()) -> None:
    """Raise OutputError unless these can be written, so that it is known before the work is done.

    Args:
        files: what asks for each file, as ``--json``, and its path.
        folders: the same of folders, which may be made yet.
    """
    taken: dict[object, str] = {}
    for option, path in files:
        real = STDOUT if is_stdout(path) else os.path.realpath(path)
        if real in taken:
            raise OutputError(f"{taken[real]} and {option} both write to {path}; give each a file of its own")
        taken[real] = option
        _check_file(option, path)
    for option, folder in folders:
        _check_folder(option, folder)


class UnfinishedError(Exception):
    """A command that ends before it did everything, and has a result all the same.

    Attributes:
        result: what ``--json`` writes.
        status: the exit status.
    """

    def __init__(self, message: str, result: Any, status: int = 1) -> None:
        """Take what the command did."""
        super().__init__(message)
        self.result = result
        self.status = status


@contextmanager
def kept_for_results(files: Iterable[Path]) -> Iterator[None]:
    """The context in which what is printed goes to standard error, if one of the files is standard output."""
    if not any(map(is_stdout, files)):
        yield
        return
    _KEPT.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _KEPT.pop()


def write(path: Path, content: str | bytes) -> None:
    """Write a result: a regular file is replaced as a whole, everything else is written through.

    Raises:
        OutputError: it cannot be written; a regular file is then as it was.
        BrokenPipeError: what reads the pipe has ended.
    """
    try:
        _write(path, content.encode() if isinstance(content, str) else content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({_reason(error)}); give another file") from error


def _write(path: Path, payload: bytes) -> None:
    descriptor = 1 if path == STDOUT else _descriptor(path)
    if descriptor is not None:
        _to_stream(descriptor, payload)
        return
    real = Path(os.path.realpath(path))
    try:
        mode = os.stat(real).st_mode
    except FileNotFoundError:
        mode = None
    if mode is None or (stat.S_ISREG(mode) and os.access(real.parent, os.W_OK | os.X_OK)):
        _replace(real, payload, mode)
    elif stat.S_ISREG(mode):  # its folder cannot be written, but the file can
        real.write_bytes(payload)
    else:
        with os.fdopen(_opened(path, real, mode), "wb", buffering=0) as file:
            _write_all(file.fileno(), payload)


def write_by(path: Path, draw: Callable[[Path], object]) -> None:
    """Write what ``draw`` makes in a file of its own, of the same ending (PNG, where there is none)."""
    ending = path.suffix if path.suffix and not is_stdout(path) else ".png"
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / f"drawn{ending}"
        draw(drawn)
        write(path, drawn.read_bytes())


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path names, such as /dev/stdout."""
    name = _OPEN.fullmatch(os.path.abspath(path))
    if name is None:
        return None
    if name["number"] is not None:
        return int(name["number"])
    return ("stdin", "stdout", "stderr").index(name["name"])


def _check_file(option: str, path: Path) -> None:
    if path == STDOUT or _descriptor(path) is not None:
        return
    if option == "--plot" and path.suffix and path.suffix.lower() not in PLOTS:
        raise OutputError(f"{option} {path}: a figure cannot be written as {path.suffix}; expected {', '.join(PLOTS)}")
    real = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        _check_parent(option, path, real.parent)
        _try_out(option, path, real.parent)
        return
    except (OSError, ValueError) as error:
        raise OutputError(f"{option} {path}: it cannot be written ({_reason(error)}); give another file") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{option} {path}: this is a folder; give a file")
    if stat.S_ISSOCK(mode):
        raise OutputError(f"{option} {path}: this is a socket; give a file")
    if not os.access(path, os.W_OK):
        raise OutputError(f"{option} {path}: it may not be written; give another file")
    if stat.S_ISREG(mode) and os.access(real.parent, os.W_OK | os.X_OK):
        _try_out(option, path, real.parent)


def _check_parent(option: str, path: Path, parent: Path) -> None:
    if not parent.exists():
        raise OutputError(f"{option} {path}: there is no folder {parent}; make it first")
    if not parent.is_dir():
        raise OutputError(f"{option} {path}: {parent} is no folder; give another file")


def _try_out(option: str, path: Path, parent: Path) -> None:
    """Make a file beside ``path`` and remove it: only that says whether a file system takes one."""
    try:
        if len(os.fsencode(path.name)) > os.pathconf(parent, "PC_NAME_MAX"):
            raise OutputError(f"{option} {path}: its name is too long; give another file")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OutputError(f"{option} {path}: no file can be made in {parent} ({_reason(error)})") from error


def _check_folder(option: str, folder: Path) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{option} {folder}: this is no folder; give another one")
        parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not parent.is_dir():
            raise OutputError(f"{option} {folder}: {parent} is no folder; give another one")
    except OSError as error:
        raise OutputError(f"{option} {folder}: it cannot be made ({_reason(error)})") from error
    _try_out(option, folder, parent)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _replace(real: Path, payload: bytes, mode: int | None) -> None:
    beside = real.with_name(f".{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            beside.chmod(stat.S_IMODE(mode))
        beside.replace(real)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _opened(path: Path, real: Path, mode: int) -> int:
    """A pipe or a device, opened for writing; a pipe that nothing reads is waited for, but not without end."""
    if not stat.S_ISFIFO(mode):
        return os.open(real, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            descriptor = os.open(real, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if time.monotonic() > end:
                raise OutputError(f"nothing reads the named pipe {path}; start what reads it first") from error
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def _to_stream(descriptor: int, payload: bytes) -> None:
    stream: Any = None
    if descriptor == 1:
        stream = _KEPT[-1] if _KEPT else sys.stdout
    elif descriptor == 2:
        stream = sys.stderr
    if stream is None:
        _write_all(descriptor, payload)
        return
    stream.flush()
    if hasattr(stream, "buffer"):
        stream.buffer.write(payload)
        stream.buffer.flush()
    else:
        stream.write(payload.decode())


def _write_all(descriptor: int, payload: bytes) -> None:
    rest = memoryview(payload)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
