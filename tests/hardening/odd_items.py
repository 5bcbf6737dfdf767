"""Odd items: chunks and patches with fields that no encoder gives. Each is stored and comes back equal, or is refused.

Its neighbours, put with it, are stored in any case.
"""

import numpy as np

NEIGHBOURS = (1, 2)

MISSING = object()


def _scalars():
    return {
        **{"None": None, "bytes": b"abc", "empty": "", "text": "text", "Greek": "λ π", "surrogate": "\ud800"},
        **{"NUL": "a\0b", "long": "x" * 100_000, "path": "../../etc", "number": 5, "negative": -1, "huge": 10**400},
        **{"big": 2**40, "float": 2.5, "whole float": 4.0, "nan": float("nan"), "inf": float("inf"), "True": True},
        **{"np.int64": np.int64(5), "np.float32": np.float32(2.5), "np.float64": np.float64(2.5)},
        **{"np.bool_": np.bool_(True), "np.str_": np.str_("text"), "list": ["a"], "tuple": ("a",), "empty tuple": ()},
        **{"nested": (("a",),), "dict": {"a": 1}, "array": np.arange(3), "array of one": np.array([5])},
        **{"0-d array": np.array(5), "object": object(), "complex": 1 + 2j, "tuple of bytes": (b"a",)},
    }


def _arrays(like):
    """Arrays in place of another one, of its shape where they can be."""
    import jax
    import jax.numpy as jnp
    import ml_dtypes

    numbers = np.asarray(like).astype(np.float32)
    dtypes = (
        *(">f4", "<f4", ">f2", "f8", ">f8", "i1", "i2", ">i2", "i4", ">i4", "i8", ">i8", "u1", "u4", "u8", "?", "c8"),
        *("O", "S4", "U4", "M8[s]", "m8[s]", "V4", "g"),
    )
    found = {}
    for dtype in dtypes:
        try:
            found[dtype] = numbers.astype(dtype)
        except (TypeError, ValueError):
            continue
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4", "int2"):
        found[name] = numbers.astype(getattr(ml_dtypes, name, np.float32))
    found |= {
        "structured": np.zeros(numbers.shape, [("a", "i4"), ("b", "f4")]),
        "masked": np.ma.masked_array(numbers, numbers > 0),
        "matrix": np.matrix(np.ones((2, 2))),
        "Fortran": np.asfortranarray(numbers),
        "strided": np.repeat(numbers, 2, axis=-1)[..., ::2],
        "reversed": numbers[..., ::-1],
        "broadcast": np.broadcast_to(numbers[:1], numbers.shape),
        "read-only": np.frombuffer(numbers.tobytes(), numbers.dtype).reshape(numbers.shape),
        "nan": np.full_like(numbers, np.nan),
        "inf": np.full_like(numbers, np.inf),
        "-0": np.full_like(numbers, -0.0),
        "subnormal": np.full_like(numbers, 1e-42),
        "jax": jnp.asarray(numbers),
        "jax int4": jnp.zeros(numbers.shape, jnp.int4),
        "jax key": jax.random.key(0),
        "0 axes": np.float32(1).reshape(()),
        "scalar": np.float32(1),
        "1 axis": numbers.reshape(-1),
        "9 axes": numbers.reshape((1,) * (9 - numbers.ndim) + numbers.shape),
        "12 axes": numbers.reshape((1,) * (12 - numbers.ndim) + numbers.shape),
        "empty": numbers[:0],
        "empty last": numbers[..., :0],
        "empty middle": numbers[:, :0] if numbers.ndim > 1 else numbers[:0],
        "list": numbers.tolist(),
        "None": None,
        "text": "text",
        "number": 5,
        "dict": {"a": numbers},
        "tuple": (numbers, numbers),
        "shorter": numbers[..., : max(numbers.shape[-1] - 1, 0)],
        "longer": np.concatenate([numbers, numbers], axis=-1),
    }
    return found


NAMES = {
    **{
        "space": "a b",
        "Greek": "λ",
        "empty": "",
        "dots": "..",
        "dot": ".",
        "slash": "a/b",
        "NUL": "a\0",
        "path": "../a",
    },
    **{"long": "x" * 300, "longish": "x" * 139, "at the limit": "x" * 143, "longer": "x" * 200, "a.b": "a.b"},
    **{
        "bytes": b"a",
        "number": 5,
        "None": None,
        "tuple": ("a",),
        "surrogate": "\ud800",
        "newline": "a\n",
        "minus": "a-b",
    },
    **{"underscore": "_a", "digit": "0", "ends in a dot": "a.", "kv.rot": "kv.rot", "tokens": "tokens", "CON": "CON"},
    **{"zarr": ".zarray", "emoji": "😀", "np.str_": np.str_("a"), "colon": "a:b", "back": "a\\b", "star": "*"},
}

