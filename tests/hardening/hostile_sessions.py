"""Folders of saved sessions that an attacker wrote, with the right digests: an error with a name, or a session.

Nothing outside the folder is touched, and memory is bounded by what the folder holds.
"""

import copy
import json
import os
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

import kamera_jax as kj
from kamera_jax.library import arrays as storage
from kamera_jax.library.files import digests, read_sealed, write_sealed
from tests.hardening.named import unnamed
from tests.hardening.warm import cached
from tests.kamera_jax.toy import Toy

ITEMS = ("alpha " * 5, "beta " * 6, "gamma " * 5, "delta " * 6)
ODD = (
    *(-1, 10**12, 10**400, 2**31 - 1, 1.5, 1e300, True, None, "", "x", "../..", "\ud800", [], [1], [-1], {}, {"a": 1}),
    *([10**9] * 4, [2**31 - 1, 2**31 - 1], "x" * 1000, ["x"] * 1000, [[]] * 100, [True], [0], [1.0, 2.0]),
)
KINDS = ("field", "field", "field", "shape", "file", "folder", "link", "text", "entries", "payload")


@cache
def toy():
    """One model for all cases of a process."""
    return Toy()


def base(folder):
    """A folder of a session that was saved."""
    place = folder / "base"
    if not place.exists():
        session = kj.Session(toy(), 128, rank=4)
        for item in ITEMS:
            session.add(item)
        session.pin(session.keys[-1])
        session.save(place)
    return place


def places(value, path=()):
    """Paths of all values in a JSON value."""
    yield path
    if isinstance(value, dict):
        for name, each in value.items():
            yield from places(each, (*path, name))
    elif isinstance(value, list):
        for number, each in enumerate(value[:4]):
            yield from places(each, (*path, number))


def put(content, path, value):
    """Change a value in place; a path of nothing changes it all."""
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    if path:
        inner[path[-1]] = value


def prepare():
    """Compile what a session runs."""
    with tempfile.TemporaryDirectory() as folder:
        restored = kj.Session.restore(toy(), base(Path(folder)))
        restored.add("one more")
        restored.ask("what?", max_new_tokens=2)


def cases(folder, count, seed):
    """A kind of attack, and the seed of what is drawn for it."""
    cached()
    base(folder)
    return [(KINDS[number % len(KINDS)], seed * 1_000_003 + number) for number in range(count)]


def spoil(kind, folder, whole, rng):
    """Change what a folder holds; whether the description is to be written again."""
    arrays = folder / whole["folder"]
    described = whole["description"]
    if kind == "field":
        paths = list(places(described, ("description",))) + list(places(whole))
        put(whole, rng.choice([path for path in paths if path]), rng.choice(ODD))
    elif kind == "shape":
        about = rng.choice(list(whole["arrays"].values()))
        about[rng.choice(("shape", "dtype"))] = rng.choice(
            (*ODD, [10**6, 10**6], [0, 10**12], "float64", "object", "O")
        )
    elif kind == "file":
        path = rng.choice([path for path in arrays.rglob("*") if path.is_file()])
        size = path.stat().st_size
        path.unlink()
        what = rng.choice(("pipe", "folder", "longer", "sparse", "nothing", "link", "device"))
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what in ("longer", "sparse"):
            path.write_bytes(bytes(8))
            os.truncate(path, size + 1 if what == "longer" else 2**40)
        elif what == "link":
            os.symlink("/etc/passwd", path)
        elif what == "device":
            os.symlink("/dev/zero", path)
        if rng.random() < 0.5 and what in ("longer", "nothing"):
            whole["files"] = digests(arrays)
    elif kind == "folder":
        outside = folder.parent / "outside"
        shutil.move(arrays, outside)
        whole["folder"] = rng.choice(("../outside", str(outside), "..", ".", "", "arrays-", "arrays-\0", 7, None, "/"))
        if rng.random() < 0.3:
            os.symlink(outside, folder / f"arrays-{'0' * 32}")
            whole["folder"] = f"arrays-{'0' * 32}"
    elif kind == "link":
        path = folder / "description.json"
        path.unlink()
        rng.choice(
            (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path))
        )(path)
        return False
    elif kind == "text":
        text = (folder / "description.json").read_bytes()
        spoilt = (text[:-9], text + b"x", b"", bytes(1000), b"[" * 1_000_000, text.replace(b"float32", b"float16"))
        (folder / "description.json").write_bytes(rng.choice(spoilt))
        return False
    elif kind == "entries":
        entry = described["entries"][0]
        described["entries"] = rng.choice(
            (
                [entry] * 1_000_000,
                [entry] * 5,
                described["entries"][::-1],
                [{**entry, "base": 1e9}],
                [{**entry, "slot": 5}],
                [{**entry, "record": -1}],
                [{**entry, "record": True}],
                [],
            )
        )
        if rng.random() < 0.5:
            described["capacity"] = rng.choice((10**7, 10**9, 1, 16, 2**31 - 1, 2**40))
            described["mode"] = rng.choice(("in_place", "materialise"))
    else:  # other arrays, stored as they should be
        name = rng.choice([name for name in whole["arrays"] if whole["arrays"][name]["shape"]])
        shape = whole["arrays"][name]["shape"]
        dtype = np.dtype(storage.DTYPES[whole["arrays"][name]["dtype"]])
        other = rng.choice(([*shape[:-1], shape[-1] + 1], shape[:-1] or [7], [*shape, 1], shape))
        array = np.full(other, 100, dtype)
        rest = {key: np.asarray(each) for key, each in storage.load(arrays).items()} | {name: array}
        shutil.rmtree(arrays)
        storage.writer().submit(storage.save, arrays, rest).result()
        whole["arrays"][name] = {"shape": list(array.shape), "dtype": dtype.name}
        whole["files"] = digests(arrays)
    return True


def judge(case, folder):
    """Restore what was changed, and go on with it if it is a session."""
    kind, seed = case
    rng = random.Random(seed)
    place = folder / "session"
    shutil.copytree(base(folder.parent), place)
    outside = {path: path.read_bytes() for path in [folder / "kept"] if path.write_text("kept")}
    whole = copy.deepcopy(read_sealed(place / "description.json"))
    if spoil(kind, place, whole, rng):
        (place / "description.json").unlink()
        try:
            write_sealed(place / "description.json", whole)
        except (ValueError, UnicodeError):
            (place / "description.json").write_text(json.dumps(whole))
    try:
        session = kj.Session.restore(toy(), place)
        session.add("one more")
        session.ask("what?", max_new_tokens=2)
    except Exception as error:
        return unnamed(error)
    if any(path.read_bytes() != content for path, content in outside.items()) or not Path("/etc/passwd").exists():
        return "outside: a file beside the folder was changed"
    return "wrong: it is restored" if kind in ("folder", "link", "text") else ""
