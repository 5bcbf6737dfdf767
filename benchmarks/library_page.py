"""The page of the chunk library's costs: what `benchmarks.library` measured, and what the soak found, in words."""

from typing import Any

LAYERS = 28
TOKENS = 64
"""Of a chunk that is measured."""

REPEATS = 3
"""Times that whole packs are read; the median is shown."""

ROUNDING = 1e-6
"""Nats that the rounding of f32 logits alone amounts to."""

RESTORES = {
    "never": '`verify="never"`',
    "always": '`verify="always"`',
    "orbax": 'through Orbax with a sharding, `verify="never"`',
}


PAGE = """# The chunk library

`make bench-library` measures this again: {chunks} chunks of {megabytes:.2f} MB (bf16 KV of {layers} layers and {tokens}
tokens, and the inputs), {cpus} CPU cores that are shared with other work (load average {load:.1f}), jax
{jax}, orbax-checkpoint {orbax}. The least time of all runs comes closest to the time on an idle machine.

| a chunk | ms, median | least |
|---|---|---|
| `put_many` of all, fsynced and hashed (two rounds) | {put:.2f} | {put_least:.2f} |
| `put` alone, fsynced and hashed | {alone:.1f} | {alone_least:.1f} |
| the same bytes written to one file and fsynced | {raw:.2f} | |
| `get`, verified, in the system's cache | {get:.2f} | {get_least:.2f} |
| `get`, `verify="never"`, in the system's cache | {never:.2f} | {never_least:.2f} |
| `get`, verified, from the disk | {cold:.2f} | {cold_least:.2f} |
| of a verified `get`, BLAKE3 on one thread | | {blake:.2f} |
| what sha256 would take there | | {sha:.2f} |
| its row through tensorstore, not verified | {tensorstore:.2f} | {tensorstore_least:.2f} |
| one Orbax checkpoint per chunk ({subset} of them): save | {each_put:.1f} | {each_put_least:.1f} |
| and load | {each_get:.1f} | {each_get_least:.1f} |

| whole packs | MB/s | of a raw read |
|---|---|---|
{restores}

{repeats} runs of each in turn, the median. From the disk: the files are
evicted from the system's cache before each run.

| target | bound | median | from the least times |
|---|---|---|---|
{asked}

## Safety

`make library-soak`: writers killed at random moments of put, delete and collect ({kills} kills: {during}), after
each of which every committed chunk and patch was read back and compared to the bit; {flips} single flipped bits over
data, Orbax's metadata, manifests, the index and `LIBRARY.json`, read back by every way; and {processes} processes of
{threads} threads on the same and on different keys for {seconds:.0f} s ({operations} operations). No wrong byte, no
lost chunk, no error, no hang.

| a flipped bit in | detected | harmless |
|---|---|---|
{flipped}

The manifests have everything that is in the index: a broken index is rebuilt from them.

Every array that is put is held against a BLAKE3 digest, KV layer by layer; large ones are hashed on threads of their
own while the next is read, and whole packs piece by piece, while the cache holds the piece. A digest says its
algorithm. Packs of format 2, whose digests are of sha256, are read as they are, and keep them where `gc`, `export` or
`import_from` copies their rows; a digest by any other algorithm is refused by its name. Opening such a library for
writing makes it one of format 3, which earlier versions refuse. Digests find what a disk does to bytes: they are no
signatures. Keys are sha256 of inputs, as they were.

## Where chunks came from

`put(chunk, origin=kj.Origin("report.pdf", page=12))` and `put_many(chunks, origins=[...])` keep beside a chunk the
file it was made from, the page or the time in it, when it was encoded, and a note of a few words; `kamera encode`
does so for every item, and notes of a page that was read with its text that it was.
`info(key)`, `items()`, `kamera library ls` and `info` give it back, and `kamera library ls library/ report` lists
the chunks of files with that in their names; numbers in names count by their value, so that page 2 comes before
page 10. It is no part of the key. Where equal content comes from two places, the first is kept until the chunk is
deleted, as the first to put a key always wins: a chunk that was stored without an origin has none. Libraries that
were written before origins were stored, or with them by a version that knows none, are read as any other.

## Keys

A whole key is looked up without a search. `get`, `get_patch`, `get_many`, `get_kv`, `patches`, `has`, `info`,
`delete`, `export` and `import_from` take the beginning of a key too, of at least 4 digits; `resolve` gives the
whole key. A beginning that several keys share is an `AmbiguousKeyError` that says how many (`get` looks among
chunks alone, `get_patch` among patches), one that none has a `ChunkNotFoundError`. `find`, by which sessions look,
takes whole keys.

## To another library, or into one file

`export(to, keys)` and `import_from(other, keys)` copy chunks, their patches and their origins as they are stored,
bit for bit, to a library's folder or into one `.tar` file that can be sent; so do `kamera library export library/
KEY… --to OTHER` and `kamera library import library/ OTHER`. What is not there yet comes there whole or not at all
(a process that is killed leaves a folder of its name and 32 digits beside it, which may be removed); a library that
is there keeps what it has and takes the rest pack by pack, so that a copy that was interrupted goes on when it is
asked for again. What is read is compared with its digests and checked as what is put is. What is not as it was
written is named, and costs no other row. The file is an archive of a library's folder, without names of users, and
is not compressed. Whoever made it: links, devices, sparse files and names that lead elsewhere are refused with the
whole file, which is unpacked in the system's temporary folder (`TMPDIR`). An origin names a file by the path that
it was encoded from, and goes along.

## Deleting and collecting

`delete` marks rows in two places, by a file and by a line of `deleted.log`. Either alone keeps a row deleted, and `gc`
removes both once the pack is gone. On a full disk marks are written over lines that are there; `gc` drops first what is
wholly deleted, for which it writes nothing, and leaves packs that there is no room to rewrite (`Collected.left`). It
holds the lock for one pack at a time, so other processes go on putting and deleting. Readers see every change, also
where folder times are whole seconds.

## What comes from elsewhere

A library may come from anybody. Its own folders and files are opened without following links, and pipes and devices
do not block: something else in the place of one is a `LibraryCorruptError`, or costs the pack that it is in. The
library's folder itself may be reached through a link. Sizes and shapes are compared with the files before there is
room made for them, and a patch takes at most 256 times what is stored of it, or 256 MiB. What cannot be read costs
itself alone: `verify` reports it, and `gc` leaves it.

`put` stores an item so that it comes back equal, or raises an `UnstorableError` that says why, before anything is
written: a key that is not 64 hexadecimal digits, an input whose name has other characters than letters, digits,
underscores and dots, an array of more than 8 axes or of 64 bits while JAX has 32, a field of another type than it
has. Numbers of numpy and big-endian arrays are turned into what comes back equal. The other items of a `put_many` are
stored.

One process writes at a time. Who waits for another process longer than a second logs a warning that names it. A
process that was forked after JAX was started, or that has its parent's library, is refused (`ForkedProcessError`):
start it with `spawn`. Systems without `fcntl` lock with `msvcrt`; where there is neither, libraries are only read.

`python -m tests.hardening.measure FILE` counts the faults that are tried of each kind.

## Many chunks

`make bench-library ARGS="--part scale page"`: libraries of {sizes} small chunks and a patch of every tenth, in packs of
at most 512 rows ({scale_bytes} on the disk); each operation in a process of its own, seconds of CPU, and in brackets by
the clock of a machine shared with other work (load average {scale_load:.1f}).

| | {size_titles} | growth |
|---|{size_rules}---|
{scaled}
| most memory of the process, MB | {peaks} | |

Growth is the CPU time at the largest size, over that at the one before it; the size grows {size_growth:.0f} times. What
takes as long whatever the size is (a `put` writes and syncs a pack) grows by about 1. `ls` reads every manifest, and so
does opening the library without its index. Of the memory, {base_mb:.0f} MB are what the imports take.

## Eight bits, and fewer

[Chunks in fewer bytes](compression.md) has all that `storage=` takes. This is of eight:

`storage="int8"` stores a scale for every channel of the keys and for every token of the values. Compared with exact
storage, on {episodes} held-out episodes of three pages (KL to the same window with exact KV, in nats):

| model | bytes, of f32 | KL: one hop | two hops | blind, one hop: int8 (exact) | patch:12, two hops |
|---|---|---|---|---|---|
{stored}

The patches were fitted to exact KV, and are stored unchanged. The embedded models' KV is f32; compared with bf16,
eight bits take a little more than half of the bytes.
"""


