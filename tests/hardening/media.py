"""Media files with faults: each is read right, or refused by a name of this project's own, in time and memory.

A case is a good file of one kind and what is done to it: bytes flipped, cut off, spliced from another file or set to
extremes, a declared size that is a bomb, a wrong ending, or something in its place that is no file at all.
"""

import io
import multiprocessing
import os
import struct
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from eval.commands.items import sources
from kamera_jax.errors import ModelLengthError
from models import load
from models.media.files import MediaFileError
from models.media.pdf import PdfError
from models.media.pictures import ImageError
from models.preprocessor import ItemError, Preprocessed
from tests.pictures import ENCRYPTED, PAGES, pdf, pdf_image, pdf_page, picture, png_header

NAMED = (ImageError, MediaFileError, PdfError, ItemError, ModelLengthError, FileNotFoundError)
"""What may be raised."""

KINDS = ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "pdf", "txt")
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
FAULTS = ("flip", "cut", "splice", "extreme", "repeat", "drop", "ending", "none")
SPECIAL = (
    *("pipe", "folder", "dangling", "loop", "device", "empty", "bomb-png", "bomb-bmp", "bomb-gif", "bomb-ppm"),
    *("bomb-tif", "bomb-jpg", "bomb-webp", "bomb-pdf", "huge-page", "ring", "locked", "no-page", "long-text"),
    *("sparse-text", "eps", "wmf", "thin", "frames", "surrogates", "turned", "cmyk", "deep", "grey-alpha"),
)


@cache
def good(kind, number):
    """The bytes of a small good file."""
    image = picture(20 + 3 * number, 16 + 5 * number)
    out = io.BytesIO()
    if kind == "txt":
        return ("the page is red ä " * (1 + number)).encode()
    if kind == "pdf":
        if number % 2:
            return pdf(PAGES, b"<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>", pdf_page(90, 60), pdf_page(60, 90))
        image.save(out, "PDF", resolution=72)
    elif kind == "jpg":
        image.save(out, "JPEG", progressive=bool(number % 2))
    elif kind == "gif":
        image.save(out, "GIF", save_all=True, append_images=[image.rotate(180)] * (number % 3))
    elif kind == "webp":
        image.save(
            out, "WEBP", lossless=bool(number % 2), save_all=True, append_images=[image.rotate(9)] * (number % 3)
        )
    elif kind == "tif":
        compression = ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")[number % 5]
        image.save(out, "TIFF", compression=compression, save_all=True, append_images=[image] * (number % 2))
    elif kind == "png":
        mode = ("RGB", "P", "LA", "I;16", "1")[number % 5]
        picture(20, 16, mode).save(out, "PNG")
    else:
        image.save(out, {"bmp": "BMP", "ppm": "PPM"}[kind])
    return out.getvalue()


@cache
def reader():
    """The host's part of a small model: tokenizer and preprocessing, with no forward."""
    return load("kamera-tiny-gqa").preprocess


if multiprocessing.parent_process() is not None:
    reader()  # in a worker, before the first case's time begins


def cases(folder, count, seed):
    """Special ones first, then faults of files of every kind, drawn."""
    rng = np.random.default_rng(seed)
    drawn = [("special", name, 0) for name in SPECIAL[:count]]
    while len(drawn) < count:
        kind = str(rng.choice(KINDS))
        drawn.append((str(rng.choice(FAULTS)), kind, int(rng.integers(2**31))))
    return drawn


def judge(case, folder):
    """ "" where the file is read, or refused by name."""
    fault, kind, seed = case
    path, expected = _special(kind, folder) if fault == "special" else (_faulty(fault, kind, seed, folder), None)
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            (source,) = sources([path.parent if path.is_dir() else path], dpi=72, frames="all")
            read = [_checked(reader()(item)) for _, item in source.items()]
    except NAMED as error:
        if not str(error) or type(error).__module__ == "builtins" and error.errno is not None:
            return f"unnamed: {error!r}"
        return "wrong: refused" if expected is True or fault == "none" else ""
    except Exception as error:
        return f"unnamed: {error!r}"[:400]
    if expected is False:
        return f"wrong: read {read}"
    return ""


def _checked(item):
    assert isinstance(item, Preprocessed)
    return len(item.spans)


