"""docs/tiers.md: how tiers are used, and what was measured of them."""

from statistics import fmean
from typing import Any

PAGE = """# Tiers above the library

Attention reads what lies on the device; a library lies on a disk. `kj.Tiers` keeps what is worth it in between:
chunks on the device, chunks and patches in host memory, a budget of bytes each, and a library below.

```python
with kj.ChunkLibrary.open("library", mode="a") as library:
    with kj.Tiers(device_bytes=2**30, host_bytes=8 * 2**30, library=library, vlm=vlm) as store:
        session = kj.Session(vlm, capacity=4096, store=store)
        session.hint({{key: 3, other: 7}})  # look-backs until they are used: fetched now, kept until then
        session.prefetch([key])  # comes to the device while the session goes on
        session.recall(key)
        print(store.stats)
```

What is kept is what is worth most for its bytes: what it costs to make again, times the uses that are expected of it
for each look-back. Costs are FLOPs where the model is given, or what `cost=` says (measured seconds, say). Uses are
learned of how often and how lately chunks were used (an ageing count-min sketch, and rates of return by age), or told
by a workflow (`hint`). What comes displaces what is worth less, and nothing else; `pin` keeps a chunk in any case.
What leaves the device goes to host memory (packed, with `host_codec="kivi:4"`; `Chunk.codec` then says so), from
there to the library, in packs, and with `library_bytes=` what these tiers stored there is deleted by the same rule.
With `vlm=`, what a canonical chunk was made from stays in host memory for longer than its KV, which is run again from
it where nothing else has it, or where that was quicker than the disk. What is read of the library is verified as
ever. A prefetch has one thread; what it cannot bring is said when the key is asked for. `kamera library stats DIR`
has what tiers served from a library, once they are closed.

What stands in a session's window is found there, and is no look-back. Bytes are those of arrays, padding included;
windows come beside. Fetched chunks come to the device that is JAX's default, and one on a mesh is moved when it is
put into a window. A patch comes to host memory when its chunk is first asked for; of a chunk up to eight are kept.

## Policies side by side

`make bench-tiers` measures all of this again. Traces of {looks:,} look-backs over {chunks:,} chunks of 32 to 1,024
tokens (texts, images, video segments, whose towers make them dearer for their bytes), {times} times as many bytes as
the device's budget; {seeds} traces of each kind, the mean. Saved is compute of look-backs that the device serves, of
what encoding all of them takes. The time of a look-back has host memory of {host_times} times the device's budget and
the library beneath, {rates}; it is what reading takes, which is not what these policies save: where a library has
everything, `cost=` may say bytes instead.

{tables}

Offline is the best that was found by who knows the whole trace (Belady by cost, and PFOO-L by cost), the bound what
nobody can save more than (PFOO-U). The informed know how often each chunk is used in the trace and not when, and keep
the same ones throughout: of a Zipf trace, where each look-back is drawn alone, nothing more can be known beforehand,
so what is between them and offline is knowledge of the future.

| asked | wanted | zipf | agents |
|---|---|---|---|
{asked}

## With a model

`kamera-tiny-gqa`, {real_chunks} chunks (two thirds texts, a third images), {real_looks} look-backs of agents,
measured in one run on a shared CPU (load average {load:.1f}). Encoding each again takes {encode_ms:.1f} ms a
look-back.

| tiers | ms a look-back | device | host | library | KiB read, a look-back | KV that differs from the library's |
|---|---|---|---|---|---|---|
{real}

## Fetching ahead

A steady stream of {stream_chunks} look-backs of {megabytes:.1f} MB, each followed by work of twice a restore's time;
{ahead} are fetched ahead. A look-back stalls for {plain:.1f} ms, and for {fetched:.2f} ms with fetching ahead, which
hides {hidden:.0%} of it; a whole step takes {plain_step:.1f} and {fetched_step:.1f} ms, on cores that are shared with
the work.
"""


