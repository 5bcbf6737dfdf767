"""Libraries made to mislead: links, pipes, crafted files. Nothing outside is touched, and errors are named.

Every case is done to a library of two packs of chunks and one of patches; then all is done with it that can be.
"""

import json
import os
import shutil
import stat

import jax
import numpy as np
from orbax.checkpoint import v1  # noqa: F401  (what the first put would import)

import kamera_jax as kj
from kamera_jax.library.files import sha256, write_sealed
from kamera_jax.library.marks import CHANGES, LOG
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

IN_A = (0, 1, 2)
"""Chunks of the pack that is spoilt, or of whose folder all is; the others lie in packs of their own."""

IN_B = 3

FOLDERS = ("staging", "tombstones", "packs", "patches")
FILES = ("LOCK", "LIBRARY.json", "index.json", LOG, CHANGES)
OF_A = ("", "/manifest.json", "/state", "/state/_METADATA", "/commit_success.txt", "/state/0.kv.rot")
OF_A += ("/state/0.kv.rot/0.0.0.0", "/state/0.kv.rot/.zarray", "/orbax.checkpoint", "/state/0.positions")
EXTRA = ("staging/*", "staging/notes", "tombstones/*", "tombstones/notes", "packs/*", "packs/notes", "index.json.*")
INSTEAD = (
    *("link to the same", "link to a folder", "link to a file", "dangling link", "loop", "pipe", "socket", "device"),
    *("folder", "full folder", "empty file", "sparse file", "nothing"),
)

ODD = (True, False, -1, 1.5, 2**31, 2**70, None, "x", "../../x", "/etc/passwd", [], [1], [[1]], {}, {"a": 1}, [True])
ABOUT = (
    "length",
    "advance",
    "model",
    "preamble",
    "antecedents",
    "turn",
    "spec",
    "codec",
    "conditioned",
    "key",
    "content",
)
ABOUT += ("lineage", "inputs", "source", "storage", "dtype", "origin")
OF_PATCHES = (
    "length",
    "chunk",
    "model",
    "antecedents",
    "codec",
    "key",
    "lineage",
    "sketch",
    "ranks",
    "components",
    "rows",
)
RANDOM = ("manifest", "patch", "index", "format")
"""Files of which anything is changed into anything, or left out."""

HUGE = (2**20, 2**26, 2**31 - 1, 2**40)


def cases(folder, count, seed):
    """``count`` of all that there are, drawn without order; the library that they are done to is made once."""

    if not (folder / "template").exists():
        with kj.ChunkLibrary.open(folder / "template", mode="a") as lib:
            lib.put_many([chunk(i, tokens=12) for i in IN_A] + [patch(0)])
            lib.put(chunk(IN_B, tokens=20))
    links = [(where, what) for where in FOLDERS + FILES + tuple(f"A{part}" for part in OF_A) for what in INSTEAD]
    links += [(where, what) for where in EXTRA for what in INSTEAD[1:]]
    crafted = [(f"about {name}", value) for name in ABOUT for value in ODD]
    crafted += [(f"patch {name}", value) for name in OF_PATCHES for value in (*ODD, *HUGE)]
    crafted += [
        (f"spec {name}", value) for name in ("layers", "dtype", "identity", "rope", "max_positions") for value in ODD
    ]
    crafted += [(f"rope {name}", value) for name in ("inv_freq", "head_dim", "layout", "scale") for value in ODD]
    crafted += [
        (f"leaf {place}", value) for place in range(5) for value in (*ODD, *HUGE, [2**40] * 3, [0, 2**60], [4] * 40)
    ]
    crafted += [(f"array {place}", value) for place in range(3) for value in (*ODD, *HUGE, [2**40] * 3, [4] * 40)]
    crafted += [
        (f"manifest {name}", value) for name in ("kind", "arrays", "entries", "specs", "files") for value in ODD
    ]
    crafted += [
        (f"index {name}", value) for name in ("packs", "pack", "kind", "keys", "chunks", "key") for value in ODD
    ]
    crafted += [("format", value) for value in (*ODD, 0, 1, 2.0, "2", 3, 10**30, "")]
    crafted += [
        ("zarr " + name, value) for name in ("shape", "chunks", "dtype", "compressor") for value in (*ODD, *HUGE)
    ]
    rng = np.random.default_rng(seed)
    crafted += [(f"random {name}", int(rng.integers(2**31))) for name in RANDOM for _ in range(60)]
    links = [links[i] for i in rng.permutation(len(links))]
    crafted = [crafted[i] for i in rng.permutation(len(crafted))]
    return [case for pair in zip(links, crafted * 2, strict=False) for case in pair][:count]


