"""`kamera library stats`: what a chunk library holds, and what sessions were served from it."""

from argparse import Namespace
from collections import defaultdict
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import kamera_jax as kj
from eval.report.console import counted, kibibytes, show
from kamera_jax.library.facts import Item
from kamera_jax.tiers.stats import TierStats
from kamera_jax.tiers.usage import recorded


def run(options: Namespace) -> dict[str, Any]:
    """Count; returns what ``--json`` writes."""
    library = kj.ChunkLibrary.open(options.library)
    stats = library.stats()
    stored: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    times: list[str] = []
    for item in library.items():
        row = stored[(item.kind, item.fields.get("storage", "packed ranks"))]
        row[0] += 1
        row[1] += item.bytes
        times += _when(library.root, item)
    served = recorded(library.root) if isinstance(library.root, Path) else None
    rows = [
        [f"{kind}, {storage}", str(count), kibibytes(size)] for (kind, storage), (count, size) in sorted(stored.items())
    ]
    rows.append(["deleted, room not free yet", str(stats.deleted), kibibytes(stats.deleted_bytes)])
    console = Console(emoji=False, highlight=False, markup=False)
    title = f"{counted(stats.chunks, 'chunk')} and {counted(stats.patches, 'patch', 'patches')} in {stats.packs} packs"
    show(console, f"{title}, {kibibytes(stats.bytes)}", ("what", "how many", "bytes"), rows)
    if times:
        print(f"the oldest of {min(times)}, the newest of {max(times)}")
    if served is not None:
        _print_served(console, served)
    return {
        "library": str(options.library),
        "stats": asdict(stats),
        "stored": [
            {"kind": kind, "storage": storage, "count": count, "bytes": size}
            for (kind, storage), (count, size) in sorted(stored.items())
        ],
        "oldest": min(times, default=None),
        "newest": max(times, default=None),
        "served": None if served is None else asdict(served),
    }


def _print_served(console: Console, served: TierStats) -> None:
    shown = {
        "from the device": served.device,
        "from host memory": served.host,
        "from the library": served.library,
        "run again from embeddings": served.rebuilt,
        "missed": served.missed,
    }
    rows = [[name, str(count), f"{count / max(served.looks, 1):.0%}"] for name, count in shown.items()]
    title = f"{counted(served.looks, 'look-back')} of sessions over tiers"
    show(console, title, ("served", "how many", "of all"), rows)
    print(f"{served.fetched} were fetched ahead; {served.avoided} tokens were not run")


def _when(root: Path | str, item: Item) -> list[str]:
    """When a chunk was encoded, where that is known; else when its pack was written, of which a store knows nothing."""
    if item.origin is not None and item.origin.encoded is not None:
        return [item.origin.encoded]
    if isinstance(root, str):
        return []
    manifest = root / {"chunks": "packs", "patches": "patches"}[item.kind] / item.pack / "manifest.json"
    return [datetime.fromtimestamp(manifest.lstat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")]
