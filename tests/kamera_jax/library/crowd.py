"""Processes and threads that put, get, delete and collect in one library at once."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback

from tests.kamera_jax.library.crashes import forked

SHARED = 24
OWN = 1000
KEEP = 3
"""Of its own chunks, a thread deletes those whose number is no multiple of this."""


def crowd(folder, processes, threads, seconds):
    """Let them work for a while; the numbers of what was checked, or an AssertionError."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.kamera_jax.library.crowd", *map(str, (folder, processes, threads, seconds))],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120 + 10 * seconds,
    )
    assert run.returncode == 0, run.stdout
    return json.loads(run.stdout.splitlines()[-1])


def work(lib, number, until, counts):
    """One thread: shared keys, whose chunks everyone puts, and its own."""
    from kamera_jax.errors import ChunkNotFoundError
    from tests.kamera_jax.library.made import bits, chunk, key_of, patch

    rng = random.Random(number)
    own = OWN * (number + 1)
    alive = set()
    while time.monotonic() < until:
        act = rng.choice(("put", "put", "own", "own", "get", "get", "get", "patch", "delete", "gc"))
        shared = rng.randrange(SHARED)
        if act == "put":
            assert lib.put(chunk(shared)) == key_of(shared)
            assert lib.has(key_of(shared)) and bits(lib.get(key_of(shared))) == bits(chunk(shared))
        elif act == "own":
            numbers, own = [own, own + 1], own + 2
            lib.put_many([chunk(i) for i in numbers])
            alive |= set(numbers)
        elif act == "get":
            try:
                assert bits(lib.get(key_of(shared))) == bits(chunk(shared))
            except ChunkNotFoundError:
                pass  # nobody has put it yet: they are never deleted
        elif act == "patch":
            lib.put(patch(shared))
            assert bits(patch(shared)) in [bits(each) for each in lib.patches(key_of(shared))]
        elif act == "delete" and (gone := [i for i in sorted(alive) if i % KEEP]):
            assert lib.delete(key_of(gone[0]))
            assert not lib.has(key_of(gone[0]))
            alive.discard(gone[0])
        elif act == "gc" and rng.random() < 0.3:
            lib.gc()
        for i in rng.sample(sorted(alive), min(2, len(alive))):
            assert bits(lib.get(key_of(i))) == bits(chunk(i)), f"{i} was put and never deleted"
        counts[act] = counts.get(act, 0) + 1
    return alive


def process(folder, first, threads, seconds, say):
    """One process: one library object for all its threads."""
    import kamera_jax as kj

    lib = kj.ChunkLibrary.open(folder, mode="a")
    until = time.monotonic() + seconds
    errors = []
    alive = set()
    counts = {}

    def run(number):
        try:
            alive.update(work(lib, number, until, counts))
        except BaseException:
            errors.append(traceback.format_exc())

    running = [threading.Thread(target=run, args=(first + i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    lib.close()
    say(json.dumps({"alive": sorted(alive), "errors": errors, "operations": sum(counts.values())}))


def check(folder, alive, say):
    """Nothing lost, nothing twice, nothing that should be gone."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import bits, chunk, key_of

    lib = kj.ChunkLibrary.open(folder)
    numbers = {key_of(i): i for i in (*range(SHARED), *alive)}
    keys = lib.keys()
    assert len(keys) == len(set(keys)) and set(keys) <= numbers.keys()
    assert {key_of(i) for i in alive} <= set(keys), "lost"
    for key in keys:
        assert bits(lib.get(key)) == bits(chunk(numbers[key]))
        assert len(lib._index.packs_of(key)) == 1, "twice"
    report = lib.verify()
    assert report.ok, report
    say(json.dumps({"chunks": len(keys), "patches": len(lib.keys("patches"))}))


def main(folder, processes, threads, seconds):
    """The process that forks."""
    from orbax.checkpoint import v1  # noqa: F401  (what the others would import, once)

    import tests.kamera_jax.library.made  # noqa: F401

    crowd = [
        forked(lambda say, first=i * threads: process(folder, first, threads, seconds, say)) for i in range(processes)
    ]
    alive = []
    operations = 0
    errors = []
    for child, said in crowd:
        answer = said.read()
        if os.waitpid(child, 0)[1]:
            sys.exit("a process failed")
        told = json.loads(answer)
        alive = alive + told["alive"]
        operations = operations + told["operations"]
        errors = errors + told["errors"]
    if errors:
        print(*errors)
        sys.exit(f"{len(errors)} threads failed")
    reader, said = forked(lambda say: check(folder, alive, say))
    answer = said.read()
    if os.waitpid(reader, 0)[1]:
        sys.exit("the library is not what it should be")
    print(
        json.dumps(
            {"processes": processes, "threads": threads, "seconds": seconds, "operations": operations}
            | {"errors": 0, "left": json.loads(answer)}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
