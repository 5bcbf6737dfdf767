"""What a library of many chunks costs: opening, listing, putting, getting, deleting and collecting, and the memory.

python -m benchmarks.library --part scale page

The library is written directly, in packs of small rows: no model, and no put for each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = (2_000, 20_000, 200_000)
PATCHED = 10
"""Every so many chunks one has a patch."""

TOKENS = 16
GETS = 200
DELETED = 200
PUTS = 10


def rows(kind: str, first: int, count: int) -> list[Any]:
    """Small rows of a pack, each with a key of its own and bytes of its own."""
    import dataclasses

    from kamera_jax.library.files import sha256
    from kamera_jax.library.rows import blocks, digest, row_of
    from tests.kamera_jax.library.made import chunk, key_of, patch

    base = row_of(chunk(0, tokens=TOKENS, layers=1) if kind == "chunks" else patch(0), "exact")
    made = []
    for number in range(first, first + count):
        key = key_of(number) if kind == "chunks" else sha256(f"patch {number}".encode())
        leaves = dict(base.leaves)
        name = next(iter(leaves))
        leaves[name] = leaves[name].copy()
        leaves[name].reshape(-1).view(np.uint8)[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
        digests = base.digests | {name: digest(leaves[name], blocks(name, leaves[name].shape))}
        about = base.about | {"key": key} | ({"chunk": key_of(number)} if kind == "patches" else {})
        made.append(dataclasses.replace(base, key=key, about=about, leaves=leaves, digests=digests))
    return made


def build(root: Path, count: int) -> None:
    """A library of ``count`` chunks, and a patch of every tenth, with its index."""
    import kamera_jax as kj
    from kamera_jax.library.arrays import writer
    from kamera_jax.library.commit import PACK_ROWS

    with kj.ChunkLibrary.open(root, mode="a") as lib:
        committer = lib._committer

        def write() -> None:
            with committer.writing():
                for first in range(0, count, PACK_ROWS):
                    committer.write("chunks", rows("chunks", first, min(PACK_ROWS, count - first)))
                for first in range(0, count // PATCHED, PACK_ROWS):
                    committer.write("patches", rows("patches", first, min(PACK_ROWS, count // PATCHED - first)))

        writer().submit(write).result()


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds by the clock and of the CPU, and the peak of memory so far."""
    begun = time.perf_counter()
    cpu = time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def one(root: Path, count: int, what: str) -> dict[str, float]:
    """One operation, in a process of its own that has imported everything."""
    from orbax.checkpoint import v1  # noqa: F401  (what the first to write would import)

    import kamera_jax as kj
    from eval.commands.main import main as command
    from tests.kamera_jax.library.made import chunk, key_of

    if what == "open without an index":
        (root / "index.json").rename(root.parent / "index.json")
        result = timed(lambda: kj.ChunkLibrary.open(root))
        (root.parent / "index.json").rename(root / "index.json")
        return result
    if what == "ls":
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            standard = sys.stdout
            sys.stdout = nothing
            try:
                return timed(lambda: command(["library", "ls", str(root)]))
            finally:
                sys.stdout = standard
    if what == "open":
        return timed(lambda: kj.ChunkLibrary.open(root))
    lib = kj.ChunkLibrary.open(root, mode="a")
    chosen = [int(i) for i in np.random.default_rng(0).choice(count, GETS, replace=False)]
    if what == "put":
        lib.put(chunk(10**7))
        return each(timed(lambda: [lib.put(chunk(10**7 + 1 + i)) for i in range(PUTS)]), PUTS)
    if what == "get":
        lib.get(key_of(chosen[0]))
        return each(timed(lambda: [lib.get(key_of(i)) for i in chosen]), GETS)
    if what == "delete":
        return each(timed(lambda: [lib.delete(key_of(i)) for i in chosen]), DELETED)
    if what == "gc":
        last = list(range(count - 3 * count // 10, count))
        with lib._committer.writing():
            lib._index.mark_deleted(key_of(i) for i in last)
        return timed(lib.gc)
    return timed({"keys": lib.keys, "stats": lib.stats, "close": lib.close, "info": lambda: lib.info(key_of(7))}[what])


def each(result: dict[str, float], count: int) -> dict[str, float]:
    """The times of one of several that were done."""
    return result | {name: result[name] / count for name in ("seconds", "cpu_seconds")}


OPERATIONS = ("open", "open without an index", "ls", "info", "stats", "get", "put", "delete", "gc")


def measure(counts: Sequence[int], folder: Path | None) -> dict[str, Any]:
    """Every operation at every size, each in a fresh process."""
    result: dict[str, Any] = {"counts": list(counts), "patched": PATCHED, "operations": {}}
    for count in counts:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            root = Path(place) / "library"
            begun = time.perf_counter()
            build(root, count)
            print(count, "built", round(time.perf_counter() - begun, 1), flush=True)
            result.setdefault("bytes", []).append(
                sum(each.stat().st_size for each in root.rglob("*") if each.is_file())
            )
            for what in OPERATIONS:
                run = subprocess.run(
                    [sys.executable, "-m", "benchmarks.library_scale", "--one", what, str(root), str(count)],
                    env=os.environ | {"JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found = json.loads(run.stdout.splitlines()[-1])
                result["operations"].setdefault(what, []).append(found)
                print(count, what, {name: round(value, 4) for name, value in found.items()}, flush=True)
    return result


def write(path: Path, counts: Sequence[int], folder: Path | None) -> None:
    """Measure, and write what was found."""
    result = measure(counts, folder)
    result |= {"cpus": os.cpu_count(), "load": os.getloadavg()[2]}
    result["versions"] = {name: version(name) for name in ("jax", "orbax-checkpoint", "numpy")}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, or run one operation for that."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--folder", type=Path, help="a disk to measure on; the system's temporary one by default")
    parser.add_argument("--json", type=Path, default=Path("docs/results/library-scale.json"))
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "LIBRARY", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, root, count = arguments.one
        print(json.dumps(one(Path(root), int(count), what)))
        return
    write(arguments.json, arguments.counts, arguments.folder)


if __name__ == "__main__":
    main()
