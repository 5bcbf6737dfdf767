"""`kamera library`: a chunk library from the command line."""

import gc
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

import kamera_jax as kj
from eval.commands.items import natural
from eval.commands.names import COLUMNS, PLACE, shortened
from eval.commands.outputs import UnfinishedError
from eval.report.console import counted, kibibytes, show
from kamera_jax.compress.compressed import codec_of
from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError
from kamera_jax.library.facts import Exchanged, Item
from kamera_jax.library.failures import LIBRARY
from kamera_jax.library.opening import is_there

KEY = 12
"""How many letters of a key are shown."""

LEAST_NAME = 16
"""Columns that a name has at least, however narrow the terminal."""


def run(options: Namespace) -> dict[str, Any]:
    """Run one of the subcommands; returns what ``--json`` writes."""
    commands: dict[str, Callable[[Namespace], dict[str, Any]]] = {
        "ls": _ls,
        "info": _info,
        "rm": _rm,
        "export": _export,
        "import": _import,
        "publish": _publish,
        "verify": _verify,
        "gc": _gc,
    }
    gc.freeze()  # garbage is looked for among what is read, not among all that was imported: a third of the time of ls
    try:
        return commands[options.action](options)
    finally:
        gc.unfreeze()


def whole_key(lib: kj.ChunkLibrary, start: str) -> str:
    """The key of the one chunk or patch whose key begins with these letters; see `kamera_jax.ChunkLibrary.resolve`.

    Raises:
        ChunkNotFoundError: there is none, and no such file.
        AmbiguousKeyError: there are several.
    """
    try:
        return lib.resolve(start)
    except ChunkNotFoundError as error:
        raise ChunkNotFoundError(f"{error}; and there is no such file") from error


def matches(origin: kj.Origin | None, text: str) -> bool:
    """Whether a chunk's file and page have a text in them, whatever its letters' case; a page is none of its digits."""
    if origin is None:
        return False
    where = origin.where.casefold()
    return where.endswith(text.casefold()) if PLACE.search(text) else text.casefold() in where


def named(lib: kj.ChunkLibrary, text: str) -> list[str]:
    """The keys of chunks whose file and page have a text in them.

    Raises:
        ChunkNotFoundError: there are none.
    """
    found = [(_place(item.origin), item.key) for item in lib.items() if matches(item.origin, text)]
    if not found:
        raise ChunkNotFoundError(f"{lib.root} has no chunk of a file with {text!r} in its name; see kamera library ls")
    return [key for _, key in sorted(found)]


def _place(origin: kj.Origin | None) -> tuple[Any, ...]:
    """What chunks are listed by: the names of their files, and their pages; those of no file behind the others."""
    if origin is None:
        return (True,)
    return False, _place_of(origin.file), origin.page or 0, origin.time or 0.0


@lru_cache(maxsize=2**12)
def _place_of(file: str) -> tuple[Any, ...]:
    return tuple(map(natural, Path(file).parts))


@dataclass(frozen=True, slots=True)
class Row:
    """What is listed of a chunk or patch: little of each, for there may be very many.

    Attributes:
        key: of the chunk or patch.
        of: the key of a patch's chunk.
        behind: how many chunks a patch was formed behind.
        tokens, bytes, storage, model: of it; of a chunk whose tokens share rows, ``rows`` are fewer.
        codec: what its KV has gone through when it comes back: ``"int8"``, say.
        origin: of a chunk.
    """

    key: str
    of: str | None
    behind: int
    tokens: int
    rows: int
    bytes: int
    storage: str
    codec: str
    model: str
    origin: kj.Origin | None

    @staticmethod
    def of_item(item: Item) -> "Row":
        """The row of what a library says of a key."""
        fields = item.fields
        source = fields.get("source")
        return Row(
            key=item.key,
            of=fields.get("chunk"),
            behind=len(fields["antecedents"]),
            tokens=source["length"] if isinstance(source, dict) and "length" in source else fields["length"],
            rows=fields["length"],
            bytes=item.bytes,
            storage=sys.intern(storage := fields.get("storage", "packed ranks")),
            codec=sys.intern(codec_of(fields["codec"], storage) if "storage" in fields else fields["codec"]),
            model=sys.intern(fields["model"]),
            origin=item.origin,
        )

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "key": self.key,
            "kind": "chunks" if self.of is None else "patches",
            "tokens": self.tokens,
            "rows": self.rows,
            "bytes": self.bytes,
            "storage": self.storage,
            "codec": self.codec,
            "model": self.model,
            "of": self.of,
            "origin": None if self.origin is None else dict(vars(self.origin)),
        }


