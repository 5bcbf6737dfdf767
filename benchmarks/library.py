"""What the chunk library costs: putting, getting and restoring, beside what Orbax and the disk do alone.

python -m benchmarks.library --json docs/results/library.json --page docs/library.md
"""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks import library_scale
from benchmarks.library_page import LAYERS, REPEATS, TOKENS, page
from benchmarks.stored import fidelity
from eval.commands.main import ATTENTIONS, EMBEDDED
from kamera_jax.identity import content_key
from kamera_jax.library.arrays import data_file
from kamera_jax.library.digests import digest
from kamera_jax.library.files import sha256

FEATURES = 256
WIDTH = 2048
"""Of a chunk: a page of 64 tokens for a model of 28 layers with two KV heads of 128, and its media features."""

BASES = 16
"""Chunks of different bytes; the others hold theirs under keys of their own."""

GETS = 200
WANTED = {
    "put_ms": 6.0,
    "warm_verified_get_ms": 3.0,
    "verified_restore_share_of_raw": 0.8,
    "cold_verified_restore_share_of_raw": 0.8,
    "times_one_checkpoint_each": 5.0,
}


def chunks(count: int) -> Iterator[kj.Chunk]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)

    def base() -> kj.Chunk:
        inputs = {"tokens": jnp.arange(TOKENS, dtype=jnp.int32), "media": array(TOKENS, WIDTH)}
        source = kj.Segment(inputs, jnp.zeros((3, TOKENS), jnp.float32), jnp.int32(TOKENS), float(TOKENS))
        return kj.Chunk(
            kv=kj.KV(array(LAYERS, TOKENS, FEATURES), array(LAYERS, TOKENS, FEATURES)),
            positions=source.positions,
            length=TOKENS,
            advance=float(TOKENS),
            model=content_key({"model": "benchmark"}),
            source=source,
        )

    bases = [base() for _ in range(BASES)]
    jax.block_until_ready([made.kv for made in bases])
    for number, made in zip(range(count), itertools.cycle(bases), strict=False):
        fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        yield kj.Chunk(**fields | {"key": content_key({"benchmark": number})})


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    done = work()
    return time.perf_counter() - begun, done


def arrays_of(chunk: kj.Chunk) -> dict[str, jax.Array]:
    assert chunk.source is not None
    return {"rot": chunk.kv.rot, "free": chunk.kv.free, "positions": chunk.positions, **chunk.source.inputs}


def forget(folder: Path) -> None:
    """Have the system's cache let go of what it holds of the files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_raw(folder: Path) -> int:
    """Read every byte of the data once, in pieces of 4 MiB into the same memory."""
    held = memoryview(bytearray(2**22))
    total = 0
    for path in sorted(folder.rglob("0.0*")):
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(held):
                total += read
    return total


def ms(seconds: list[float]) -> dict[str, float]:
    return {"least": 1e3 * min(seconds), "median": 1e3 * statistics.median(seconds)}


def hashing(digest_of: Callable[[bytes], Any], payload: bytes, size: int) -> float:
    """Milliseconds of a chunk's bytes, one thread, the least of twenty; KV in as many parts as a row has digests."""
    return 1e3 * min(timed(lambda: digest_of(payload))[0] for _ in range(20)) * size / len(payload)


def gets(root: Path, keys: list[str], cold: bool, **options: Any) -> dict[str, float]:
    """Milliseconds of a `get`, the chunk ready on the device."""
    lib = kj.ChunkLibrary.open(root, **options)
    chosen = np.random.default_rng(1).choice(len(keys), min(GETS, len(keys)), replace=False)
    lib.get(keys[0])
    if cold:
        forget(root)
    else:
        for i in chosen:
            lib.get(keys[i])
    return ms([timed(lambda i=i: jax.block_until_ready(lib.get(keys[i]).kv))[0] for i in chosen])


def restores(root: Path, cold: bool) -> dict[str, Any]:
    """Every pack restored, and every byte of it read, in turns; MB/s, and the shares of the raw read."""
    rates: dict[str, list[float]] = {"raw": [], "never": [], "always": [], "orbax": []}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def restored(how: str) -> int:
        lib = kj.ChunkLibrary.open(root, verify="always" if how == "always" else "never")
        size = 0
        for name in lib.packs():
            stacked = lib.restore(name, sharding=here if how == "orbax" else None)
            jax.block_until_ready([each.arrays for each in stacked])
            size += sum(array.nbytes for each in stacked for array in each.arrays.values())
        return size

    for _ in range(REPEATS):
        for name in rates:
            if cold:
                forget(root)
            seconds, size = timed(lambda name=name: read_raw(root / "packs") if name == "raw" else restored(name))
            rates[name].append(size / seconds / 1e6)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    shares = {name: middle[name] / middle["raw"] for name in rates if name != "raw"}
    return {"mb_per_s": middle, "share_of_raw": shares, "runs": rates}


def one_checkpoint_each(folder: Path, some: list[kj.Chunk]) -> dict[str, Any]:
    """What a user has without the library: a checkpoint per chunk, with Orbax's own settings."""
    from orbax.checkpoint import v1 as ocp

    def save(number: int, chunk: kj.Chunk) -> None:
        ocp.save(folder / f"{number}", arrays_of(chunk))

    def load(number: int) -> Any:
        return jax.block_until_ready(ocp.load(folder / f"{number}"))

    save(len(some), some[0])
    puts = [timed(lambda n=n, c=c: save(n, c))[0] for n, c in enumerate(some)]
    loads = [timed(lambda n=n: load(n))[0] for n in range(len(some))]
    return {"chunks": len(some), "put_ms": ms(puts), "get_ms": ms(loads)}


