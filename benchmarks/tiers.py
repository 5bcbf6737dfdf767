"""What tiers keep, beside other policies and what no policy can do better than, and what fetching ahead hides.

Traces of 10,000 look-backs go over a library of 20 times the device's budget: by Zipf's law, and of agents that return,
ask in bursts and slide. They are simulated with the very objects that `kamera_jax.Tiers` decides by; a shorter trace is
run with chunks of kamera-tiny-gqa, of which each that is served is compared with the library's.

python -m benchmarks.tiers
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks import traces
from benchmarks.library import chunks as library_chunks
from benchmarks.tiers_page import page
from benchmarks.tiers_policies import Belady, Frequent, Recent, TinyLfu, bound, packed
from benchmarks.traces import Library, Trace
from eval.tiny.pages import render
from kamera_jax.tiers.forms import device_bytes
from kamera_jax.tiers.shelf import Shelf
from kamera_jax.tiers.value import Held, Value
from models import load

CHUNKS = 2000
LOOKS = 10_000
SEEDS = (0, 1, 2)

TIMES = 20
"""The library is so many times the device's budget, in bytes."""

HOST_TIMES = 4
"""Host memory is so many times the device's budget."""

TOKEN_BYTES = 57_344
"""KV of 28 layers of 4 heads of 128 dims in bf16."""

TOKEN_SECONDS = 1e-4
COPIED = 10e9
READ = 0.7e9
"""What look-backs are priced at: seconds of a token's forward, bytes a second to the device and from the library."""

REAL_CHUNKS = 120
REAL_LOOKS = 400

STREAM = 40
AHEAD = 4
"""Look-backs of the stream, and how many are fetched ahead."""


class Lru(Value):
    """Tiers that keep what was used last."""

    def worth(self, held: Held) -> float:
        return float(self._last.get(held.of, (0, 0))[0])

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        return True


