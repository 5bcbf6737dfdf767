"""Calls that are wrong, as a user makes them: run as a program, where annotations are not checked."""

import re

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from kamera_jax.errors import ArgumentError, DonatedError
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


def main():
    toy = Toy()
    a, b = (kj.encode(toy, text) for text in ("abc", "xyz"))
    p = kj.form_patch(toy, b, antecedents=[a], rank=np.int64(2))
    assert kj.form_patch(toy, b, antecedents=[a], rank=jnp.int32(2)).key == p.key
    w = kj.append(kj.Window.empty(toy, np.int64(128)), a)
    key = jax.random.key(0)

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

    vlm = load("kamera-tiny-gqa")
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    assert vlm.prepare(jnp.asarray(image)).content == vlm.prepare(image).content
    assert vlm.prepare([jnp.asarray(image), "text"]).content == vlm.prepare([image, "text"]).content
    refused(lambda: vlm.prepare(jnp.asarray(image, jnp.float32)), ValueError, "expected uint8")
    refused(lambda: load("kamera-tiny-gqa", mesh=jax.devices()[0]), ValueError, "expected a jax.sharding.Mesh")


if __name__ == "__main__":
    main()