def _faulty(fault, kind, seed, folder):
    rng = np.random.default_rng(seed)
    content = bytearray(good(kind, int(rng.integers(10))))
    ending = kind
    if fault == "flip":
        for at in rng.integers(0, len(content), int(rng.integers(1, 9))):
            content[at] ^= 1 << int(rng.integers(8))
    elif fault == "cut":
        del content[int(rng.integers(len(content))) :]
    elif fault == "splice":
        other = good(str(rng.choice(KINDS)), int(rng.integers(10)))
        at = int(rng.integers(len(content)))
        content[at:] = other[int(rng.integers(len(other))) :]
    elif fault == "extreme":
        for _ in range(int(rng.integers(1, 4))):
            form = str(rng.choice(["<I", ">I", "<H", ">H", "B"]))
            size = struct.calcsize(form)
            at = int(rng.integers(max(1, min(len(content), 200) - size)))
            value = int(rng.choice(EXTREMES)) % 256**size
            content[at : at + size] = struct.pack(form, value)
    elif fault == "repeat":
        at = int(rng.integers(len(content)))
        content[at:at] = content[at : at + 40] * int(rng.integers(1, 2000))
    elif fault == "drop":
        at = int(rng.integers(len(content)))
        del content[at : at + int(rng.integers(1, 30))]
    elif fault == "ending":
        ending = str(rng.choice(KINDS))
    path = folder / f"a.{ending}"
    path.write_bytes(bytes(content))
    return path


def _special(name, folder):
    """The path of what is no usual file, and whether it is to be read: True, False, or None for either."""
    path = folder / "a.png"
    outcome = False
    made = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to("nowhere"),
        "loop": lambda: path.symlink_to(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "empty": path.touch,
        "eps": lambda: picture(9, 9).save(path, "EPS"),
        "wmf": lambda: path.write_bytes(b"\xd7\xcd\xc6\x9a" + bytes(60)),
    }
    if name in made:
        made[name]()
        return path, outcome
    content, ending, outcome = _content(name)
    path = Path(folder) / f"a.{ending}"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path, outcome


def _content(name):
    if name.startswith("bomb-"):
        return _bomb(name[5:]), name[5:], False
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    locked = pdf(PAGES, pages, pdf_page(10, 10)).replace(b"/Root 1 0 R", b"/Root 1 0 R" + ENCRYPTED)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "huge-page": (pdf(PAGES, pages, pdf_page(14_400, 14_400)), "pdf", True),
        "ring": (pdf(PAGES, b"<</Type/Pages/Kids[2 0 R]/Count 9>>"), "pdf", False),
        "locked": (locked, "pdf", False),
        "no-page": (pdf(PAGES, b"<</Type/Pages/Kids[]/Count 0>>"), "pdf", False),
        "long-text": (b"the page is red " * 60_000, "txt", False),
        "sparse-text": (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**8), "txt", False),
        "thin": (lambda path: Image.new("L", (1, 60_000)).save(path), "png", False),
        "frames": (good("tif", 1), "tif", True),
        "surrogates": (b"a" + b"\xed\xa0\x80", "txt", False),
        "turned": (lambda path: picture(40, 20).save(path, exif=exif), "jpg", True),
        "cmyk": (lambda path: picture(40, 20, "CMYK").save(path), "jpg", True),
        "deep": (lambda path: picture(40, 20, "I;16").save(path), "png", True),
        "grey-alpha": (lambda path: picture(40, 20, "LA").save(path), "png", True),
    }[name]


def _jpeg(width, height):
    content = bytearray(good("jpg", 0))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _tiff(width, height):
    content = bytearray(good("tif", 0))
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", content, place)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", content, place, tag, 4, 1, width if tag == 256 else height)
    return bytes(content)


def _bomb(kind):
    """A small file that declares thousands of millions of pixels."""
    wide = struct.pack("<ii", 60_000, 60_000)
    return {
        "png": lambda: png_header(60_000, 60_000),
        "bmp": lambda: good("bmp", 0)[:18] + wide + good("bmp", 0)[26:],
        "gif": lambda: b"GIF89a\xff\xff\xff\xff" + good("gif", 0)[10:],
        "ppm": lambda: b"P6 60000 60000 255\n" + bytes(99),
        "tif": lambda: _tiff(60_000, 60_000),
        "jpg": lambda: _jpeg(65_000, 65_000),
        "webp": lambda: b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + bytes(60),
        "pdf": lambda: pdf_image(9_000, 9_000),
    }[kind]()
