"""Calls that are wrong, as a user makes them: run as a program, where annotations are not checked."""

import re
import tempfile
from contextlib import chdir
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from kamera_jax.errors import ArgumentError, BasisError, CodecError, DonatedError, NoModelError
from kamera_jax.session.warm import warm
from models import load
from tests.kamera_jax.toy import Toy


def refused(call, kind, *parts):
    try:
        call()
    except kind as error:
        message = str(error)
        assert isinstance(error, ValueError), error
        missing = [part for part in parts if not re.search(part, message)]
        assert not missing, (missing, message)
        return
    raise AssertionError(f"{parts} was not refused")


def refuse_other_rows(toy, a):
    """What makes a chunk of fewer rows or bits."""
    refused(lambda: kj.share_rows(toy, a, "0.9"), ArgumentError, "threshold is '0.9'", "number")
    refused(lambda: kj.share_rows(toy, a, True), ArgumentError, "threshold is True", "number")
    refused(lambda: kj.share_rows(toy, "text"), ArgumentError, "chunk is 'text'", "expected a Chunk")
    refused(lambda: kj.renew(toy, "text", "text"), ArgumentError, "chunk is 'text'", "expected a Chunk")
    refused(lambda: kj.renew(toy, a, "text", tolerance="0.1"), ArgumentError, "tolerance is '0.1'", "number")
    refused(lambda: kj.renew(toy, a, "text", extra=True), ArgumentError, "extra is True", "number")
    refused(lambda: kj.compress(toy, "text", "kivi:4"), ArgumentError, "chunk is 'text'", "expected a Chunk")
    refused(lambda: kj.compress(toy, a, 4), CodecError, "codec is 4", "kivi:B")
    refused(lambda: kj.calibrate_codec(toy, a), ArgumentError, "chunks is", "a list of what encode")
    refused(lambda: kj.calibrate_codec(toy, ["text"]), ArgumentError, "chunk is 'text'", "expected a Chunk")
    refused(lambda: kj.compress(toy, a, "pca:0.5"), BasisError, "nothing was measured", "calibrate_codec")
    refused(lambda: kj.generate_many(toy, a, ["what"]), ArgumentError, "windows is")
    refused(lambda: kj.generate_many(toy, [a], ["what"]), ArgumentError, "windows")


def refuse_tiers():
    """What no tiers can be made of, or be told."""
    store = kj.Tiers()
    refused(lambda: kj.Tiers(library="lib"), ArgumentError, "library is 'lib'", "ChunkLibrary.open")
    refused(lambda: kj.Tiers(device_bytes=1.5), ArgumentError, "device_bytes is 1.5", "whole number")
    refused(lambda: kj.Tiers(cost=3), ArgumentError, "cost is 3", "function of a chunk")
    refused(lambda: kj.Tiers(host_codec=4), CodecError, "codec is 4")
    refused(lambda: store.hint({"a": 1.5}), ArgumentError, "steps.* is 1.5", "whole number")
    refused(lambda: store.hint(["a"]), ArgumentError, "steps is", "look-backs to the next use by key")
    refused(lambda: store.hint({3: 1}), ArgumentError, "a key of steps is 3")
    refused(lambda: store.prefetch([3]), ArgumentError, "a key is 3")
    refused(lambda: store.find(3), ArgumentError, "key is 3")


