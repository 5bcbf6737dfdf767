"""Writers killed at random moments: what was committed is there to the bit, nothing else is, and no repair is needed.

A process imports everything and starts no thread; it forks one writer after the other, and as many readers that check
what each left. Writers say what they begin and what they have done through a pipe, which survives them.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback

BATCH = 4
KINDS = ("put", "patch", "delete", "gc")
STEPS = 3
"""A writer is killed during an operation of each kind in turn: its first, its second or its third."""

SHORT = 0.02
"""Seconds that an operation takes, for all that is known before the first of its kind was done."""


def kills(folder, count, seed=0):
    """Kill ``count`` writers of one library; the numbers of what was checked, or an AssertionError."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kamera_jax.library.crashes", str(folder), str(count), str(seed)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60 + 30 * count,
    )
    assert run.returncode == 0, run.stdout
    return json.loads(run.stdout.splitlines()[-1])


def forked(work):
    """A child that does ``work(say)``, and the end of the pipe that it says things through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading, "rb")
    status = 1
    try:
        os.close(reading)
        work(lambda *words: os.write(writing, (" ".join(map(str, words)) + "\n").encode()))
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
    finally:
        os._exit(status)


def write(folder, seed, say):
    """Put, delete and collect until it is killed."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import chunk, key_of, patch

    rng = random.Random(seed)
    fresh = 1000 * seed
    mine = []
    lib = kj.ChunkLibrary.open(folder, mode="a")
    say("open")
    while True:
        act = rng.choice(KINDS if mine else ("put", "patch"))
        numbers = []
        if act in ("put", "patch"):
            count = rng.choice((1, BATCH)) if act == "put" else 1
            numbers, fresh = list(range(fresh, fresh + count)), fresh + count
        if act == "delete":
            numbers = [mine.pop(rng.randrange(len(mine)))]
        say("begin", act, *numbers)
        if act == "put":
            lib.put_many([chunk(i) for i in numbers])
            mine += numbers
        elif act == "patch":
            lib.put(patch(numbers[0]))
        elif act == "delete":
            for i in numbers:
                lib.delete(key_of(i))
        else:
            lib.gc()
        say("done", act, *numbers)


def check(folder, wanted, say):
    """Everything that must be there is, to the bit, and nothing but that and what was under way; says what there is."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import bits, chunk, key_of, patch

    lib = kj.ChunkLibrary.open(folder)
    numbers = {key_of(i): i for i in (*wanted["chunks"], *wanted["perhaps"])}
    keys = sorted(lib.keys())
    assert {key_of(i) for i in wanted["chunks"]} <= set(keys), "a committed chunk is lost"
    assert set(keys) <= numbers.keys(), "there is a chunk that was never put, or was deleted"
    for key, found in zip(keys, lib.get_many(keys), strict=True):
        assert bits(found) == bits(chunk(numbers[key])), f"chunk {numbers[key]} is not as it was put"
    made = {repr(bits(patch(i))): i for i in (*wanted["patches"], *wanted["perhaps"])}
    found = [repr(bits(lib.get_patch(key))) for key in lib.keys("patches")]
    assert all(each in made for each in found), "a patch is not as it was put"
    patches = [made[each] for each in found]
    assert set(wanted["patches"]) <= set(patches), "a committed patch is lost"
    assert len(patches) == len(set(patches)), "a patch is there twice"
    report = lib.verify()
    assert report.ok, report
    say(json.dumps({"chunks": [numbers[key] for key in keys], "patches": patches}))


def journal(lines, chunks, patches):
    """What must be there after what a writer said, what may be, and what it was about when it died."""
    chunks = set(chunks)
    patches = set(patches)
    perhaps = set()
    during = "between"
    for line in lines:
        stage, act, *numbers = line.split()
        numbers = set(map(int, numbers)) if act != "gc" else set()
        if stage == "begin":
            during = act
            perhaps = numbers
            if act == "delete":
                chunks -= numbers
        else:
            during = "between"
            perhaps = set()
            if act == "put":
                chunks |= numbers
            if act == "patch":
                patches |= numbers
    return {"chunks": sorted(chunks), "patches": sorted(patches), "perhaps": sorted(perhaps)}, during


class Victims:
    """One library, and the writers that are killed in it; no thread may run in this process."""

    def __init__(self, folder, seed):
        from orbax.checkpoint import v1  # noqa: F401  (what a writer would import, once)

        import tests.kamera_jax.library.made  # noqa: F401

        self.folder = folder
        self.seed = seed
        self.there = {"chunks": [], "patches": []}
        self.during = dict.fromkeys((*KINDS, "between"), 0)
        self.rows = 0
        self._trials = 0
        self._rng = random.Random(seed)
        self._took = {}

    def kill(self):
        """Kill one more, and check what it left; "" or what went wrong."""
        self._trials += 1
        trial = self._trials
        child, told = forked(lambda say: write(self.folder, self.seed + trial, say))
        lines = [told.readline()]
        if not lines[0].startswith(b"open"):
            return "a writer could not open the library"
        victim = KINDS[trial % len(KINDS)]
        begun = 0.0
        seen = 0
        while seen < 1 + trial % STEPS:
            lines.append(told.readline())
            if not lines[-1]:
                return "a writer failed"
            stage, act = lines[-1].decode().split()[:2]
            if stage == "begin":
                begun = time.monotonic()
                seen += act == victim
            else:
                self._took[act] = time.monotonic() - begun
        time.sleep(self._rng.uniform(0, self._took.get(victim, SHORT)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines += told.readlines()
        wanted, doing = journal([line.decode() for line in lines[1:]], **self.there)
        self.during[doing] += 1
        reader, said = forked(lambda say: check(self.folder, wanted, say))
        answer = said.read()
        if os.waitpid(reader, 0)[1]:
            return f"after kill {trial}, during {doing}"
        self.there = json.loads(answer)  # what was under way is there or not, from now on
        self.rows += len(self.there["chunks"]) + len(self.there["patches"])
        return ""


def main(folder, count, seed):
    """The process that forks."""
    victims = Victims(folder, seed)
    for _ in range(count):
        if wrong := victims.kill():
            sys.exit(wrong)
    print(json.dumps({"kills": count, "during": victims.during, "rows_read_back": victims.rows}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