def rows_by_tensorstore(root: Path, keys: list[str]) -> dict[str, float]:
    """The other way to read a row without its pack: through the library that Orbax writes with."""
    import tensorstore as ts

    lib = kj.ChunkLibrary.open(root)
    found = {key: lib._reader.pack_and_row(key, "chunks", wanted=lambda name: False)[0] for key in keys}

    def read(key: str) -> list[Any]:
        pack = found[key]
        reads = []
        for leaf in pack.manifest.leaves(key).values():
            shape = pack.manifest.arrays[leaf.array][1]
            folder = data_file(pack.files.folder, leaf.array, len(shape)).parent
            store = ts.open({"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}).result()
            reads.append(store[leaf.start // leaf.nbytes].read())
        return [each.result() for each in reads]

    read(keys[0])
    return ms([timed(lambda key=key: read(key))[0] for key in keys])


def measure(folder: Path, count: int, subset: int) -> dict[str, Any]:
    sample = next(chunks(1))
    size = sum(array.nbytes for array in arrays_of(sample).values())
    rounds: list[float] = []
    made = list(chunks(count))
    with kj.ChunkLibrary.open(folder / "warm", mode="a") as lib:
        lib.put(sample)
    beside = one_checkpoint_each(folder / "each", made[:subset])
    shutil.rmtree(folder / "each")
    payload = np.asarray(sample.kv.rot).tobytes() + np.asarray(sample.kv.free).tobytes()
    for turn in range(2):
        lib = kj.ChunkLibrary.open(folder / f"lib{turn}", mode="a")
        rounds.append(timed(lambda lib=lib: lib.put_many(made))[0])
        lib.close()
        if not turn:
            shutil.rmtree(lib.root)
    root = folder / "lib1"
    keys = [chunk.key for chunk in made]
    with kj.ChunkLibrary.open(folder / "single", mode="a") as single:
        singles = [timed(lambda chunk=chunk: single.put(chunk))[0] for chunk in made[:subset]]
    shutil.rmtree(folder / "single")

    def write_raw() -> None:
        with (folder / "raw").open("wb", buffering=0) as file:
            for _ in range(64):
                file.write(payload)
            os.fsync(file.fileno())

    written = timed(write_raw)[0]
    (folder / "raw").unlink()
    result = {
        "chunks": count,
        "chunk_bytes": size,
        "put_ms": ms([each / count for each in rounds]),
        "put_alone_ms": ms(singles),
        "raw_write_ms_per_chunk": 1e3 * written / 64 * size / len(payload),
        "get_ms": {
            "warm_always": gets(root, keys, False),
            "warm_never": gets(root, keys, False, verify="never"),
            "cold_always": gets(root, keys, True),
        },
        "get_by_tensorstore_ms": rows_by_tensorstore(root, keys[:GETS]),
        "sha256_ms": hashing(sha256, payload, size),
        "blake3_ms": hashing(lambda each: digest(np.frombuffer(each, np.uint8), 2 * LAYERS), payload, size),
        "restore": {"warm": restores(root, False), "cold": restores(root, True)},
        "one_checkpoint_each": beside,
        "disk_bytes": kj.ChunkLibrary.open(root).stats().bytes,
    }
    return result | {"asked": _asked(result)}


def _asked(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    each = result["one_checkpoint_each"]
    get = result["get_ms"]["warm_always"]

    def share(where: str) -> dict[str, float]:
        restore = result["restore"][where]
        best = {how: max(runs) for how, runs in restore["runs"].items()}
        return {"median": restore["share_of_raw"]["always"], "least": best["always"] / best["raw"]}

    found = {
        "put_ms": result["put_ms"],
        "warm_verified_get_ms": get,
        "verified_restore_share_of_raw": share("warm"),
        "cold_verified_restore_share_of_raw": share("cold"),
        "times_one_checkpoint_each": {
            kind: each["put_ms"][kind] / result["put_ms"][kind] for kind in ("median", "least")
        },
    }
    return {name: {"wanted": wanted, **found[name]} for name, wanted in WANTED.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--subset", type=int, default=50, help="chunks that get a checkpoint, or a put, of their own")
    parser.add_argument("--episodes", type=int, default=40, help="of the fidelity of eight bits")
    parts = ("speed", "int8", "scale", "page")
    parser.add_argument("--part", choices=parts, nargs="+", default=list(parts))
    parser.add_argument("--counts", type=int, nargs="+", default=list(library_scale.COUNTS), help="chunks, of scale")
    parser.add_argument("--folder", type=Path, help="a disk to measure on; the system's temporary one by default")
    parser.add_argument("--json", type=Path, default=Path("docs/results/library.json"))
    parser.add_argument("--soak", type=Path, default=Path("docs/results/library-soak.json"))
    parser.add_argument("--scale", type=Path, default=Path("docs/results/library-scale.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/library.md"))
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    if "speed" in arguments.part:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            result |= measure(Path(folder), arguments.chunks, arguments.subset)
        result |= {"cpus": os.cpu_count(), "load": os.getloadavg()[2]}
        result["versions"] = {
            name: version(name) for name in ("jax", "orbax-checkpoint", "tensorstore", "numpy", "blake3")
        }
    if "int8" in arguments.part:
        result["int8"] = [fidelity(EMBEDDED + attention, arguments.episodes) for attention in ATTENTIONS]
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if "scale" in arguments.part:
        library_scale.write(arguments.scale, arguments.counts, arguments.folder)
    if "page" in arguments.part:
        soak = json.loads(arguments.soak.read_text(encoding="utf-8"))
        scale = json.loads(arguments.scale.read_text(encoding="utf-8"))
        arguments.page.write_text(page(result, soak, scale), encoding="utf-8")


if __name__ == "__main__":
    main()
