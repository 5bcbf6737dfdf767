"""Images of noise, files that declare whatever they like, and Pillow with one order of resizing."""

import struct
import zlib
from contextlib import contextmanager

import numpy as np
from PIL import Image

MODES = ("L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")


def picture(width, height, mode="RGB"):
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode) if mode != "P" else Image.fromarray(noise[..., :3]).quantize(16)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width, height, depth=8, colour=2):
    """A PNG file that declares these pixels, and has a few."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(999))) + png_chunk(b"IEND", b"")


PAGES = b"<</Type/Catalog/Pages 2 0 R>>"
ENCRYPTED = b"/Encrypt<</Filter/Standard/V 1/R 2/O(%b)/U(%b)/P -4>>/ID[(%b)(%b)]" % (
    *(b"x" * 32, b"y" * 32),
    *(b"a" * 16, b"a" * 16),
)


def pdf_page(width, height, more=b""):
    return b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %d %d]%b>>" % (width, height, more)


def pdf(*objects):
    """A PDF file of these objects, of which the first is the catalogue."""
    out = b"%PDF-1.4\n"
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    table = b"xref\n0 %d\n0000000000 65535 f \n%b" % (len(objects) + 1, table)
    return out + table + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))


def pdf_image(width, height):
    """A PDF file of a page with an image of so many pixels, all of them black."""
    row = zlib.compressobj(1)
    pixels = b"".join([row.compress(bytes(width)) for _ in range(height)]) + row.flush()
    about = b"/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8/Filter/FlateDecode" % (width, height)
    image = b"<</Type/XObject/Subtype/Image%b/Length %d>>stream\n%b\nendstream" % (about, len(pixels), pixels)
    drawn = b"<</Length 30>>stream\nq 100 0 0 100 0 0 cm /I Do Q\nendstream"
    more = b"/Resources<</XObject<</I 4 0 R>>>>/Contents 5 0 R"
    return pdf(PAGES, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", pdf_page(100, 100, more), image, drawn)


_resize = Image.Image.resize


@contextmanager
def width_first():
    """Pillow as it was before 12.2: `Image.resize` takes the width first. Gives the sizes for which it now does not."""
    unlike = []

    def resize(image, size, resample=None, box=None, reducing_gap=None):
        size = tuple(int(side) for side in size)
        assert resample in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
        assert (box, reducing_gap) == (None, None)
        both = _resize(_resize(image, (size[0], image.height), resample), size, resample)
        if not np.array_equal(both, _resize(image, size, resample)):
            unlike.append((image.size, size))
        return both

    Image.Image.resize = resize
    try:
        yield unlike
    finally:
        Image.Image.resize = _resize


def pdf_text(*pages):
    """A PDF file of pages with these lines of text each, in bytes as PDF writes them; without lines a page is empty."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * place) for place in range(len(pages)))
    objects = [PAGES, b"<</Type/Pages/Kids[%b]/Count %d>>" % (kids, len(pages))]
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>")
    for place, lines in enumerate(pages):
        drawn = b"BT /F1 6 Tf 4 50 Td 8 TL " + b" ".join(b"(%b) Tj T*" % line for line in lines) + b" ET"
        more = b"/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R" % (5 + 2 * place)
        objects += [pdf_page(84, 56, more), b"<</Length %d>>stream\n%b\nendstream" % (len(drawn), drawn)]
    return pdf(*objects)