CHUNK = (
    *("length", "advance", "model", "preamble", "antecedents", "turn", "codec", "conditioned", "key", "content"),
    *("lineage", "spec", "source"),
)
PATCH = ("length", "chunk", "model", "antecedents", "codec", "key", "lineage", "sketch", "factors")
SPEC = ("layers", "rot_dim", "heads", "fingerprint", "identity", "max_positions")
ROPE = ("inv_freq", "head_dim", "layout", "sections", "scale", "unrotated")
ARRAYS = ("kv.rot", "kv.free", "kv", "positions", "input", "source.positions")
FACTORS = ("u", "v", "ranks", "scale", "mass", "residual", "unused", "sketch.queries", "sketch.tokens")


def cases(folder, count, seed):
    """``count`` of all that there are, drawn without order."""
    like = np.zeros((4, 16, 32), np.float32)
    all_cases = [
        *(("chunk", field, value, "exact") for field in CHUNK for value in _scalars()),
        *(("patch", field, value, "exact") for field in PATCH for value in _scalars()),
        *(("spec", field, value, "exact") for field in SPEC for value in _scalars()),
        *(("rope", field, value, "exact") for field in ROPE for value in _scalars()),
        *(("source.length", "length", value, "exact") for value in _scalars()),
        *(("name", "source", value, storage) for value in NAMES for storage in ("exact", "int8")),
        *(("arrays", field, value, s) for field in ARRAYS for value in _arrays(like) for s in ("exact", "int8")),
        *(("factors", field, value, "exact") for field in FACTORS for value in _arrays(like)),
    ]
    order = np.random.default_rng(seed).permutation(len(all_cases))
    return [all_cases[i] for i in (*order, *order)[:count]]


def made(case):
    """The odd item of a case, or None where it cannot even be made."""
    from dataclasses import fields

    import kamera_jax as kj
    from kamera_jax.kv import KV, Sketch, SketchSpec
    from tests.kamera_jax.library.made import SPEC as MADE
    from tests.kamera_jax.library.made import chunk, named, patch

    what, field, value, _ = case
    base = chunk(0, tokens=12)
    scalar = _scalars().get(value)
    try:
        if what == "chunk":
            return named(base, **{field: scalar})
        if what == "patch":
            return named(patch(0), **{field: scalar})
        if what == "spec":
            return named(
                base, spec=kj.KVSpec(**{f.name: getattr(MADE, f.name) for f in fields(MADE)} | {field: scalar})
            )
        if what == "rope":
            rope = kj.RopeSpec(**{f.name: getattr(MADE.rope, f.name) for f in fields(MADE.rope)} | {field: scalar})
            spec = kj.KVSpec(**{f.name: getattr(MADE, f.name) for f in fields(MADE)} | {"rope": rope})
            return named(base, spec=spec)
        if what == "source.length":
            positions = np.concatenate([np.asarray(base.positions)] * 2, 1)
            return named(base, source=kj.Segment({"tokens": np.arange(32, dtype=np.int32)}, positions, scalar, 12.0))
        if what == "name":
            inputs = {NAMES[value]: np.arange(16, dtype=np.int32), "second": np.arange(3, dtype=np.int32)}
            return named(base, source=kj.Segment(inputs, base.positions, np.int32(12), 12.0))
        if what == "arrays":
            if field == "input":
                array = _arrays(np.asarray(base.kv.rot))[value]
                return named(base, source=kj.Segment({"tokens": array}, base.positions, np.int32(12), 12.0))
            if field == "source.positions":
                source = kj.Segment(base.source.inputs, _arrays(np.asarray(base.positions))[value], np.int32(12), 12.0)
                return named(base, source=source)
            if field == "positions":
                return named(base, positions=_arrays(np.asarray(base.positions))[value])
            rot, free = (_arrays(np.asarray(getattr(base.kv, name), np.float32))[value] for name in ("rot", "free"))
            kept = {"kv.rot": (rot, base.kv.free), "kv.free": (base.kv.rot, free), "kv": (rot, free)}[field]
            return named(base, kv=KV(*kept))
        whole = patch(0)
        if field == "unused":
            odd = _arrays(np.asarray(whole.factors.u, np.float32))[value]
            return named(whole, factors=whole.factors.replace(u=odd, ranks=np.zeros(4, np.int32)))
        if field in ("mass", "residual"):
            return named(whole, **{field: _arrays(np.asarray(getattr(whole, field)))[value]})
        if field.startswith("sketch"):
            parts = {"queries": np.ones((2, 5, 4, 8), np.float32), "outputs": np.ones((2, 5, 4, 8), np.float32)}
            parts |= {"tokens": np.ones((2, 5), np.int32)}
            parts[field[7:]] = _arrays(parts[field[7:]])[value]
            return named(whole, sketch=Sketch(**parts, spec=SketchSpec((1, 3), (1.0, 0.5), 5)))
        like = (
            np.ones((4, 6), np.float32) if field == "scale" else np.asarray(getattr(whole.factors, field), np.float32)
        )
        return named(whole, factors=whole.factors.replace(**{field: _arrays(like)[value]}))
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError, IndexError):
        return None