def main():
    toy = Toy()
    a, b = (kj.encode(toy, text) for text in ("abc", "xyz"))
    p = kj.form_patch(toy, b, antecedents=[a], rank=np.int64(2))
    assert kj.form_patch(toy, b, antecedents=[a], rank=jnp.int32(2)).key == p.key
    w = kj.append(kj.Window.empty(toy, np.int64(128)), a)
    key = jax.random.key(0)
    refuse_other_rows(toy, a)
    refuse_tiers()

    refused(lambda: kj.append(w, "text"), ArgumentError, "chunk is 'text'", "expected a Chunk", "encode")
    refused(lambda: kj.append(w, None), ArgumentError, "chunk is None")
    refused(lambda: kj.append(w, p), ArgumentError, "expected a Chunk")
    refused(lambda: kj.append(w, a, a), ArgumentError, "patch is", "expected a Patch", "form_patch")
    refused(lambda: kj.append(a, w), ArgumentError, "window is", "expected a Window")
    refused(lambda: kj.recall(w, "text", None), ArgumentError, "chunk is 'text'")
    refused(lambda: kj.replace(w, 0, "text"), ArgumentError, "chunk is 'text'")
    refused(lambda: kj.slide(a), ArgumentError, "expected a Window")
    refused(lambda: kj.reorder(a, [0]), ArgumentError, "expected a Window")
    refused(lambda: kj.query(w, toy, "what"), ArgumentError, "window is", "expected a Window", "vlm, window, text")
    refused(lambda: kj.query(toy, w, 7), ArgumentError, "question is 7", "text")
    refused(lambda: kj.query(toy, "what", w), ArgumentError, "window is 'what'")
    refused(lambda: kj.generate(toy, w, "what", key=0, temperature=1.0), ArgumentError, "key is 0", "jax.random.key")
    refused(lambda: kj.generate(toy, w, "what", key=key[None], temperature=1.0), ArgumentError, "jax.random.key")
    refused(lambda: kj.generate(toy, w, "what", max_new_tokens=2.5), ArgumentError, "max_new_tokens is 2.5", "whole")
    refused(lambda: kj.generate(toy, w, "what", max_new_tokens=0), ValueError, "max_new_tokens is 0")
    for value in ("kamera-tiny-gqa", Path("page.png"), b"x", 3, None, [a], a, w, np.zeros((2, 2, 3), np.uint8)):
        for call in (
            lambda vlm: kj.encode(vlm, "abc"),
            lambda vlm: kj.encode_all(vlm, "abc"),
            lambda vlm: kj.prefill(vlm, toy),
            lambda vlm: kj.form_patch(vlm, toy, antecedents=[a]),
            lambda vlm: kj.form_patches(vlm, toy),
            lambda vlm: kj.generate(vlm, w, "what"),
            lambda vlm: kj.Window.empty(vlm, toy),
            lambda vlm: kj.Session(vlm, toy),
            lambda vlm: kj.calibrate(vlm, []),
        ):
            refused(partial(call, value), NoModelError, "vlm is ", "expected a model, which stands first", "load")
    refused(lambda: kj.encode("kamera-tiny-gqa", "abc"), NoModelError, r"models\.load\('kamera-tiny-gqa'\)")
    refused(lambda: kj.encode("page.png", toy), NoModelError, r"vlm is 'page\.png'.*models\.load\('kamera-tiny-gqa'\)")
    refused(lambda: kj.generate(toy, [a], "what"), ArgumentError, "window is", r"prefill\(vlm, items\)")
    refused(lambda: kj.generate(toy, a, "what"), ArgumentError, "window is", r"append\(window, chunk\)")
    refused(lambda: kj.generate(toy, kj.Session(toy, 64), "what"), ArgumentError, "Session has one, its .window")
    refused(lambda: kj.form_patch(toy, b, antecedents=a), ArgumentError, r"antecedents is .*\[chunk\].*context=window")
    refused(lambda: kj.form_patch(toy, b, antecedents=w), ArgumentError, "antecedents is", "context=window")
    refused(lambda: kj.form_patch(toy, b, context=[a]), ArgumentError, "context is", r"antecedents=\[chunk")
    refused(lambda: kj.calibrate(toy, None), ArgumentError, "drifts is None", "Drift")
    session = kj.Session(toy, 128)
    for count in (2.5, True, np.bool_(True), "2", None, float("nan"), [2]):
        for ask in (partial(kj.generate, toy, w, "what"), partial(session.ask, "what"), partial(warm, toy, 128)):
            refused(partial(ask, max_new_tokens=count), ArgumentError, "max_new_tokens is", "whole number")
    for count in (np.int64(3), np.uint8(3), jnp.int32(3)):
        assert len(kj.generate(toy, w, "what", max_new_tokens=count).tokens) == 3
        assert len(session.ask("what", max_new_tokens=count, keep=False).tokens) == 3
    for name in (7, None, b"x", ["x"]):
        refused(partial(load, name), ValueError, "no model")
    refused(lambda: kj.Window.empty(toy, 512.0), ArgumentError, "capacity is 512.0", "whole number")
    refused(lambda: kj.Window.empty(toy, None), ArgumentError, "capacity is None")
    refused(lambda: kj.Window.empty(toy, -1), ValueError, "capacity is -1")
    refused(lambda: kj.Session(toy, "64"), ArgumentError, "capacity is '64'")
    refused(lambda: kj.form_patch(toy, "xyz", antecedents=[a]), ArgumentError, "chunk is 'xyz'")
    refused(lambda: kj.form_patch(toy, b, context=a), ArgumentError, "window is")
    for rank in (2.0, True, "2"):
        refused(lambda rank=rank: kj.form_patch(toy, b, antecedents=[a], rank=rank), ValueError, "whole number")

    for mode in ("materialise", "in_place"):
        old = kj.append(kj.Window.empty(toy, 128, mode=mode), a)
        new = kj.append(old, b, donate=True)
        for call in (
            lambda old=old: kj.append(old, b),
            lambda old=old: kj.query(toy, old, "what"),
            lambda old=old: kj.generate(toy, old, "what"),
            lambda old=old: kj.reorder(old, [0]),
        ):
            refused(call, DonatedError, "given to the window", "donate")
        kj.query(toy, new, "what")
    lost = a.copied()
    jax.tree.map(lambda leaf: leaf.delete() if isinstance(leaf, jax.Array) else None, lost.kv)
    refused(lambda: kj.append(w, lost), DonatedError, "was donated", "copied")

    origins(a)
    vlm = load("kamera-tiny-gqa")
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    assert vlm.prepare(jnp.asarray(image)).content == vlm.prepare(image).content
    assert vlm.prepare([jnp.asarray(image), "text"]).content == vlm.prepare([image, "text"]).content
    refused(lambda: vlm.prepare(jnp.asarray(image, jnp.float32)), ValueError, "expected uint8")
    refused(lambda: load("kamera-tiny-gqa", mesh=jax.devices()[0]), ValueError, "expected a jax.sharding.Mesh")


