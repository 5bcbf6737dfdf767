"""Images of noise, for preprocessing tests."""

import numpy as np
from PIL import Image

MODES = ("L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")


def picture(width, height, mode="RGB"):
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode) if mode != "P" else Image.fromarray(noise[..., :3]).quantize(16)
