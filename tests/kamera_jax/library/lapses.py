"""Writers with a lease that are stopped past it, or killed, at a chosen call to the system, while another takes over.

A process that has started no thread forks them. The first puts, deletes or collects; where it is stopped, the second
takes over, puts, deletes and collects; then the first goes on. It says that it was lost, and nothing is changed any
more; or it had no lease when it was stopped.

`python -m tests.kamera_jax.library.lapses FOLDER COUNT SEED`
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.hardening.crash_points import ALIVE, DELETED, PATCHES, Points, build, operate
from tests.kamera_jax.library.crashes import forked

OPERATIONS = ("put", "delete", "gc", "open")
OWN = 30
TAKEN = 33
GONE = 21
"""Chunks: that the first puts (see `operate`), that the second puts, and that it deletes."""


def lapses(folder, count, seed=0):
    """So many points, spread over all, each with a writer that is stopped and one that is killed; what came of them."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.kamera_jax.library.lapses", str(folder), str(count), str(seed)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120 + 30 * count,
    )
    assert run.returncode == 0, run.stdout
    return json.loads(run.stdout.splitlines()[-1])


class Stops(Points):
    """The same points, at which the process is stopped."""

    def reached(self):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # not only the process: this thread goes no further


def expire(library):
    """Make a lease as old as one that was not renewed for long, whoever has it."""
    for path in (library / "leases").iterdir():
        os.utime(path, (0, 0))


def holds(library, pid):
    """Whether a process has the lease, and has begun with it: until then it finds out in time, and takes the next."""
    last = max(path for path in (library / "leases").iterdir() if len(path.name) == 16)
    begun = any(int(name[:12], 16) == int(last.name) for name in os.listdir(library / "staging"))
    return begun and last.stat().st_mtime > 0 and last.read_text().split()[1:2] == [str(pid)]


def tree(library):
    """Everything that a library consists of for whoever reads it."""
    names = ("packs", "patches", "tombstones")
    files = [path for name in names for path in sorted((library / name).rglob("*")) if path.is_file()]
    files += [library / name for name in ("LIBRARY.json", "index.json", "deleted.log")]
    return {path.relative_to(library).as_posix(): path.read_bytes() for path in files if path.exists()}


def first(library, operation, points, say):
    """The writer that is stopped or killed."""
    from kamera_jax.errors import LeaseLostError

    try:
        operate(library, operation, points)
    except LeaseLostError:
        say("lost")
    else:
        say("done")


def second(library, say):
    """The writer that takes over."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import chunk, key_of

    with kj.ChunkLibrary.open(library, mode="a") as lib:
        lib.put(chunk(TAKEN))
        lib.delete(key_of(GONE))
        lib.gc()
    say("done")


def check(library, operation, said, say):
    """Nothing that was put is lost or there twice, nothing that was deleted is there; and another writer goes on."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import bits, chunk, key_of, patch

    def read(lib):
        report = lib.verify()
        assert report.ok, report
        numbers = {key_of(i): i for i in range(40)}
        found = {numbers[key] for key in lib.keys()}
        assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in found)
        assert all(len(lib._index.packs_of(key)) == 1 for key in lib.keys()), "twice"
        assert TAKEN in found and not found & {GONE, *DELETED}, found
        assert set(ALIVE) - found <= {GONE, 20 if operation == "delete" else GONE}, "lost"
        assert {patch(i).key for i in PATCHES} - set(lib.keys("patches")) <= {patch(20).key} or operation != "delete"
        if said == "done" and operation == "put":
            assert OWN in found
        if said == "done" and operation == "delete":
            assert 20 not in found
        return found

    found = read(kj.ChunkLibrary.open(library))
    with kj.ChunkLibrary.open(library, mode="a") as lib:
        lib.put(chunk(34))
        lib.gc()
        assert read(lib) == found | {34}
    assert not os.listdir(library / "staging") and len(os.listdir(library / "leases")) == 1
    say("right")


def judged(library, operation, points):
    """What the first said; an AssertionError for what may not be."""
    child, saying = forked(lambda say: first(library, operation, points, say))
    stopped = os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    held = stopped and holds(library, child)
    expire(library)
    other, answer = forked(lambda say: second(library, say))
    assert answer.read() == b"done\n" and os.waitpid(other, 0)[1] == 0, "the second failed"
    before = tree(library)
    if stopped:
        os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)
    said = saying.read().decode().strip()
    if stopped:
        assert said in ("lost", "done"), "unnamed"
        if said == "lost" or (held and operation == "put"):
            assert tree(library) == before, f"{said}, and it changed something"
    reader, answer = forked(lambda say: check(library, operation, said, say))
    right = answer.read()
    assert os.waitpid(reader, 0)[1] == 0 and right == b"right\n", "the library is not what it should be"
    return said or "killed", held


def main(folder, count, seed):
    """The process that forks."""
    from orbax.checkpoint import v1  # noqa: F401  (what the others would import, once)

    import tests.kamera_jax.library.made  # noqa: F401

    template = folder / "template"
    child, _ = forked(lambda say: build(template, "lease"))
    assert os.waitpid(child, 0)[1] == 0
    cases = []
    for operation in OPERATIONS:
        shutil.copytree(template, folder / operation)
        child, saying = forked(lambda say, operation=operation: say(counted(folder / operation, operation)))
        total = int(saying.read())
        assert os.waitpid(child, 0)[1] == 0
        cases += [(operation, at, after) for at in range(total) for after in (0, 1)]
    outcomes = {"lost": 0, "done": 0, "killed": 0, "stopped with the lease": 0}
    for number in range(count):
        operation, at, after = cases[(seed + number * len(cases) // count) % len(cases)]
        for kind in (Stops, Points):
            library = folder / f"{number}-{kind.__name__}"
            shutil.copytree(template, library)
            try:
                said, held = judged(library, operation, kind(at, after))
            except AssertionError as error:
                print(f"{kind.__name__} of {operation}, {'after' if after else 'before'} call {at}: {error}")
                sys.exit(1)
            outcomes[said] += 1
            outcomes["stopped with the lease"] += held
            shutil.rmtree(library)
    print(json.dumps(outcomes | {"points": len(cases)}))


def counted(library, operation):
    points = Points(-1, False)
    operate(library, operation, points)
    return points.count


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
