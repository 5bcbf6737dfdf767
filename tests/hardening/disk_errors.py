"""A disk that fails: every call to the system, in opening, putting, deleting and collecting, fails in its turn.

Whatever fails, what was acknowledged before is there to the bit, and the error has a name.
"""

import builtins
import errno
import io
import os
import shutil

import numpy as np
from orbax.checkpoint import v1  # noqa: F401  (what the first put would import)

import kamera_jax as kj
from kamera_jax.library import arrays
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

OPERATIONS = {
    **{"open a": 66, "open r": 28, "put": 160, "put_many": 370, "delete": 36, "gc": 660, "close": 18, "get": 36},
    **{"verify": 400, "patches": 36},
}
"""How many calls each makes, about: the last ones of these may not come, and then nothing fails."""

OFTEN = ("open a", "put", "delete", "gc")
"""Tried as often as all others together."""

NUMBERS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES")
CALLS = (
    "open",
    "fsync",
    "rename",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
    "listdir",
    "scandir",
    "lstat",
    "stat",
    "write",
)
"""Functions of `os`; ``io.open`` and ``save``, which is all of the storage library's, are counted with them."""


def cases(folder, count, seed):
    """``count`` calls that fail, drawn at random; the library that this is done to is made once."""

    if not (folder / "template").exists():
        with kj.ChunkLibrary.open(folder / "template", mode="a") as lib:
            lib.put_many([chunk(i, tokens=12) for i in range(4)] + [patch(0)])
            lib.put(chunk(4))
            lib.put(chunk(5))
            lib.delete(key_of(3))
        (folder / "template" / "staging" / ("f" * 32)).mkdir()
    rng = np.random.default_rng(seed)
    drawn = []
    for number in range(count):
        operation = str(rng.choice(OFTEN if number % 2 else list(OPERATIONS)))
        call = int(rng.integers(OPERATIONS[operation]))
        drawn.append((operation, NUMBERS[number % len(NUMBERS)], call, ("once", "from then on")[number % 3 == 0]))
    return drawn


class Failing:
    """The system's calls below a folder; one of them fails."""

    def __init__(self, root, number, call, then):
        self.root = str(root)
        self.number = getattr(errno, number)
        self.call = call
        self.then = then
        self.count = 0
        self.descriptors = set()

    def check(self, where):
        """Count a call, and raise if its turn has come."""
        if isinstance(where, int):
            inside = where in self.descriptors
        else:
            inside = isinstance(where, str | os.PathLike) and str(where).startswith(self.root)
        if not inside:
            return False
        turn = self.count == self.call or (self.then == "from then on" and self.count > self.call)
        self.count += 1
        if turn:
            raise OSError(self.number, os.strerror(self.number), str(where))
        return True

    def wrapped(self, function):
        """A function of the system that is counted by its first argument."""

        def call(*arguments, **options):
            inside = self.check(arguments[0]) if arguments else False
            result = function(*arguments, **options)
            if inside and function is OPEN:
                self.descriptors.add(result)
            return result

        return call

    def __enter__(self):

        self.saved = [(os, name, getattr(os, name)) for name in CALLS]
        self.saved += [(io, "open", io.open), (builtins, "open", builtins.open), (arrays, "save", arrays.save)]
        for place, name, function in self.saved:
            setattr(place, name, self.wrapped(function))
        return self

    def __exit__(self, *_):
        for place, name, function in self.saved:
            setattr(place, name, function)


OPEN = os.open


def judge(case, folder):
    """Let one call fail, and read everything back."""

    operation, number, call, then = case
    root = folder / "lib"
    shutil.copytree(folder.parent / "template", root)
    there = {key_of(i): chunk(i, tokens=12) for i in range(3)} | {key_of(i): chunk(i) for i in (4, 5)}
    lib = None if operation.startswith("open") else kj.ChunkLibrary.open(root, mode="a")
    if operation == "close":
        lib.put(chunk(6))
        there[key_of(6)] = chunk(6)
    acts = {
        "open a": lambda: kj.ChunkLibrary.open(root, mode="a"),
        "open r": lambda: kj.ChunkLibrary.open(root),
        "put": lambda: lib.put(chunk(7)),
        "put_many": lambda: lib.put_many([chunk(7), patch(1), chunk(8)]),
        "delete": lambda: lib.delete(key_of(5)),
        "gc": lambda: lib.gc(),
        "close": lambda: lib.close(),
        "get": lambda: lib.get(key_of(0)),
        "verify": lambda: lib.verify(),
        "patches": lambda: lib.patches(key_of(0)),
    }
    failed = None
    with Failing(root, number, call, then):
        try:
            acts[operation]()
        except Exception as error:
            failed = error
    if failed is not None and type(failed).__module__ != "kamera_jax.errors":
        return f"unnamed: {failed!r}"
    if failed is None and operation == "put":
        there[key_of(7)] = chunk(7)
    if failed is None and operation == "put_many":
        there |= {key_of(7): chunk(7), key_of(8): chunk(8)}
    if operation == "delete":
        there.pop(key_of(5))
    for mode in ("r", "a"):
        again = kj.ChunkLibrary.open(root, mode=mode)
        for key, given in there.items():
            if bits(again.get(key)) != bits(given):
                return f"wrong: {key[:8]} is another chunk"
        if [bits(each) for each in again.patches(key_of(0))] != [bits(patch(0))]:
            return "lost: the patch"
        if again.has(key_of(3)):
            return "wrong: what was deleted is there"
        if failed is None and operation == "delete" and again.has(key_of(5)):
            return "wrong: a deleted chunk is there"
        report = again.verify()
        unfinished = {"tombstones", "deleted.log"} if failed is not None and mode == "r" else set()  # a writer ends it
        if report.lost or set(report.damaged) - unfinished:
            return f"wrong: {report}"
    if left := sorted(path.name for path in (root / "staging").iterdir()):
        return f"wrong: left in staging: {left}"
    if left := [path.name for path in root.iterdir() if path.name.startswith(("index.json.", "LIBRARY.json."))]:
        return f"wrong: left: {left}"
    again.put(chunk(7))
    again.gc()
    again.close()
    last = kj.ChunkLibrary.open(root)
    if bits(last.get(key_of(7))) != bits(chunk(7)) or any(bits(last.get(key)) != bits(c) for key, c in there.items()):
        return "lost: after it was collected"
    return ""