def _table(name: str, runs: list[dict[str, Any]]) -> str:
    lines = [
        f"**{name}**",
        "",
        "| policy | device hits | saved | × LRU | of offline | KiB copied | ms a look-back |",
        "|---|---|---|---|---|---|---|",
    ]
    lru = fmean(run["policies"]["LRU"]["saved"] for run in runs)
    offline = fmean(run["offline"] for run in runs)
    for policy in runs[0]["policies"]:
        mean = {key: fmean(run["policies"][policy][key] for run in runs) for key in runs[0]["policies"][policy]}
        lines.append(
            f"| {policy} | {mean['device']:.1%} | {mean['saved']:.1%} | {mean['saved'] / lru:.2f} | "
            f"{mean['saved'] / offline:.1%} | {mean['moved_bytes'] / 1024:,.0f} | {mean['ms']:.1f} |"
        )
    encode = fmean(run["policies"]["LRU"]["encode_ms"] for run in runs)
    lines.append(f"| encoding again | – | 0 | 0 | 0 | 0 | {encode:.1f} |")
    lines.append(f"| informed of counts | | {fmean(run['informed'] for run in runs):.1%} | | | | |")
    lines.append(f"| offline | | {offline:.1%} | {offline / lru:.2f} | | | |")
    lines.append(f"| bound | | {fmean(run['bound'] for run in runs):.1%} | | | | |")
    return "\n".join(lines)


def _asked(simulated: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    told = {"zipf": "by value", "agents": "by value, hinted"}

    def saved(kind: str, name: str) -> float:
        return fmean(run["policies"][name]["saved"] for run in simulated[kind])

    ratios = [f"{saved(kind, 'by value') / saved(kind, 'LRU'):.2f}" for kind in told]
    rows.append(f"| saved by value, × LRU's | 1.15 | {' | '.join(ratios)} |")
    hinted = saved("agents", told["agents"]) / saved("agents", "LRU")
    rows.append(f"| the same with hints | 1.15 | – | {hinted:.2f} |")
    of = [f"{saved(kind, name) / fmean(run['offline'] for run in simulated[kind]):.1%}" for kind, name in told.items()]
    rows.append(f"| of the offline optimum, with hints where there are any | 90% | {' | '.join(of)} |")
    zipf = saved("zipf", "by value") / fmean(run["informed"] for run in simulated["zipf"])
    rows.append(f"| of what the informed save | – | {zipf:.1%} | – |")
    return "\n".join(rows)


def page(result: dict[str, Any]) -> str:
    """The page."""
    priced = result["priced"]
    simulated = result["simulated"]
    real = result["real"]
    stream = result["stream"]
    titles = {"zipf": "Zipf's law, without hints", "agents": "Agents, whose plans are told as hints"}
    stores = [
        f"| {name} | {row['ms']:.1f} | {row['device']:.0%} | {row['host']:.0%} | {row['library']:.0%} | "
        f"{row['read_bytes'] / 1024:,.0f} | {row['wrong']} |"
        for name, row in real["stores"].items()
    ]
    return PAGE.format(
        looks=result["looks"],
        chunks=result["chunks"],
        times=result["times"],
        host_times=result["host_times"],
        seeds=len(simulated["zipf"]),
        rates=f"at {priced['copied'] / 1e9:g} and {priced['read'] / 1e9:g} GB/s, and a token's forward at "
        f"{priced['token_seconds'] * 1e3:g} ms",
        tables="\n\n".join(_table(titles[kind], runs) for kind, runs in simulated.items()),
        asked=_asked(simulated),
        real_chunks=real["chunks"],
        real_looks=real["looks"],
        load=result["load"],
        encode_ms=real["encode_ms"],
        real="\n".join(stores),
        stream_chunks=stream["chunks"],
        megabytes=stream["chunk_bytes"] / 1e6,
        ahead=stream["ahead"],
        plain=stream["stalled_ms"]["plain"],
        fetched=stream["stalled_ms"]["ahead"],
        hidden=stream["hidden"],
        plain_step=stream["step_ms"]["plain"],
        fetched_step=stream["step_ms"]["ahead"],
    )
