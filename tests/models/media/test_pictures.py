"""What users hand in becomes an upright RGB image of 8 bits, or is refused with a reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL
import pytest
from PIL import ExifTags, Image, ImageSequence

from models.media import pictures
from models.media.images import resized
from models.media.pictures import (
    DamagedImageError,
    EmptyImageError,
    FirstFrameWarning,
    ImageError,
    ImageFormatError,
    ImageSizeError,
    open_item,
    to_rgb,
)
from tests.pictures import picture

STORED = {  # where row, column of the stored image shows (EXIF 2.32, table 6), for rows x columns stored
    1: lambda r, c, rows, columns: (r, c),
    2: lambda r, c, rows, columns: (r, columns - 1 - c),
    3: lambda r, c, rows, columns: (rows - 1 - r, columns - 1 - c),
    4: lambda r, c, rows, columns: (rows - 1 - r, c),
    5: lambda r, c, rows, columns: (c, r),
    6: lambda r, c, rows, columns: (c, rows - 1 - r),
    7: lambda r, c, rows, columns: (columns - 1 - c, rows - 1 - r),
    8: lambda r, c, rows, columns: (columns - 1 - c, r),
}
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
SCALED = np.rint(RAMP / 257).astype(np.uint8)


def shown(stored, orientation):
    """The upright pixels of stored ones, one by one."""
    rows, columns = stored.shape[:2]
    upright = np.zeros((columns, rows, 3) if orientation > 4 else stored.shape, np.uint8)
    for r, c in np.ndindex(rows, columns):
        upright[STORED[orientation](r, c, rows, columns)] = stored[r, c]
    return upright


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def grey(image):
    pixels = np.asarray(to_rgb(image))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_files_are_turned_as_their_exif_says(tmp_path, kind, orientation):
    image = picture(7, 5)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path, kind, exif=turned(orientation), **options)
    with Image.open(path) as stored:
        plain = np.asarray(image if kind == "TIFF" else stored.convert("RGB"))  # Pillow turns TIFFs itself
    np.testing.assert_array_equal(open_item(path), shown(plain, orientation))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "CMYK", "I;16", "1"])
def test_images_are_turned_as_their_exif_says(mode, orientation):
    """The EXIF is in the image, and no file was ever there."""
    image = picture(7, 5, mode)
    plain = np.asarray(to_rgb(image))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    upright = to_rgb(image)
    np.testing.assert_array_equal(upright, shown(plain, orientation))
    np.testing.assert_array_equal(to_rgb(upright), upright)  # once, not twice


def test_a_draft_is_turned_too(tmp_path):
    path = tmp_path / "image.jpg"
    picture(64, 32).save(path, exif=turned(6))
    with Image.open(path) as image:
        image.draft("RGB", (32, 16))
        assert image.size == (32, 16)
        assert to_rgb(image).size == (16, 32)


@pytest.mark.parametrize("orientation", [0, 9, "6", (6,), 6.5])
def test_an_orientation_that_is_none_turns_nothing(orientation):
    image = picture(7, 5)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    assert to_rgb(image).size == (7, 5)


def test_exif_that_cannot_be_read_turns_nothing():
    image = picture(7, 5)
    image.info["exif"] = b"no EXIF at all"
    np.testing.assert_array_equal(to_rgb(image), image)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_a_ramp_of_16_bits_keeps_its_levels(mode):
    values = RAMP.astype({"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}[mode])
    image = Image.fromarray(values)
    assert image.mode == mode
    np.testing.assert_array_equal(grey(image), SCALED)


@pytest.mark.parametrize("kind, mode", [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I;16")])
def test_a_file_of_16_bits_keeps_its_levels_however_dark(tmp_path, kind, mode):
    for values, expected in ((RAMP, SCALED), (RAMP // 256, SCALED[:1] + np.zeros((256, 1), np.uint8))):
        path = tmp_path / f"image.{kind.lower()}"
        Image.fromarray(values.astype(">u2" if mode == "I;16B" else "<u2")).save(path, kind)
        expected = np.rint(values / 257).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(open_item(path))[..., 0], expected)
        with Image.open(path) as image:
            np.testing.assert_array_equal(grey(image), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_values_of_8_bits_stay(mode):
    """What Pillow makes of mode L."""
    image = picture(19, 17, "L")
    np.testing.assert_array_equal(grey(image.convert(mode)), image)


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 2), -1, np.int32),
        np.full((2, 2), 65536, np.int32),
        np.full((2, 2), 70000.0, np.float32),
        np.full((2, 2), np.nan, np.float32),
        np.full((2, 2), np.inf, np.float32),
        np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2),
    ],
)
def test_brightness_that_is_not_known_is_refused(values):
    with pytest.raises(ImageFormatError, match="has mode [IF] and values from .* convert the image to mode L"):
        to_rgb(Image.fromarray(values))


def png(width, bits, colour, row, *chunks):
    """A PNG file of one row."""
    made = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)), *chunks]
    made += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in made]
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(body)))


def test_a_transparent_grey_of_16_bits_lies_on_white():
    image = png(3, 16, 0, struct.pack(">HHH", 1000, 40000, 1001), (b"tRNS", struct.pack(">H", 1000)))
    np.testing.assert_array_equal(grey(image), [[255, round(40000 / 257), round(1001 / 257)]])


def test_transparency_lies_on_white_in_every_mode():
    half = Image.new("RGBA", (3, 2), (10, 20, 30, 128))
    over = tuple(round((c * 128 + 255 * 127) / 255) for c in (10, 20, 30))
    assert to_rgb(half).getpixel((0, 0)) == over
    assert np.abs(np.asarray(to_rgb(half.convert("RGBa")), int)[0, 0] - over).max() <= 1
    assert to_rgb(Image.new("LA", (3, 2), (7, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("LA", (3, 2), (7, 0)).convert("La")).getpixel((0, 0)) == (255, 255, 255)
    plain = Image.new("RGB", (2, 1), (1, 2, 3))
    plain.info["transparency"] = (1, 2, 3)
    assert to_rgb(plain).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "kind, palette, transparency",
    [
        ("RGB", [9, 9, 9, 50, 60, 70, 1, 2, 3], bytes([0, 255])),
        ("RGB", [9, 9, 9, 50, 60, 70, 1, 2, 3], 0),
        ("RGBA", [9, 9, 9, 0, 50, 60, 70, 255, 1, 2, 3, 255], None),
    ],
)
def test_transparency_of_a_palette_lies_on_white(kind, palette, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette(palette, kind)
    if transparency is not None:
        image.info["transparency"] = transparency
    np.testing.assert_array_equal(to_rgb(image), [[[255, 255, 255], [50, 60, 70], [1, 2, 3]]])


def test_transparency_that_fits_no_mode_is_refused():
    image = picture(3, 3, "L")
    image.info["transparency"] = b"\0\1"
    with pytest.raises(DamagedImageError, match="cannot be decoded"):
        to_rgb(image)


@pytest.mark.parametrize("mode", ["RGBX", "HSV", "YCbCr", "CMYK", "1", "I;16L", "I;16N"])
def test_other_modes_convert_as_pillow_does(mode):
    image = picture(5, 4, "L").convert("RGB" if mode in ("RGBX", "HSV") else "L").convert(mode)
    np.testing.assert_array_equal(to_rgb(image), image.convert("RGB"))


@pytest.mark.parametrize(
    "array, remedy",
    [
        (np.zeros((5, 4), np.uint8), "repeat grey on three channels"),
        (np.zeros((5, 4, 1), np.uint8), "repeat grey on three channels"),
        (np.zeros((5, 4, 4), np.uint8), "knows transparency"),
        (np.zeros((3, 5, 7), np.uint8), "rows, columns"),
        (np.zeros((1, 5, 4, 3), np.uint8), "rows, columns"),
        *((np.zeros((5, 4, 3), kind), "make them uint8") for kind in (bool, np.uint16, np.float32, np.int8, np.int64)),
    ],
)
def test_arrays_that_are_no_image_say_what_to_do(array, remedy):
    with pytest.raises(ImageFormatError, match=rf"expected uint8\[H, W, 3\]: .*{remedy}"):
        to_rgb(array)


def test_arrays_need_not_lie_in_one_piece():
    array = np.asarray(picture(12, 10))
    for view in (array[::-1, ::2], array[..., ::-1], np.asfortranarray(array), array.swapaxes(0, 1)):
        np.testing.assert_array_equal(to_rgb(view), np.ascontiguousarray(view))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_is_cut_short_is_named(tmp_path, kind, share):
    path = tmp_path / f"cut.{kind.lower()}"
    picture(100, 90).save(path, kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DamagedImageError, match=r"cut\.\w+ cannot be decoded"):
        open_item(path)


def test_an_image_that_was_closed_is_refused(tmp_path):
    picture(9, 9).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as never_read:
        pass
    gone = picture(9, 9)
    gone.close()
    for image in (never_read, gone):
        with pytest.raises(DamagedImageError, match="still open"):
            to_rgb(image)
    with Image.open(tmp_path / "a.png") as read:
        read.load()
    np.testing.assert_array_equal(to_rgb(read), picture(9, 9))


def test_what_is_no_image_is_named(tmp_path):
    for name, match in (("a.png", "expected an image"), ("b.heic", "pillow-heif"), ("c.txt", "UTF-8")):
        (tmp_path / name).write_bytes(b"\xff\xfe no picture")
        with pytest.raises(ImageFormatError, match=rf"{name}.*{match}"):
            open_item(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"d\.png"):
        open_item(tmp_path / "d.png")
    with pytest.raises(ImageFormatError, match="the item is a bytes"):
        open_item(b"bytes")
    with pytest.raises(EmptyImageError, match="at least 1 x 1"):
        open_item(Image.new("RGB", (0, 5))) and to_rgb(Image.new("RGB", (0, 5)))


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    picture(30, 30).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ImageSizeError, match=r"bomb\.png is too large"):
        open_item(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageSizeError, match=r"bomb\.png is too large"):  # Pillow only warns of it
        open_item(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    assert open_item(tmp_path / "bomb.png").size == (30, 30)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 899)
    with pytest.raises(ImageSizeError, match=r"30 x 30 pixels, expected 899 at most"):
        open_item(tmp_path / "bomb.png")
    with Image.open(tmp_path / "bomb.png") as lazy, pytest.raises(ImageSizeError, match="expected 899 at most"):
        to_rgb(lazy)


def test_every_refusal_is_a_value_error():
    for kind in (EmptyImageError, ImageFormatError, DamagedImageError, ImageSizeError):
        assert issubclass(kind, ImageError) and issubclass(kind, ValueError)


@pytest.fixture(params=["GIF", "PNG", "WEBP", "TIFF"])
def animated(request, tmp_path):
    path = tmp_path / f"film.{request.param.lower()}"
    frames = [Image.new("RGB", (8, 6), (80 * i, 0, 255 - 80 * i)) for i in range(3)]
    options = {"WEBP": {"lossless": True}}.get(request.param, {})
    frames[0].save(path, request.param, save_all=True, append_images=frames[1:], **options)
    return path


def test_reading_the_first_frame_alone_is_said(animated):
    with pytest.warns(FirstFrameWarning, match=r"film\.\w+ has 3 frames or pages, of which only the first is read"):
        first = open_item(animated)
    assert first.getpixel((0, 0)) == (0, 0, 255)
    with Image.open(animated) as image:
        with pytest.warns(FirstFrameWarning, match="the image has 3 frames"):
            open_item(image)
        image.seek(2)  # a choice
        assert to_rgb(open_item(image)).getpixel((0, 0)) == (160, 0, 95)
        copies = [frame.copy() for frame in ImageSequence.Iterator(image)]
    assert [to_rgb(open_item(copy)).getpixel((0, 0))[0] for copy in copies] == [0, 80, 160]


def test_one_picture_says_nothing(tmp_path):
    """A phone's photograph with a depth map behind it is one picture."""
    picture(8, 6).save(tmp_path / "photo.mpo", save_all=True, append_images=[picture(4, 3)])
    with Image.open(tmp_path / "photo.mpo") as image:
        assert image.format == "MPO" and image.n_frames == 2 and pictures.frame_count(image) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_item(tmp_path / "photo.mpo").size == (8, 6)