def _ls(options: Namespace) -> dict[str, Any]:
    lib = kj.ChunkLibrary.open(options.library)
    rows = [Row.of_item(item) for item in lib.items()]
    stats = lib.stats()
    if unread := stats.chunks + stats.patches - len(rows):
        print(f"{unread} more cannot be read: see kamera library verify {options.library}", file=sys.stderr)
    title = f"{stats.chunks} chunks and {stats.patches} patches in {stats.packs} packs, {kibibytes(stats.bytes)}"
    if options.name is not None:
        chosen = {row.key for row in rows if matches(row.origin, options.name)}
        rows = [row for row in rows if row.key in chosen or row.of in chosen]
        title = f"{len(chosen)} of {stats.chunks} chunks have {shortened(options.name, 30)!r} in their names"
    if any(row.origin for row in rows):
        rows = _in_order(rows)
    _print_rows(rows, title)
    return {"library": str(options.library), "stats": asdict(stats), "items": [row.plain for row in rows]}


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Chunks by their names, then patches in the order of their chunks."""
    chunks = sorted((row for row in rows if row.of is None), key=lambda row: _place(row.origin))
    order = {row.key: place for place, row in enumerate(chunks)}
    patches = [row for row in rows if row.of is not None]
    return chunks + sorted(patches, key=lambda row: order.get(row.of or "", len(order)))


def _print_rows(rows: Sequence[Row], title: str) -> None:
    console = _console()
    models = {row.model for row in rows}
    several = len(models) > 1
    columns = ["key", "kind", "tokens", "size", "stored", *(["model"] if several else []), "from"]
    sizes = [kibibytes(row.bytes) for row in rows]
    widest = max(map(len, sizes), default=0)
    texts: list[list[str]] = []
    for row, size in zip(rows, sizes, strict=True):
        kind = "chunk" if row.of is None else "patch"
        stored = row.codec if row.of is None else row.storage.removesuffix(" ranks")
        text = [row.key[:KEY], kind, _tokens(row).rjust(6), size.rjust(widest), stored]
        texts.append(text + ([row.model[:8]] if several else []))
    widths = [max(map(len, column)) for column in zip(columns[:-1], *texts, strict=True)]
    room = max(console.width - sum(widths) - 2 * len(widths), LEAST_NAME)
    for text, row in zip(texts, rows, strict=True):
        text.append(_source(row, room))
    if len(models) == 1:
        title += f"; model {next(iter(models))[:8]}"
    show(console, title, columns, texts, right=False)


def _tokens(row: Row) -> str:
    """The tokens of a chunk or patch; of how many tokens its rows are, where several share one."""
    return str(row.tokens) if row.rows == row.tokens else f"{row.rows} of {row.tokens}"


def _source(row: Row, room: int) -> str:
    """What a chunk was made from, or a patch was formed of and behind how many."""
    if row.of is not None:
        return shortened(f"of {row.of[:KEY]} behind {row.behind}", room)
    return "–" if row.origin is None else shortened(row.origin.name, room)


def _info(options: Namespace) -> dict[str, Any]:
    folder = options.library
    key = options.key
    if isinstance(folder, Path) and not is_there(folder / LIBRARY) and is_there(Path(key) / LIBRARY):
        folder = Path(options.key)  # the key came first once
        key = str(options.library)
    lib = kj.ChunkLibrary.open(folder)
    item = lib.info(key)
    spec = item.spec or {}
    shown = {
        **({} if item.origin is None else item.origin.plain | {"file": shortened(item.origin.file, 60)}),
        **{name: value for name, value in item.fields.items() if value not in (None, [], "")},
        **{name: spec[name] for name in ("layers", "rot_dim", "free_dim", "heads") if name in spec},
        "size": kibibytes(item.bytes),
        "pack": item.pack,
        "patches": _short([each[:KEY] for each in item.patches]) if item.patches else "0",
    }
    show(_console(), item.key, ("", ""), [[name, _short(value)] for name, value in shown.items()], right=False)
    return asdict(item)


def _short(value: Any) -> str:
    text = ", ".join(str(each)[:KEY] for each in value) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _chosen(lib: kj.ChunkLibrary, options: Namespace) -> list[str]:
    """The keys that are named, and those of the files that are.

    Raises:
        ValueError: none is, or one that is not there.
    """
    keys = [lib.resolve(each) for each in options.keys]
    if missing := [key for key in keys if not lib.has(key)]:
        try:
            lib.info(missing[0])
        except LibraryCorruptError:  # lost with its pack, and still to be removed
            if options.action != "rm":
                raise
    if options.name is not None:
        keys += named(lib, options.name)
    if not keys:
        everything = ", or everything with --all" if options.action == "export" else ""
        raise ValueError(f"name the keys of chunks or patches in {lib.root}, or their files with --name{everything}")
    return list(dict.fromkeys(keys))


def _rm(options: Namespace) -> dict[str, Any]:
    kj.ChunkLibrary.open(options.library)  # which makes none
    with kj.ChunkLibrary.open(options.library, mode="a") as lib:
        items = {key: _readable(lib, key) for key in _chosen(lib, options)}  # all of them before one is removed
        there = [item for item in items.values() if item is not None]
        patches = {key for item in there for key in item.patches}
        patches |= {item.key for item in there if item.kind == "patches"}
        size = sum(item.bytes for key in {*items, *patches} if (item := _readable(lib, key)) is not None)
        for key, item in items.items():
            lib.delete(key)
            count = 0 if item is None else len(item.patches)
            also = f" with {counted(count, 'patch', 'patches')}" if count else ""
            row = f"{key[:KEY]}  removed{also}  "
            print(row + ("its pack was gone" if item is None else _source(Row.of_item(item), COLUMNS - len(row))))
    removed = [*items, *sorted(patches - items.keys())]
    chunks = counted(len(items.keys() - patches), "chunk")
    of_them = counted(len(patches), "patch", "patches")
    print(f"{chunks} and {of_them} removed, {kibibytes(size)}; their room comes back with")
    print(f"  kamera library gc {options.library}")
    return {"library": str(options.library), "removed": removed, "bytes": size}


def _readable(lib: kj.ChunkLibrary, key: str) -> Item | None:
    try:
        return lib.info(key)
    except LibraryCorruptError:
        return None


def _export(options: Namespace) -> dict[str, Any]:
    lib = kj.ChunkLibrary.open(options.library)
    done = lib.export(options.to, None if options.all else _chosen(lib, options))
    return _exchanged(options, done, lib, options.to)


def _import(options: Namespace) -> dict[str, Any]:
    if isinstance(options.other, Path) and not is_there(options.other):
        raise FileNotFoundError(f"there is no folder and no file {options.other}")  # before a library is made
    made = not is_there(options.library)
    with kj.ChunkLibrary.open(options.library, mode="a") as lib:
        try:
            done = lib.import_from(options.other)
        except BaseException:
            if made and not lib.keys():  # nothing of it could be read
                shutil.rmtree(options.library)
            raise
        return _exchanged(options, done, lib, lib.root)


def _exchanged(options: Namespace, done: Exchanged, lib: kj.ChunkLibrary, to: Path | str) -> dict[str, Any]:
    for problem in done.failed.values():
        print(problem, file=sys.stderr)
    known = f", {done.known} were there already" if done.known else ""
    copied = f"{counted(done.chunks, 'chunk')} and {counted(done.patches, 'patch', 'patches')} copied"
    print(f"{copied}, {kibibytes(done.bytes)}{known}")
    result = {"library": str(options.library), "to": str(to), **asdict(done)}
    if done.failed:
        raise UnfinishedError(f"kamera: {len(done.failed)} could not be copied; they are named above", result)
    return result


def _publish(options: Namespace) -> dict[str, Any]:
    done = kj.ChunkLibrary.open(options.library).publish(options.url, prune=options.prune)
    new = f"{counted(done.uploaded, 'object')} uploaded, {kibibytes(done.bytes)}" if done.uploaded else "nothing is new"
    known = f", {done.known} were there already" if done.known else ""
    removed = f", {done.removed} removed" if done.removed else ""
    print(f"{new}{known}{removed}; read it with")
    print(f"  kamera library ls {options.url}")
    return {"library": str(options.library), **asdict(done)}


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
    return Console(emoji=False, highlight=False, markup=False)
