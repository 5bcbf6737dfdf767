"""Every file of a library damaged in every way: what is read is as it was put, or an error that says what is wrong."""

import shutil
from pathlib import Path

import numpy as np

import kamera_jax as kj
from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError, LibraryNotFoundError, LibraryVersionError
from kamera_jax.library import marks
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

WAYS = ("flipped", "cut", "emptied", "replaced", "removed", "swapped", "lengthened")
NAMED = (ChunkNotFoundError, LibraryCorruptError, LibraryNotFoundError, LibraryVersionError)
ALIVE = (*range(3, 8), *range(10, 15), 20)
DELETED = (0, 1, 2, 8, 9, 21)
PATCHES = (4, 11)
NOT_CHECKED = ("LOCK", "CHANGES", "tombstones")
"""What has no content that anything depends on."""


def build(folder):
    """A library of several packs of chunks and patches, with deleted rows and an index."""
    with kj.ChunkLibrary.open(folder, mode="a") as lib:
        lib.put_many([chunk(i, tokens=8) for i in range(8)])
        lib.put_many([chunk(i, tokens=8) for i in range(8, 15)])
        for i in (20, 21):
            lib.put(chunk(i, tokens=8))
        for i in (0, *PATCHES):
            lib.put(patch(i))
        for i in DELETED:
            lib.delete(key_of(i))