def judge(case, folder):
    """Spoil a library, do all with it, and look at what lies outside."""
    root = folder / "lib"
    outside = folder / "outside"
    shutil.copytree(folder.parent / "template", root)
    outside.mkdir()
    (outside / "letter.txt").write_text("dear")
    (outside / ("0" * 32)).mkdir()
    (outside / ("0" * 32) / "letter.txt").write_text("dear")
    where, what = case
    pack = next(path for path in (root / "packs").iterdir() if _rows(path) == len(IN_A))
    is_link = isinstance(what, str) and what in INSTEAD
    if is_link:
        _put_instead(root, _path(root, pack, where), what, outside)
    else:
        _craft(root, pack, where, what)
    before = _seen(outside)
    wrong = _do_all(root, trusting=not is_link, spared=_spared(where, what))
    after = _seen(outside)
    if after != before:
        return f"outside: {sorted(set(map(str, after.items())) ^ set(map(str, before.items())))[:6]}"
    return wrong


def _rows(pack):
    return len(json.loads((pack / "manifest.json").read_bytes())["body"]["entries"])


def _path(root, pack, where):
    if where.startswith("A"):
        return pack.parent / (pack.name + where[1:])
    if where == "tombstones/*":
        return root / "tombstones" / f"{pack.name}.{'0' * 64}"
    return root / where.replace("*", "f" * 32)


def _spared(where, what):
    """Whether what is spoilt costs no other pack."""
    return where.startswith("A") or where in ("index.json", "LOCK", "staging", *EXTRA) or where.startswith("index")


def _put_instead(root, path, what, outside):
    kept = outside / f"kept-{path.name}"
    if os.path.lexists(path):
        if what == "link to the same":
            shutil.move(path, kept)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    elif what == "link to the same":
        kept.write_text("dear")
    if what == "link to the same":
        path.symlink_to(kept)
    elif what == "link to a folder":
        path.symlink_to(outside)
    elif what == "link to a file":
        path.symlink_to(outside / "letter.txt")
    elif what == "dangling link":
        path.symlink_to(outside / "new")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what in ("folder", "full folder"):
        path.mkdir()
        if what == "full folder":
            (path / "notes.txt").write_text("dear")
    elif what == "empty file":
        path.touch()
    elif what == "sparse file":
        with path.open("wb") as file:
            file.truncate(2**36)


def _craft(root, pack, where, value):

    word, _, name = where.partition(" ")
    if word == "zarr":
        path = pack / "state" / "0.kv.rot" / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        body = json.loads((pack / "manifest.json").read_bytes())["body"]
        body["files"]["state/0.kv.rot/.zarray"] = sha256(path.read_bytes())
        write_sealed(pack / "manifest.json", body)
        return
    if word == "random":
        word = name
    if word == "patch":
        (pack,) = (root / "patches").iterdir()
    path = {"format": root / "LIBRARY.json", "index": root / "index.json"}.get(word, pack / "manifest.json")
    body = json.loads(path.read_bytes())["body"]
    if where.startswith("random"):
        _mutate(body, np.random.default_rng(value))
    elif word == "format":
        body["format_version"] = value
    elif word == "index":
        _craft_index(body, name, value)
    else:
        _craft_manifest(body, word, name, value)
        if hash(repr(value)) % 2:
            (root / "index.json").unlink()
    write_sealed(path, body)


def _mutate(body, rng):
    """Change one thing, anywhere in a body, or leave it out."""
    inner = body
    while True:
        names = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not names:
            return
        name = names[rng.integers(len(names))]
        if isinstance(inner[name], dict | list) and inner[name] and rng.random() < 0.8:
            inner = inner[name]
            continue
        choice = rng.integers(len(ODD) + len(HUGE) + 1)
        if choice == 0:
            del inner[name]
        else:
            inner[name] = (*ODD, *HUGE)[choice - 1]
        return


def _craft_index(body, name, value):
    first = next(iter(body["packs"]))
    if name == "packs":
        body["packs"] = value
    elif name == "pack":
        body["packs"][first] = value
    elif name == "key":
        body["packs"][first]["keys"][0] = value
    else:
        body["packs"][first][name] = value


def _craft_manifest(body, word, name, value):
    for entry in body["entries"].values():
        if word in ("about", "patch"):
            entry["about"][name] = value
        elif word == "leaf":
            leaf = entry["leaves"]["kv.rot"]
            leaf[int(name)] = value
    for spec in body["specs"].values():
        if word == "spec":
            spec[name] = value
        elif word == "rope":
            spec["rope"][name] = value
    if word == "array":
        if name == "2":
            body["arrays"][str(value)] = body["arrays"].pop("0.kv.rot")
        else:
            body["arrays"]["0.kv.rot"][int(name)] = value
    elif word == "manifest":
        body[name] = value