SIZES = [
    ((9, 7), (9, 7)),
    ((40, 400), (100, 100)),
    ((400, 40), (100, 100)),
    ((40, 40), (90, 110)),
    ((60, 300), (50, 80)),
    ((5, 640), (14, 384)),
    ((3, 900), (2, 60)),
    ((1, 1), (28, 28)),
    ((1, 300), (9, 1)),
]


def bicubic(levels, size):
    """Pillow's bicubic resampling of one axis (the first) of u8 levels, in float64 and rounded once."""
    length = len(levels)
    scale = length / size
    support = 2.0 * max(scale, 1.0)
    out = np.zeros((size, *levels.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * scale
        rows = np.arange(max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length))
        x = np.abs((rows + 0.5 - centre) / max(scale, 1.0))
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        out[i] = np.tensordot(weights / weights.sum(), levels[rows].astype(np.float64), 1)
    return np.clip(np.floor(out + 0.5), 0, 255)


@pytest.mark.parametrize("before, after", SIZES)
def test_images_are_resized_width_first(before, after):
    """Whatever the Pillow: compared with its filter, one axis after the other, each rounded to 8 bits."""
    image = picture(*before)
    by_width = bicubic(np.asarray(image).swapaxes(0, 1), after[0]).swapaxes(0, 1)
    given = np.asarray(resized(image, *after), np.float64)
    # Pillow has its weights in fixed point, so that what lies near a half may round the other way.
    assert np.abs(given - bicubic(by_width, after[1])).max() <= 1
    assert (given != bicubic(by_width, after[1])).mean() < 0.02
    single = np.asarray(image.resize((after[0], before[1]), Image.Resampling.BICUBIC).resize(after, 3), np.float64)
    np.testing.assert_array_equal(given, single)


def test_where_the_installed_pillow_resizes_height_first():
    """As `resized` says of Pillow 13, and of those before it."""
    version = tuple(map(int, PIL.__version__.split(".")[:2]))
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(400):
        before, after = (tuple(np.exp(rng.uniform(0, np.log(250), 2)).astype(int).tolist()) for _ in range(2))
        image = picture(*before)
        apart = not np.array_equal(image.resize(after, Image.Resampling.BICUBIC), resized(image, *after))
        shrinks = before[1] - after[1]
        narrows = before[0] - after[0]
        if version >= (13, 0):
            first = shrinks > 0 and shrinks > 2 * narrows and narrows != 0  # with one pass there is no order
        else:
            first = version >= (12, 2) and shrinks > 0 and before[1] > 100 * before[0]
        assert first or not apart, (before, after)
        shown.append((first, apart))
    if version >= (13, 0):
        assert (
            sum(apart for _, apart in shown) > 0.7 * sum(first for first, _ in shown) > 50
        )  # 1 or 2 pixels agree by chance
