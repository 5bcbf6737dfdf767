"""Images of noise, for preprocessing tests, and Pillow with one order of resizing."""

from contextlib import contextmanager

import numpy as np
from PIL import Image

MODES = ("L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")


def picture(width, height, mode="RGB"):
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode) if mode != "P" else Image.fromarray(noise[..., :3]).quantize(16)


_resize = Image.Image.resize


@contextmanager
def width_first():
    """Pillow as it was before 12.2: `Image.resize` takes the width first. Gives the sizes for which it now does not."""
    unlike = []

    def resize(image, size, resample=None, box=None, reducing_gap=None):
        size = tuple(int(side) for side in size)
        assert (resample, box, reducing_gap) == (Image.Resampling.BICUBIC, None, None)
        both = _resize(_resize(image, (size[0], image.height), resample), size, resample)
        if not np.array_equal(both, _resize(image, size, resample)):
            unlike.append((image.size, size))
        return both

    Image.Image.resize = resize
    try:
        yield unlike
    finally:
        Image.Image.resize = _resize