def look(trace: Trace, library: Library, policy: Any, told: bool) -> dict[str, float]:
    """Hits, compute that is saved, bytes to the device and seconds a look-back of one policy on one trace."""
    total = int(library.nbytes.sum())
    device = Shelf(total // TIMES)
    host = Shelf(HOST_TIMES * total // TIMES)
    names = [str(number) for number in range(len(library.nbytes))]
    held = [
        Held(name, name, int(size), float(cost))
        for name, size, cost in zip(names, library.nbytes, library.seconds, strict=True)
    ]
    found = dict.fromkeys(("device", "host", "saved", "moved", "seconds"), 0.0)
    for step, number in enumerate(trace.keys):
        each = held[number]
        policy.use(each.key)
        if told:
            policy.hint({names[key]: steps for key, steps in trace.told[step].items()})
        if each.key in device:
            found["device"] += 1
            found["saved"] += each.cost
            continue
        found["moved"] += each.nbytes
        found["seconds"] += each.nbytes / COPIED
        if each.key in host:
            found["host"] += 1
        else:
            found["seconds"] += each.nbytes / READ
        left = device.offer(each, policy)
        if left is not None:
            host.drop(each.key)
        for lower in [each] if left is None else left:
            host.offer(lower, policy)
    spent = float(library.seconds[trace.keys].sum())
    looks = len(trace.keys)
    return {
        "device": found["device"] / looks,
        "host": found["host"] / looks,
        "saved": found["saved"] / spent,
        "moved_bytes": found["moved"] / looks,
        "ms": found["seconds"] / looks * 1e3,
        "encode_ms": spent / looks * 1e3,
    }


def simulated(kind: Callable[[int, int, int], Trace], seed: int) -> dict[str, Any]:
    """All policies on one trace."""
    library = traces.library(CHUNKS, seed, TOKEN_BYTES, TOKEN_SECONDS)
    trace = kind(CHUNKS, LOOKS, seed)
    names = [str(number) for number in trace.keys]
    policies: dict[str, tuple[Any, bool]] = {
        "LRU": (Recent(), False),
        "LFU": (Frequent(), False),
        "TinyLFU": (TinyLfu(CHUNKS), False),
        "by value": (Value(), False),
        "by value, hinted": (Value(), True),
        "Belady by cost": (Belady(names), False),
    }
    if not any(trace.told):
        del policies["by value, hinted"]
    found = {name: look(trace, library, *policy) for name, policy in policies.items()}
    own = (trace.keys, library.nbytes, library.seconds, int(library.nbytes.sum()) // TIMES)
    spent = float(library.seconds[trace.keys].sum())
    offline = max(packed(*own) / spent, found["Belady by cost"]["saved"])
    return {"policies": found, "offline": offline, "bound": bound(*own) / spent, "informed": _informed(trace, *own[1:])}


def _informed(trace: Trace, nbytes: np.ndarray, cost: np.ndarray, limit: int) -> float:
    """What is saved by who knows how often each chunk is used in the trace, and not when; it keeps the same chunks."""
    uses = np.bincount(trace.keys, minlength=len(nbytes))
    order = np.argsort(-uses * cost / nbytes)
    kept = order[np.cumsum(nbytes[order]) <= limit]
    return float((np.maximum(uses - 1, 0) * cost)[kept].sum() / (uses * cost).sum())


def real(folder: Path) -> dict[str, Any]:
    """A trace with chunks of an embedded model: each that is served against the library's."""
    vlm = load("kamera-tiny-gqa")
    rng = np.random.default_rng(0)
    words = "red blue star moon cell page what is the colour of".split()
    items: list[Any] = []
    for number in range(REAL_CHUNKS):
        text = " ".join(rng.choice(words, int(np.exp(rng.uniform(np.log(16), np.log(200))))))
        items.append(render(rng.integers(0, 8, (4, 6))) if number % 3 == 2 else f"{number} {text}")
    chunks = [kj.encode(vlm, item) for item in items]
    seconds = {}
    for item, chunk in zip(items, chunks, strict=True):
        began = time.perf_counter()
        jax.block_until_ready(kj.encode(vlm, item).kv)
        seconds[chunk.key] = time.perf_counter() - began
    total = sum(device_bytes(chunk) for chunk in chunks)
    trace = traces.agents(REAL_CHUNKS, REAL_LOOKS, 0)
    keys = [chunk.key for chunk in chunks]
    with kj.ChunkLibrary.open(folder, mode="a") as library:
        library.put_many(chunks)
        wanted = {key: library.get(key).kv for key in keys}
        encoding = sum(seconds[keys[number]] for number in trace.keys) / REAL_LOOKS * 1e3
        found: dict[str, Any] = {"chunks": REAL_CHUNKS, "looks": REAL_LOOKS, "encode_ms": encoding, "stores": {}}
        policies = {"LRU": Lru(), "by value": Value(), "by value, hinted": Value()}
        for name, policy in policies.items():
            told = name.endswith("hinted")
            store = kj.Tiers(
                device_bytes=total // TIMES,
                host_bytes=HOST_TIMES * total // TIMES,
                library=library,
                cost=lambda chunk: seconds[chunk.key],
                policy=policy,
            )
            spent = 0.0
            wrong = 0
            for step, number in enumerate(trace.keys):
                if told:
                    store.hint({keys[key]: steps for key, steps in trace.told[step].items()}, prefetch=False)
                began = time.perf_counter()
                chunk = store.find(keys[number])
                spent += time.perf_counter() - began
                kv = wanted[keys[number]]
                assert chunk is not None
                pairs = ((chunk.kv.rot, kv.rot), (chunk.kv.free, kv.free))
                wrong += not all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
            stats = store.stats
            found["stores"][name] = {
                "ms": spent / REAL_LOOKS * 1e3,
                "device": stats.device / REAL_LOOKS,
                "host": stats.host / REAL_LOOKS,
                "library": stats.library / REAL_LOOKS,
                "read_bytes": stats.read_bytes / REAL_LOOKS,
                "wrong": wrong,
            }
            store.close()
    return found


def stream(folder: Path, repeats: int) -> dict[str, Any]:
    """A steady stream of look-backs, each followed by work on the device, with and without fetching ahead."""
    made = list(library_chunks(STREAM))
    with kj.ChunkLibrary.open(folder, mode="a") as library:
        keys = library.put_many(made)
        began = time.perf_counter()
        for key in keys:
            library.get(key)
        restore = (time.perf_counter() - began) / STREAM
        square = jnp.ones((256, 256), jnp.float32)
        work = jax.jit(lambda x, times: jax.lax.fori_loop(0, times, lambda _, y: jnp.tanh(y @ x), x))
        jax.block_until_ready(work(square, 8))
        began = time.perf_counter()
        jax.block_until_ready(work(square, 100))
        times = int(100 * 2 * restore / (time.perf_counter() - began))

        def run(ahead: int) -> tuple[float, float]:
            with kj.Tiers(device_bytes=2**30, host_bytes=0, library=library) as store:
                stalled = 0.0
                began = time.perf_counter()
                for place, key in enumerate(keys):
                    if ahead:
                        store.prefetch(keys[place : place + ahead + 1])
                    asked = time.perf_counter()
                    assert store.find(key) is not None
                    stalled += time.perf_counter() - asked
                    jax.block_until_ready(work(square, times))
                return stalled / STREAM * 1e3, (time.perf_counter() - began) / STREAM * 1e3

        runs = [(run(0), run(AHEAD)) for _ in range(repeats)]
        plain, fetched = (np.median([pair[place] for pair in runs], axis=0).tolist() for place in (0, 1))
    return {
        "chunks": STREAM,
        "ahead": AHEAD,
        "chunk_bytes": device_bytes(made[0]),
        "stalled_ms": {"plain": plain[0], "ahead": fetched[0]},
        "step_ms": {"plain": plain[1], "ahead": fetched[1]},
        "hidden": 1 - fetched[0] / plain[0],
    }


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("docs/results/tiers.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/tiers.md"))
    parser.add_argument("--only", choices=("simulated", "real", "stream"), help="the rest is kept as it was measured")
    options = parser.parse_args()
    result = json.loads(options.json.read_text()) if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only in (None, "simulated"):
            result["simulated"] = {
                kind.__name__: [simulated(kind, seed) for seed in SEEDS] for kind in (traces.zipf, traces.agents)
            }
            result |= {"chunks": CHUNKS, "looks": LOOKS, "times": TIMES, "host_times": HOST_TIMES}
            result["priced"] = {
                "token_seconds": TOKEN_SECONDS,
                "token_bytes": TOKEN_BYTES,
                "copied": COPIED,
                "read": READ,
            }
        if options.only in (None, "real"):
            result["real"] = real(Path(folder) / "real")
        if options.only in (None, "stream"):
            result["stream"] = stream(Path(folder) / "stream", 5)
    result["load"] = os.getloadavg()[0]
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
