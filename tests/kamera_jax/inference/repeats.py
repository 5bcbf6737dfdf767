"""Videos whose frames repeat, and windows of what they give."""

import numpy as np

import kamera_jax as kj

CAPACITY = 256
ROUNDING = 1e-5
QUESTION = "which cell is red ?"
TIMES = np.arange(8) / 2
MODES = ["materialise", "in_place"]
POLICY = kj.ReusePolicy()


def near(ours, theirs, bound=ROUNDING):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= bound * max(np.abs(theirs).max(), 1e-9)


def clip(seed=0, changes=(1, 3)):
    """Four temporal patches of 2 x 3 places, each the one before but for the places that change, from the second on."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 256, (2, 28, 3, 28, 3), dtype=np.uint8)
    frames = []
    for patch in range(4):
        if patch:
            shown = shown.copy()
            for place in changes:
                shown[place // 3, :, place % 3] = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        frames += [shown.reshape(56, 84, 3)] * 2
    return kj.Video(np.stack(frames), TIMES)


def window_of(vlm, mode, *chunks, capacity=CAPACITY):
    window = kj.Window.empty(vlm, capacity, mode=mode)
    for chunk in chunks:
        window = kj.append(window, chunk)
    return window