def _seen(folder):
    """Every file and folder below, with its bytes."""
    found = {}
    for place, names, files in os.walk(folder):
        for name in names + files:
            path = os.path.join(place, name)
            status = os.lstat(path)
            regular = os.path.isfile(path) and not os.path.islink(path) and status.st_size < 2**20
            with open(path, "rb") if regular else open(os.devnull, "rb") as file:
                found[os.path.relpath(path, folder)] = (status.st_mode, status.st_mtime_ns, file.read())
    return found


def _do_all(root, trusting, spared):
    """Everything that a library can do; what went wrong, or nothing."""

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    chunks = {key_of(i): chunk(i, tokens=20 if i == IN_B else 12) for i in (*IN_A, IN_B)}
    chunks[key_of(9)] = chunk(9)
    wrong = []

    def tried(what, act):
        try:
            return act()
        except ValueError as error:
            if type(error).__module__ != "kamera_jax.errors" or len(str(error)) < 20:
                wrong.append(f"unnamed: {what}: {error!r}"[:600])
        except Exception as error:
            wrong.append(f"unnamed: {what}: {error!r}"[:600])
        return None

    def right(key, found):
        if found is not None and not trusting and bits(found) != bits(chunks[key]):
            wrong.append(f"wrong: {key[:8]} is another chunk")

    def all_read(lib, what):
        for key in chunks:
            right(key, tried(f"{what} get", lambda key=key: lib.get(key)))
        tried(f"{what} get_kv", lambda: lib.get_kv(key_of(0), slice(0, 1)))
        tried(f"{what} info", lambda: lib.info(key_of(0)))
        for each in tried(f"{what} patches", lambda: lib.patches(key_of(0))) or ():
            if not trusting and bits(each) != bits(patch(0)):
                wrong.append("wrong: another patch")
        for name in (tried(f"{what} packs", lib.packs) or ()) if what != "a" else ():
            for sharding in (None, here):
                stacked = tried(f"{what} restore", lambda n=name, s=sharding: lib.restore(n, sharding=s)) or ()
                for part in stacked:
                    for row, key in enumerate(part.keys):
                        right(key, tried(f"{what} row", lambda p=part, r=row: p.chunk(r)) if key in chunks else None)
        for name in ("keys", "stats", "verify"):
            tried(f"{what} {name}", getattr(lib, name))
        tried(f"{what} items", lambda: list(lib.items()))
        tried(f"{what} beginning", lambda: lib.info(key_of(0)[:8]))
        copied(lib, what)

    def copied(lib, what):
        """What comes into other libraries is whole, whatever it comes from."""
        for name, source in ((f"{what}-folder", None), (f"{what}-file.tar", root)):
            to = root.parent / name
            tried(f"{what} export", lambda to=to: lib.export(to))
            with kj.ChunkLibrary.open(root.parent / f"from-{name}", mode="a") as other:
                tried(f"{what} import", lambda other=other, source=source or to: other.import_from(source))
                if not other.verify().ok:
                    wrong.append("wrong: what was imported is not as it was written")
                for key in set(other.keys()) & chunks.keys():
                    right(key, tried(f"{what} imported", lambda other=other, key=key: other.get(key)))

    for mode in ("r", "a"):
        lib = tried(f"open {mode}", lambda mode=mode: kj.ChunkLibrary.open(root, mode=mode))
        if lib is None:
            if spared:
                wrong.append(f"lost: cannot be opened with {mode}") if mode == "r" else None
            continue
        if spared and mode == "r" and bits(lib.get(key_of(IN_B))) != bits(chunks[key_of(IN_B)]):
            wrong.append("lost: another pack")
        all_read(lib, mode)
        if mode == "a":
            tried("put", lambda lib=lib: lib.put(chunk(9)))
            tried("delete", lambda lib=lib: lib.delete(key_of(1)))
            tried("gc", lib.gc)
            tried("put_many", lambda lib=lib: lib.put_many([chunk(10), patch(1)]))
            if spared and lib.has(key_of(9)) and bits(lib.get(key_of(IN_B))) != bits(chunks[key_of(IN_B)]):
                wrong.append("lost: another pack, after gc")
            all_read(lib, "after")
            tried("close", lib.close)
    return wrong[0] if wrong else ""