SCALED = {
    "open": "open",
    "open without an index": "open, the index file lost",
    "ls": "`kamera library ls`",
    "info": "`info` of one chunk",
    "stats": "`stats`",
    "get": "`get`, at random, each",
    "put": "`put`, each",
    "delete": "`delete`, each",
    "gc": "`gc`, three tenths deleted",
}


def _scale(scale: dict[str, Any]) -> dict[str, Any]:
    """What the section on many chunks says."""
    counts = scale["counts"]
    lines = []
    for name, words in SCALED.items():
        runs = scale["operations"][name]
        cells = " | ".join(f"{run['cpu_seconds']:.2g} ({run['seconds']:.2g})" for run in runs)
        lines.append(f"| {words} | {cells} | {runs[-1]['cpu_seconds'] / runs[-2]['cpu_seconds']:.1f} |")
    peaks = [max(runs[i]["peak_mb"] for runs in scale["operations"].values()) for i in range(len(counts))]
    return {
        "sizes": ", ".join(f"{count:,}" for count in counts[:-1]) + f" and {counts[-1]:,}",
        "scale_bytes": ", ".join(f"{size / 1e6:,.0f} MB" for size in scale["bytes"]),
        "scale_load": scale["load"],
        "size_titles": " | ".join(f"{count:,} chunks" for count in counts),
        "size_rules": "---|" * len(counts),
        "scaled": "\n".join(lines),
        "peaks": " | ".join(f"{peak:.0f}" for peak in peaks),
        "size_growth": counts[-1] / counts[-2],
        "base_mb": min(run["peak_mb"] for runs in scale["operations"].values() for run in runs),
    }


