"""Processes that die at a chosen call to the system: every one that putting, deleting and collecting makes, in turn.

A process that has started no thread forks one that changes a copy of a library, and dies before or after its n-th call;
another then reads what is there, collects, and reads it again.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from tests.kamera_jax.library.crashes import forked

CALLS = ("open", "write", "pwrite", "fsync", "ftruncate", "rename", "replace", "unlink", "rmdir", "mkdir")
OPERATIONS = ("put", "delete", "gc", "close", "open")

ALIVE = (*range(12, 22),)
DELETED = (*range(12), 22)
PATCHES = (14, 20)
LEFT = "0123456789abcdef" * 2


def build(folder, lock="file"):
    """A library with a sparse pack, a dead one, small ones, patches, deleted marks and an index."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import chunk, key_of, patch

    with kj.ChunkLibrary.open(folder, mode="a", lock=lock) as lib:
        lib.put_many([chunk(i) for i in range(20)])
        for i in (20, 21, 22):
            lib.put(chunk(i))
        lib.put_many([patch(i) for i in (0, *PATCHES)])
        for i in DELETED:
            lib.delete(key_of(i))
    (folder / "staging" / LEFT).mkdir()
    (folder / f"index.json.{LEFT}").write_text("{")


class Points:
    """Counts calls to the system, and ends the process at one of them."""

    def __init__(self, at, after):
        self.at = at
        self.after = after
        self.count = 0
        self.saved = {}

    def __enter__(self):
        for name in CALLS:
            self.saved[name] = getattr(os, name)
            setattr(os, name, self.counted(self.saved[name]))
        return self

    def __exit__(self, *error):
        for name, call in self.saved.items():
            setattr(os, name, call)

    def counted(self, call):
        """A call that is a point to die at."""

        def instead(*arguments, **options):
            number = self.count
            self.count += 1
            if number == self.at and not self.after:
                self.reached()
            result = call(*arguments, **options)
            if number == self.at and self.after:
                self.reached()
            return result

        return instead

    def reached(self):
        """End the process."""
        os._exit(9)


def operate(folder, operation, points):
    """What dies."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import chunk, key_of, patch

    if operation == "open":
        with points:
            kj.ChunkLibrary.open(folder, mode="a")
        return
    lib = kj.ChunkLibrary.open(folder, mode="a")
    if operation == "close":
        lib.put(chunk(30))
        acts = (lib.close,)
    else:
        acts = {
            "put": (lambda: lib.put(chunk(30)), lambda: lib.put(patch(13))),
            "delete": (lambda: lib.delete(key_of(20)),),
            "gc": (lib.gc,),
        }[operation]
    with points:
        for act in acts:
            act()


def cases(folder, count, seed):
    """Points of every operation in turn, spread over all that it has: before a call, and after it."""
    build(folder / "template")
    totals = {}
    for operation in OPERATIONS:
        shutil.copytree(folder / "template", folder / operation)
        points = Points(-1, False)
        operate(folder / operation, operation, points)
        totals[operation] = points.count
    whole = [(operation, at, after) for operation in OPERATIONS for at in range(totals[operation]) for after in (0, 1)]
    return [whole[(seed + number * len(whole) // count) % len(whole)] for number in range(count)]


def check(folder, done, operation, say):
    """Nothing that was put is lost, nothing that was deleted is there; and so it stays when it is collected."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import bits, chunk, key_of, patch

    def read(lib):
        report = lib.verify()
        assert report.ok, f"wrong: {report}"
        numbers = {key_of(i): i for i in range(40)}
        found = {numbers[key] for key in lib.keys()}
        assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in found), "wrong: a chunk is not as it was put"
        made = {patch(i).key: i for i in (0, 13, *PATCHES)}
        patches = {made[key] for key in lib.keys("patches")}
        assert all(bits(lib.get_patch(patch(i).key)) == bits(patch(i)) for i in patches), "wrong: a patch"
        assert not found & set(DELETED), f"wrong: {found & set(DELETED)} came back"
        return found, patches

    first = read(kj.ChunkLibrary.open(folder))
    chunks, patches = first
    begun = {"delete": {20}}.get(operation, set())
    assert set(ALIVE) - chunks <= begun, f"lost: {set(ALIVE) - chunks}"
    assert set(PATCHES) - patches <= begun, f"lost: patches {set(PATCHES) - patches}"
    if operation == "close" or (done and operation == "put"):
        assert 30 in chunks, "lost: what was put"
    if done and operation == "delete":
        assert 20 not in chunks and 20 not in patches, "wrong: what was deleted is there"
    with kj.ChunkLibrary.open(folder, mode="a") as lib:
        lib.gc()
        lib.put(chunk(33))
        assert read(lib) == (chunks | {33}, patches), "lost: what was there before the collection"
    assert read(kj.ChunkLibrary.open(folder)) == (chunks | {33}, patches), "lost: what was there before it was closed"
    assert sorted(os.listdir(folder / "staging")) == [], "outside: something is left in staging"
    assert not list(Path(folder).glob("*.json.*")), "outside: an unfinished file is left"
    say(json.dumps("checked"))


def judge(case, folder):
    """Die at a point; "" or what was lost."""
    from orbax.checkpoint import v1  # noqa: F401  (what the others would import, once)

    import tests.kamera_jax.library.made  # noqa: F401

    operation, at, after = case
    library = folder / "library"
    shutil.copytree(folder.parent / "template", library)
    child, said = forked(lambda say: operate(library, operation, Points(at, after)))
    said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, 9):
        return f"unnamed: the operation ended with {status}"
    return checked(library, status == 0, operation)


def checked(library, done, operation):
    """The verdict of a process that reads."""

    def work(say):
        try:
            check(library, done, operation, say)
        except AssertionError as error:
            say(json.dumps(str(error)))
        except BaseException:
            say(json.dumps("unnamed: " + traceback.format_exc(limit=-3)))

    reader, said = forked(work)
    answer = said.read()
    os.waitpid(reader, 0)
    if not answer:
        sys.stdout.flush()
        return "unnamed: the reader died"
    verdict = json.loads(answer)
    return "" if verdict == "checked" else verdict