def origins(a):
    """Where chunks came from, and what a library is asked."""
    origin = kj.Origin(Path("a") / "b.png", page=np.int64(3), time=np.float32(0.5), encoded=None)
    assert origin.plain == {"file": str(Path("a") / "b.png"), "page": 3, "time": 0.5}
    assert all(type(value) in (str, int, float) for value in origin.plain.values())
    refused(lambda: kj.Origin(7), ArgumentError, "file is 7", "name")
    refused(lambda: kj.Origin("a.png", page=1.5), ArgumentError, "page is 1.5", "whole number")
    refused(lambda: kj.Origin("a.png", page=True), ArgumentError, "page is True")
    refused(lambda: kj.Origin("a.png", time="3"), ArgumentError, "time is '3'", "number")
    refused(lambda: kj.Origin("a.png", encoded=5), ArgumentError, "encoded is 5", "UTC")
    with tempfile.TemporaryDirectory() as folder, kj.ChunkLibrary.open(f"{folder}/library", mode="a") as lib:
        refused(lambda: lib.put(a, origin="a.png"), ArgumentError, "origin is 'a.png'", "Origin")
        refused(lambda: lib.put_many([a], origins=origin), ArgumentError, "origins is", "one for each item")
        refused(lambda: lib.get(7), ArgumentError, "key is 7")
        refused(lambda: lib.resolve(a.key, "chunk"), ArgumentError, "kind is 'chunk'", "patches")
        assert not lib.keys()


