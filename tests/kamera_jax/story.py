"""The whole story of a model: encode, form, append, reorder, slide, recall, query, generate, and what came of it."""

import jax
import numpy as np

import kamera_jax as kj

TEXTS = ("the sky is blue", "a star stands on the second page", "circle")


def story(vlm, mode, items=TEXTS, rank=4):
    """Every array that a user gets to see, by name, and every key."""
    a, b, c = (kj.encode(vlm, item) for item in items)
    p = kj.form_patch(vlm, b, antecedents=[a], rank=rank)
    start = kj.Window.empty(vlm, 512, mode=mode)
    w = kj.append(kj.append(start, a), b, p)
    q = kj.form_patch(vlm, c, context=w, max_bytes=max(c.nbytes // 4, 512))
    e = kj.form_patch(vlm, c, antecedents=[a, b], energy=0.9)
    w = kj.append(w, c, q)
    moved = kj.slide(kj.reorder(w, [2, 0, 1]))
    back = kj.recall(moved, c, e, at=1)
    logits = [kj.query(vlm, each, "what colour?") for each in (w, moved, back)]
    answer = kj.generate(vlm, back, "where?", max_new_tokens=3)
    sampled = kj.generate(vlm, w, "where?", max_new_tokens=2, temperature=0.7, key=jax.random.key(3), keep=False)
    full, patches = kj.form_patches(vlm, [a, b], rank=rank)
    made = {"a": a, "b": b, "c": c, "p": p, "q": q, "e": e, "w": w, "moved": moved, "back": back, "full": full}
    made |= {"logits": logits, "kept": answer.window, "patches": patches}
    arrays = {
        f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for name, each in made.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(each)
    }
    keys = [each.key for each in (a, b, c, p, q, e, *patches) if each is not None]
    keys += [*w.keys, *back.keys, *answer.window.keys, w.lineage, back.lineage, answer.window.lineage]
    return arrays, keys, (answer.tokens, sampled.tokens)


def same(one, other):
    """Raise unless two stories have the same keys, and arrays of the same bits and dtypes."""
    assert one[1] == other[1]
    assert one[2] == other[2]
    assert one[0].keys() == other[0].keys()
    for name, array in one[0].items():
        assert array.dtype == other[0][name].dtype, name
        assert array.tobytes() == other[0][name].tobytes(), name