def page(result: dict[str, Any], soak: dict[str, Any], scale: dict[str, Any]) -> str:
    each = result["one_checkpoint_each"]
    get = result["get_ms"]
    lines = []
    for heat, found in result["restore"].items():
        where = {"warm": "in the system's cache", "cold": "from the disk"}[heat]
        lines.append(f"| raw read, {where} | {found['mb_per_s']['raw']:.0f} | |")
        for how, words in RESTORES.items():
            rate = found["mb_per_s"][how]
            share = found["share_of_raw"][how]
            lines.append(f"| `restore`, {words}, {where} | {rate:.0f} | {share:.0%} |")
    names = {
        "put_ms": "`put_many`, ms a chunk, at most",
        "warm_verified_get_ms": "verified `get`, warm, ms, at most",
        "verified_restore_share_of_raw": "`restore`, verified, of a raw read, warm, at least",
        "cold_verified_restore_share_of_raw": "the same, from the disk, at least",
        "times_one_checkpoint_each": "times as fast as a checkpoint per chunk, at least",
    }
    stored = [
        f"| `{row['model']}` | {row['bytes_share']:.0%} | {_nats(row['one_hop_kl'])} | {_nats(row['two_hop_kl'])} | "
        + " | ".join(f"{row[f'{kind}_int8']:.3f} ({row[f'{kind}_exact']:.3f})" for kind in ("one_hop", "two_hop"))
        + " |"
        for row in result["int8"]
    ]
    flips = {name: found for name, found in soak["flips"].items() if name != "flips"}
    return PAGE.format(
        **_scale(scale),
        chunks=result["chunks"],
        megabytes=result["chunk_bytes"] / 1e6,
        layers=LAYERS,
        tokens=TOKENS,
        cpus=result["cpus"],
        jax=result["versions"]["jax"],
        orbax=result["versions"]["orbax-checkpoint"],
        load=result["load"],
        put=result["put_ms"]["median"],
        put_least=result["put_ms"]["least"],
        alone=result["put_alone_ms"]["median"],
        alone_least=result["put_alone_ms"]["least"],
        raw=result["raw_write_ms_per_chunk"],
        get=get["warm_always"]["median"],
        get_least=get["warm_always"]["least"],
        never=get["warm_never"]["median"],
        never_least=get["warm_never"]["least"],
        cold=get["cold_always"]["median"],
        cold_least=get["cold_always"]["least"],
        blake=result["blake3_ms"],
        sha=result["sha256_ms"],
        tensorstore=result["get_by_tensorstore_ms"]["median"],
        tensorstore_least=result["get_by_tensorstore_ms"]["least"],
        subset=each["chunks"],
        each_put=each["put_ms"]["median"],
        each_put_least=each["put_ms"]["least"],
        each_get=each["get_ms"]["median"],
        each_get_least=each["get_ms"]["least"],
        restores="\n".join(lines),
        repeats=REPEATS,
        asked="\n".join(
            f"| {names[name]} | {row['wanted']:g} | {row['median']:.2f} | {row['least']:.2f} |"
            for name, row in result["asked"].items()
        ),
        kills=soak["kills"]["kills"],
        during=", ".join(f"{count} {what}" for what, count in soak["kills"]["during"].items()),
        flips=soak["flips"]["flips"],
        flipped="\n".join(
            f"| {name} | {found.get('detected', 0)} | {found.get('harmless', 0)} |" for name, found in flips.items()
        ),
        processes=soak["crowd"]["processes"],
        threads=soak["crowd"]["threads"],
        seconds=soak["crowd"]["seconds"],
        operations=soak["crowd"]["operations"],
        episodes=result["int8"][0]["episodes"],
        stored="\n".join(stored),
    )


def _nats(mean: float) -> str:
    return f"{mean:.1e}" if mean >= ROUNDING else f"< {ROUNDING:.0e}"