def public(toy, a, b, p, w, folder):
    """Public functions, and arguments that they take."""
    lib = kj.ChunkLibrary.open(f"{folder}/library", mode="a")
    lib.put(a)
    policy = kj.ReusePolicy(max_kl=0.05)
    recall = kj.planning.Recall(b, p, at=0)
    plan = kj.planning.plan(toy, w, recall, policy=policy)

    def session(method, *arguments, **options):
        session = kj.Session(toy, 256)
        session.add("abc")
        return getattr(session, method)(*arguments, **options)

    def form(vlm, chunk, antecedents, context, **options):
        return kj.form_patch(vlm, chunk, antecedents=antecedents, context=context, **options)

    answer = {"max_new_tokens": 2, "temperature": 0.0, "key": jax.random.key(0), "stop": (), "stream": None}
    pair = {"window": w, "chunk": b, "patch": p}
    yield lambda vlm, preamble: kj.encode(vlm, "abc", preamble=preamble), {"vlm": toy, "preamble": "pinned"}
    yield lambda vlm, tokens: kj.encode_all(vlm, "abc", tokens=tokens), {"vlm": toy, "tokens": 10}
    yield kj.prefill, {"vlm": toy, "items": [a, b], "capacity": 256}
    yield form, {"vlm": toy, "chunk": b, "antecedents": [a], "context": None, "rank": 2, "sketch": None}
    yield form, {"vlm": toy, "chunk": b, "antecedents": None, "context": w, "max_bytes": 900, "int8": None}
    yield kj.form_patches, {"vlm": toy, "items": [a, b], "capacity": 256, "rank": 2}
    yield kj.Window.empty, {"vlm": toy, "capacity": 128, "mode": "materialise"}
    yield kj.append, pair
    yield kj.reorder, {"window": w, "order": [1, 0]}
    yield kj.slide, {"window": w, "drop": 1}
    yield kj.recall, {**pair, "at": 1}
    yield kj.replace, {**pair, "index": 1}
    yield kj.query, {"vlm": toy, "window": w, "text": "what"}
    yield kj.generate, {"vlm": toy, "window": w, "text": "what", **answer}
    checked = {"reference": "present", "history": None, "max_kl": 0.05}
    yield kj.verify, {"vlm": toy, "window": w, "probes": ["what"], **checked}
    yield kj.ReusePolicy, {"max_kl": 0.1, "fallback": "patch", "calibration": None}
    yield policy.judge, pair
    yield kj.append_checked, {"vlm": toy, **pair, "policy": policy}
    yield kj.staleness, {**pair, "at": None}
    yield kj.planning.plan, {"vlm": toy, "window": w, "change": recall, "policy": policy, "stored": [p]}
    yield kj.planning.execute, {"vlm": toy, "plan": plan}
    settings = {"mode": "materialise", "memory_bytes": 9, "rank": 4, "policy": None, "store": None}
    yield kj.Session, {"vlm": toy, "capacity": 256, **settings}
    yield partial(session, "ask"), {"text": "what", **answer}
    yield partial(session, "add", "q"), {"key": None}
    yield partial(session, "recall"), {"key": a.key, "at": 0}
    yield lambda key: session("replace", key, "q"), {"key": a.key}
    yield partial(session, "pin"), {"key": a.key}
    yield partial(session, "save"), {"folder": f"{folder}/session"}
    yield kj.Session.restore, {"vlm": toy, "folder": f"{folder}/none"}
    yield kj.ChunkLibrary.open, {"path": f"{folder}/other", "mode": "a", "verify": "always"}
    yield lib.put, {"item": b, "storage": "exact", "origin": kj.Origin("b.txt")}
    yield lib.put_many, {"items": [b], "storage": "exact", "origins": [None]}
    yield kj.Origin, {"file": "b.txt", "page": 1, "time": 0.5, "encoded": None}
    yield lib.export, {"to": f"{folder}/exported", "keys": [a.key]}
    yield lib.import_from, {"other": f"{folder}/exported", "keys": [a.key]}
    yield lib.resolve, {"key": a.key, "kind": "chunks"}
    for read in (lib.get, lib.get_patch, lib.patches, lib.has, lib.info, lib.find):
        yield read, {"key": a.key}
    yield lib.get_many, {"keys": [a.key]}
    yield lib.get_kv, {"key": a.key, "layers": slice(0, 1)}
    yield lib.keys, {"kind": "chunks"}
    yield lib.delete, {"key": "none"}
    yield lib.restore, {"pack": lib.packs()[0], "sharding": None}
    positions = jnp.zeros((3, 4))
    yield kj.rope.tables, {"spec": toy.spec.rope, "positions": positions}
    yield kj.rope.rotate, {"x": jnp.zeros((4, 2, 8)), "positions": positions, "spec": toy.spec.rope}
    yield kj.patch.fit, {"conditioned": b.kv, "canonical": b.kv, "length": 3, "rank": 2}
    yield kj.patch.apply, {"kv": b.kv, "factors": p.factors}
    yield a.to, {"where": jax.devices()[0]}


def every_argument():
    """Whatever stands in the place of an argument is taken, or refused by a ValueError."""
    toy = Toy()
    a, b = (kj.encode(toy, text) for text in ("abc", "xyz"))
    p = kj.form_patch(toy, b, antecedents=[a], rank=2)
    w = kj.append(kj.append(kj.Window.empty(toy, 256), a), b, p)
    others = (None, 7, -3, 1.5, float("nan"), True, "text", [3.5], object(), a, p, w, toy, jnp.zeros((2, 3)))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # a path that is taken is written to
        for function, arguments in public(toy, a, b, p, w, folder):
            for name in arguments:
                for other in others:
                    if isinstance(other, list) and name == "items":
                        continue  # what an item may be, the model says
                    try:
                        function(**(arguments | {name: other}))
                    except ValueError:
                        continue
                    except Exception as error:
                        raise AssertionError(f"{function}, {name}={other!r}") from error


if __name__ == "__main__":
    main()
    every_argument()