def cases(folder, count, seed):
    """A file, of every kind in turn, and what is done to it."""
    template = folder / "template"
    build(template)
    kinds = {}
    for path in sorted(template.rglob("*")):
        if path.is_file():
            kinds.setdefault(kind_of(path.relative_to(template)), []).append(path.relative_to(template).as_posix())
    rng = np.random.default_rng(seed)
    chosen = []
    for number in range(count):
        files = kinds[sorted(kinds)[number % len(kinds)]]
        way = WAYS[(number // len(kinds)) % len(WAYS)]
        chosen.append((files[rng.integers(len(files))], way, int(rng.integers(2**31))))
    return chosen


def kind_of(path):
    """What a file is: its name, and for those of a pack, data or not, the folder of the pack."""
    if path.parts[0] in ("packs", "patches"):
        return f"{path.parts[0]} {'data' if path.name.strip('0.') == '' else path.name}"
    return path.parts[0]


def damage(library, name, way, seed):
    """Do it, and give the files that are not as they were."""
    rng = np.random.default_rng(seed)
    path = library / name
    whole = path.read_bytes()
    if way == "removed" or (way in ("flipped", "cut", "replaced") and not whole):
        path.unlink()
        return [name]
    if way == "swapped":
        others = [each for each in sorted(library.rglob(path.name)) if each.is_file() and each != path]
        others = others or [each for each in sorted(library.rglob("*")) if each.is_file() and each != path]
        other = others[rng.integers(len(others))]
        path.write_bytes(other.read_bytes())
        other.write_bytes(whole)
        same = path.read_bytes() == whole
        return [] if same else [name, other.relative_to(library).as_posix()]
    spoilt = bytearray(whole)
    if way == "flipped":
        bit = int(rng.integers(8 * len(whole)))
        spoilt[bit // 8] ^= 1 << bit % 8
    elif way == "cut":
        spoilt = spoilt[: rng.integers(len(whole))]
    elif way == "emptied":
        spoilt = bytearray()
    elif way == "replaced":
        spoilt = bytearray(rng.bytes(len(whole)))
    else:
        spoilt += rng.bytes(int(rng.integers(1, 200)))
    path.write_bytes(spoilt)
    return [] if spoilt == whole else [name]


def judge(case, folder):
    """Damage one file, and read and write the library in every way."""
    library = folder / "library"
    shutil.copytree(folder.parent / "template", library)
    damaged = damage(library, *case)
    packs = {name.split("/")[1] for name in damaged if name.startswith(("packs/", "patches/"))}
    try:
        reader = kj.ChunkLibrary.open(library)
    except NAMED as error:
        return "" if "LIBRARY.json" in damaged and "LIBRARY.json" in str(error) else f"lost: {error}"
    refused = set()
    return (
        wrong_reading(reader, library, packs, refused)
        or unnamed(reader, damaged, case[1], refused)
        or wrong_writing(library, packs)
    )


def owners(library):
    """The pack of every key, from the library as it was made."""
    lib = kj.ChunkLibrary.open(library)
    return {key: lib.info(key).pack for key in (*lib.keys(), *lib.keys("patches"))}


_owners = {}


def wrong_reading(lib, library, packs, refused):
    """What is read that was not put, or cannot be read though its pack is as it was; packs that refuse a row."""
    template = library.parent.parent / "template"
    if template not in _owners:
        _owners[template] = owners(template)
    here = _owners[template]
    for i in (*ALIVE, *DELETED):
        key = key_of(i)
        try:
            if bits(lib.get(key)) != bits(chunk(i, tokens=8)):
                return f"wrong: chunk {i} is not as it was put"
            if i in DELETED:
                return f"wrong: chunk {i} came back"
            if np.asarray(lib.get_kv(key, slice(1, 3)).rot).tobytes() != chunk(i, tokens=8).kv.rot[1:3].tobytes():
                return f"wrong: layers of chunk {i}"
        except NAMED as error:
            if i in ALIVE and here[key] not in packs:
                return f"lost: chunk {i}: {error}"
            refused |= {here[key]} if i in ALIVE else set()
            if i in DELETED and not isinstance(error, ChunkNotFoundError):
                return f"wrong: a deleted chunk is said to be {error}"
    for i in (0, *PATCHES):
        key = patch(i).key
        try:
            if bits(lib.get_patch(key)) != bits(patch(i)) or i == 0:
                return f"wrong: patch {i}"
        except NAMED as error:
            if i in PATCHES and here[key] not in packs:
                return f"lost: patch {i}: {error}"
            refused |= {here[key]} if i in PATCHES else set()
    for name in lib.packs():
        try:
            for stacked in lib.restore(name):
                for row, key in enumerate(stacked.keys):
                    if key is not None and bits(stacked.chunk(row)) not in [bits(chunk(i, tokens=8)) for i in ALIVE]:
                        return f"wrong: {key[:12]} of a whole pack"
        except NAMED as error:
            if name not in packs:
                return f"lost: pack {name}: {error}"
    if len(list(lib.items())) < sum(1 for pack in here.values() if pack not in packs):
        return "lost: items"
    return ""


def unnamed(lib, damaged, way, refused):
    """What `verify` does not name."""
    report = lib.verify()
    said = " ".join([*report.damaged, *report.damaged.values(), *report.lost, *report.lost.values()])
    for name in damaged:
        parts = name.split("/")
        # A log that ends in the middle of a line is what a crash leaves; an index that is not there is made again.
        harmless = parts[0] in NOT_CHECKED or (parts[0] == "deleted.log" and way in ("cut", "removed", "lengthened"))
        # Of a log that still has every mark, only empty lines were damaged.
        harmless = harmless or (parts[0] == "deleted.log" and not marks.read(lib.root).unlogged)
        harmless = harmless or (name == "index.json" and way == "removed")
        if parts[0] == "tombstones" and way == "removed":
            harmless = False
        where = parts[1] if parts[0] in ("packs", "patches") else parts[0]
        # What is damaged in a row that was deleted is nothing to anybody.
        harmless = harmless or ("data" in kind_of(Path(name)) and where not in refused)
        if not harmless and where not in said:
            return f"unnamed: verify says nothing of {name}: {report}"
    if not damaged and not report.ok:
        return f"wrong: verify says {report}"
    return ""


def wrong_writing(library, packs):
    """What goes wrong when the library is written to and collected."""
    with kj.ChunkLibrary.open(library, mode="a") as lib:
        lib.put(chunk(30, tokens=8))
        lib.gc()
        if bits(lib.get(key_of(30))) != bits(chunk(30, tokens=8)):
            return "wrong: a new chunk"
    again = kj.ChunkLibrary.open(library)
    here = _owners[library.parent.parent / "template"]
    for i in ALIVE:
        try:
            if bits(again.get(key_of(i))) != bits(chunk(i, tokens=8)):
                return f"wrong: chunk {i}, collected"
        except NAMED as error:
            if here[key_of(i)] not in packs:
                return f"lost: chunk {i} after a collection: {error}"
    if back := [i for i in DELETED if again.has(key_of(i))]:
        return f"wrong: {back} came back with a collection"
    if again.verify().damaged.keys() & {"deleted.log", "tombstones", "index.json"}:
        return f"wrong: not mended: {again.verify()}"
    return ""