def differences(given, back, storage):
    """What came back otherwise than it was put; empty if nothing did."""
    import kamera_jax as kj

    is_chunk = isinstance(given, kj.Chunk)
    names = ("length", "model", "antecedents", "codec", "key", "lineage")
    names += ("advance", "preamble", "turn", "conditioned", "content", "spec") if is_chunk else ("chunk",)
    wrong = [name for name in names if not _equal(getattr(given, name), getattr(back, name))]
    pairs = {}
    if is_chunk:
        pairs = {"positions": (given.positions, back.positions)}
        if storage == "exact":
            pairs |= {name: (getattr(given.kv, name), getattr(back.kv, name)) for name in ("rot", "free")}
        else:
            wrong = [name for name in wrong if name != "codec"]
        if (given.source is None) != (back.source is None):
            return [*wrong, "source"]
        if given.source is not None:
            wrong += ["names of inputs"] * (set(given.source.inputs) != set(back.source.inputs))
            pairs |= {
                f"input {name}": (array, back.source.inputs.get(name)) for name, array in given.source.inputs.items()
            }
            pairs |= {"source": (given.source.positions, back.source.positions)}
            wrong += ["source.length"] * (not _equal(int(given.source.length), int(back.source.length)))
    else:
        for name in ("u", "v", "ranks", "scale"):
            pairs[name] = (getattr(given.factors, name), getattr(back.factors, name))
        pairs |= {"mass": (given.mass, back.mass), "residual": (given.residual, back.residual)}
        if (given.sketch is None) != (back.sketch is None):
            return [*wrong, "sketch"]
        if given.sketch is not None:
            wrong += ["sketch.spec"] * (given.sketch.spec != back.sketch.spec)
            parts = ("queries", "outputs", "tokens")
            pairs |= {f"sketch.{name}": (getattr(given.sketch, name), getattr(back.sketch, name)) for name in parts}
    return wrong + [name for name, (old, new) in pairs.items() if not _same_array(old, new)]


def _equal(old, new):
    return type(old) is type(new) and old == new or (not isinstance(old, bool | tuple | list) and bool(old == new))


def _same_array(old, new):
    if old is None or new is None:
        return old is new
    if not hasattr(old, "dtype") or not hasattr(new, "dtype"):
        return False
    old, new = np.asarray(old), np.asarray(new)
    if old.dtype.newbyteorder("=") != new.dtype or old.shape != new.shape:
        return False
    old = old.astype(new.dtype)
    return old.tobytes() == new.tobytes() or bool((np.nan_to_num(old) == np.nan_to_num(new)).all())


def judge(case, folder):
    """Put an odd item between others, and read everything back."""
    import kamera_jax as kj
    from tests.kamera_jax.library.made import bits, chunk, key_of

    item = made(case)
    if item is None:
        return ""
    lib = kj.ChunkLibrary.open(folder / "lib", mode="a")
    storage = case[-1]
    before, after = (chunk(i, tokens=12) for i in NEIGHBOURS)
    error = None
    key = ""
    first = lib.put_async(before)
    try:
        key = lib.put_async(item, storage=storage).result()
    except ValueError as raised:
        error = raised
    second = lib.put_async(after)
    for neighbour, future in ((NEIGHBOURS[0], first), (NEIGHBOURS[1], second)):
        try:
            future.result()
        except Exception as lost:
            return f"lost: neighbour {neighbour}: {lost}"
    if error is not None and len(str(error)) < 20:
        return f"unnamed: {error!r}"
    reader = kj.ChunkLibrary.open(folder / "lib")
    if not (report := reader.verify()).ok:
        return f"wrong: {report}"
    for each in NEIGHBOURS:
        if bits(reader.get(key_of(each))) != bits(chunk(each, tokens=12)):
            return f"wrong: neighbour {each}"
    if error is None:
        try:
            back = (reader.get if isinstance(item, kj.Chunk) else reader.get_patch)(key)
        except Exception as raised:
            return f"lost: {raised!r}"
        if wrong := differences(item, back, storage):
            return f"wrong: {wrong} came back otherwise"
        if isinstance(item, kj.Chunk):
            stacked = [
                each.chunk(row)
                for name in reader.packs()
                for each in reader.restore(name)
                for row, of in enumerate(each.keys)
                if of == key
            ]
            if len(stacked) != 1 or (wrong := differences(item, stacked[0], storage)):
                return f"wrong: restore gives {len(stacked)}, {wrong} otherwise"
    return ""
