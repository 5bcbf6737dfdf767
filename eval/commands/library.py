"""`kamera library`: a chunk library from the command line."""

import gc
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console

import kamera_jax as kj
from eval.report.console import kibibytes, show

KEY = 12
"""How many letters of a key are shown."""


def run(options: Namespace) -> dict[str, Any]:
    """Run one of the subcommands; returns what ``--json`` writes."""
    commands: dict[str, Callable[[Namespace], dict[str, Any]]] = {
        "ls": _ls,
        "info": _info,
        "verify": _verify,
        "gc": _gc,
    }
    gc.freeze()  # garbage is looked for among what is read, not among all that was imported: a third of the time of ls
    try:
        return commands[options.action](options)
    finally:
        gc.unfreeze()


def whole_key(lib: kj.ChunkLibrary, start: str) -> str:
    """The key of the one chunk or patch whose key begins with these letters.

    Raises:
        ValueError: there is none, or several.
    """
    matching = sorted(key for key in (*lib.keys(), *lib.keys("patches")) if key.startswith(start))
    if not matching:
        raise ValueError(f"{lib.root} has no key that begins with {start!r}, and there is no such file")
    if len(matching) > 1:
        raise ValueError(f"{len(matching)} keys in {lib.root} begin with {start!r}; give more of it")
    return matching[0]


def _ls(options: Namespace) -> dict[str, Any]:
    lib = kj.ChunkLibrary.open(options.library)
    rows = [
        {
            "key": item.key,
            "kind": item.kind,
            "tokens": item.fields["length"],
            "bytes": item.bytes,
            "storage": item.fields.get("storage", "packed ranks"),
            "model": item.fields["model"],
            "of": item.fields.get("chunk"),
        }
        for item in lib.items()
    ]
    stats = lib.stats()
    if unread := stats.chunks + stats.patches - len(rows):
        print(f"{unread} more cannot be read: see kamera library verify {options.library}", file=sys.stderr)
    show(
        _console(),
        f"{stats.chunks} chunks and {stats.patches} patches in {stats.packs} packs, {kibibytes(stats.bytes)}",
        ("key", "kind", "tokens", "size", "stored", "model"),
        [
            [
                row["key"][:KEY],
                "chunk" if row["of"] is None else f"patch of {row['of'][:KEY]}",
                str(row["tokens"]),
                kibibytes(row["bytes"]),
                row["storage"],
                row["model"][:KEY],
            ]
            for row in rows
        ],
    )
    return {"library": str(options.library), "stats": asdict(stats), "items": rows}


def _info(options: Namespace) -> dict[str, Any]:
    lib = kj.ChunkLibrary.open(options.library)
    item = lib.info(whole_key(lib, options.key))
    spec = item.spec or {}
    shown = {
        **{name: value for name, value in item.fields.items() if value not in (None, [], "")},
        **{name: spec[name] for name in ("layers", "rot_dim", "free_dim", "heads") if name in spec},
        "size": kibibytes(item.bytes),
        "pack": item.pack,
        "patches": len(item.patches),
    }
    show(_console(), item.key, ("", ""), [[name, _short(value)] for name, value in shown.items()], right=False)
    return asdict(item)


def _short(value: Any) -> str:
    text = ", ".join(str(each)[:KEY] for each in value) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _verify(options: Namespace) -> dict[str, Any]:
    report = kj.ChunkLibrary.open(options.library).verify()
    problems = [
        *report.damaged.values(),
        *(f"{key[:KEY]}: its pack {pack} is gone" for key, pack in report.lost.items()),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{report.rows} rows in {report.packs} packs: " + ("as they were written" if report.ok else "NOT all there"))
    if not report.ok:
        raise ValueError(f"{options.library} is damaged in {len(problems)} places; what is named above is lost")
    return {"library": str(options.library), "ok": report.ok, **asdict(report)}


def _gc(options: Namespace) -> dict[str, Any]:
    kj.ChunkLibrary.open(options.library)  # which makes none
    done = kj.ChunkLibrary.open(options.library, mode="a").gc()
    print(f"{done.dropped} packs dropped, {done.moved} rows moved, {kibibytes(done.freed)} freed")
    if done.left:
        print(
            f"{len(done.left)} packs left as they are for lack of room: collect again once there is more",
            file=sys.stderr,
        )
    if done.kept:
        print(
            f"{len(done.kept)} packs kept: what is alive in them is not as it was written, see verify", file=sys.stderr
        )
    return {"library": str(options.library), **asdict(done)}


def _console() -> Console:
    return Console(emoji=False, highlight=False)
