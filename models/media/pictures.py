"""What users hand in, as text or as an RGB image: opened, turned upright, brought to 8 bits, over white."""

import warnings
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from models.media.files import MediaFileError, describe_undecodable, opened, read_text

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "PSD", "TIFF", "WEBP")
"""The formats of image files that are read, as far as the installed Pillow has them. None of them starts another
program, as EPS starts Ghostscript."""

MAX_PIXELS = 2**26
"""An image file of more pixels than this is not decoded; nor is one of more than ``PIL.Image.MAX_IMAGE_PIXELS``."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright."""

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""Endings of video files, which are not read here."""

WRITTEN = (".csv", ".html", ".htm", ".json", ".jsonl", ".log", ".py", ".rst", ".tex", ".xml", ".yaml", ".yml")
"""Endings of files of text that are not taken for passages of text."""

ONE_PICTURE = ("MPO", "PSD")
"""Formats whose further frames are no pages: a phone's depth and gain maps, and layers of the picture itself."""

DEEP_FORMATS = ("PNG", "PPM")
"""Formats whose images of mode I hold 16 bits, as those of mode I;16 do in every format."""

WHITE_16 = 65535

BAND = 2**20
"""Pixels that are converted together where a conversion needs arrays larger than the image."""


class ImageError(ValueError):
    """An image that cannot be encoded."""


class EmptyImageError(ImageError):
    """An image without pixels."""


class ImageFormatError(ImageError):
    """Not a PIL image, nor uint8[H, W, 3]; or pixels of which it is not known how bright they are."""


class DamagedImageError(ImageError):
    """An image whose pixels cannot be decoded: its file is cut short or broken, or was closed too early."""


class ImageSizeError(ImageError):
    """An image file of more pixels than are read (`MAX_PIXELS`), as a decompression bomb is."""


class FirstFrameWarning(UserWarning):
    """Of an animated image or a file of several pages only the first was read."""


def open_item(item: Any) -> str | Image.Image | np.ndarray:
    """Text, or an image, of what a user hands in: str is text, Path a file, PIL image or uint8[H, W, 3] an image.

    Of an animated image or a file of several pages only the first is read, and a `FirstFrameWarning` says so;
    `models.media.frames.image_frames` reads all of them. A PIL image that was moved to another frame stays there.

    Raises:
        ImageFormatError: another type, or a file that is neither an image nor UTF-8 text.
        DamagedImageError, ImageSizeError, EmptyImageError: an image that cannot be decoded; the message says why.
        MediaFileError: a path that is no regular file, or a text that is too long.
        FileNotFoundError: there is no such file.
    """
    if isinstance(item, Path):
        return _open_file(item)
    if isinstance(item, Image.Image):
        _left_out(item, "the image")
        return item
    if isinstance(item, str | np.ndarray):
        return item
    raise ImageFormatError(
        f"the item is a {type(item).__name__}; expected str (text), Path (a file), a PIL image or uint8[H, W, 3]"
    )


def _open_file(path: Path) -> str | Image.Image:
    if path.suffix.lower() in (".txt", ".md"):
        try:
            return read_text(path)
        except UnicodeDecodeError as error:
            raise ImageFormatError(describe_undecodable(path, error)) from error
    with opened(path) as file:
        if not file.read(1):
            raise ImageFormatError(f"{path} is empty: it has 0 bytes; was it written, or copied, to its end?")
        file.seek(0)
        try:
            with opened_image(file, str(path)) as image:
                _left_out(image, str(path))
                image.load()
                return to_rgb(image)
        except Exception as error:
            refuse(error, str(path))


def opened_image(file: BinaryIO, name: str) -> Image.Image:
    """The image in a file, of one of `FORMATS`; its pixels are not decoded yet.

    Raises:
        ImageSizeError: it declares more pixels than are read.
        Exception: whatever Pillow raises; see `refuse`.
    """
    Image.init()  # which lists the formats
    image = Image.open(file, formats=[each for each in FORMATS if each in Image.OPEN])
    check_pixels(image, name)
    return image


def check_pixels(image: Image.Image, name: str) -> None:
    """Raise ImageSizeError if an image file, or the frame that it stands at, has more pixels than are read."""
    most = MAX_PIXELS if Image.MAX_IMAGE_PIXELS is None else min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS)
    if image.width * image.height > most:
        raise ImageSizeError(
            f"{name} is too large: {image.width} x {image.height} pixels, expected {most} at most; cut it up or shrink "
            "it, or raise models.media.pictures.MAX_PIXELS and PIL.Image.MAX_IMAGE_PIXELS if you trust where it comes "
            "from"
        )


def frame_count(image: Image.Image) -> int:
    """How many frames or pages an opened image has that are pictures of their own.

    Raises:
        Exception: whatever Pillow makes of a file that breaks off behind its first frame, or is closed.
    """
    return 1 if image.format in ONE_PICTURE else max(1, int(getattr(image, "n_frames", 1)))


def _left_out(image: Image.Image, name: str) -> None:
    """Warn if the image has more frames than its first."""
    try:
        count = frame_count(image)
    except Exception:  # what is left out cannot be read either
        return
    if count > 1 and image.tell() == 0:
        warnings.warn(
            f"{name} has {count} frames or pages, of which only the first is read; "
            "models.media.frames.image_frames gives all of them",
            FirstFrameWarning,
            stacklevel=4,
        )


def refuse(error: Exception, name: str) -> NoReturn:
    """Raise, for what Pillow raised while it opened or decoded ``name``, the error that says what is wrong.

    Raises:
        ImageFormatError, DamagedImageError, ImageSizeError: as the error tells.
        Exception: the error itself, if it is about the file system, memory, or a warning; or an `ImageError`.
    """
    bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
    kept = isinstance(error, ImageError | MediaFileError | Warning | MemoryError) and not bomb
    if kept or (isinstance(error, OSError) and error.errno is not None):
        raise error
    if isinstance(error, UnidentifiedImageError):
        raise ImageFormatError(
            f"{name} is no image that Pillow can read here; expected an image ({', '.join(FORMATS)}), .txt or .md file"
            + _instead(Path(name).suffix.lower())
        ) from error
    if bomb:
        raise ImageSizeError(f"{name} is too large ({error}); cut it up or shrink it") from error
    raise DamagedImageError(
        f"{name} cannot be decoded ({str(error) or type(error).__name__}); is the file whole, and was it still open "
        "when the image was handed in?"
    ) from error


def _instead(ending: str) -> str:
    """What to do with a file of another kind, by the ending of its name."""
    if ending == ".pdf":
        return "; of a PDF file each page is an item: models.media.pdf.pdf_pages(path) gives them as images"
    if ending in (".heic", ".heif"):
        return "; install pillow-heif and register its opener"
    if ending in VIDEOS:
        return "; of a video hand in its frames and their times: kamera_jax.Video(frames, times)"
    if ending in WRITTEN:
        return "; to read it as text hand in its text: path.read_text()"
    return ""


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """An RGB image of any PIL image or uint8[H, W, 3] array, upright.

    It is turned as its EXIF orientation says, and transparency lies over white. Grey of 16 bits is scaled to 8, 65535
    being white: what a file stores as such, however dark, and images of the modes I;16, I and F with a value above
    255. Without one they are 8 bits already, which is what Pillow makes of mode L in those modes.

    Raises:
        EmptyImageError: it has no pixels.
        ImageFormatError: it is anything else, or its values do not say what is white.
        DamagedImageError: it cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ImageFormatError(
                f"the image is {image.dtype}{list(image.shape)}; expected uint8[H, W, 3]: {_remedy(image)}"
            )
        if not image.size:
            raise EmptyImageError(f"the image is uint8{list(image.shape)}; expected at least one pixel")
        return Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        raise ImageFormatError(f"the image is a {type(image).__name__}; expected a PIL image or uint8[H, W, 3]")
    if not (image.width and image.height):
        raise EmptyImageError(f"the image is {image.width} x {image.height} pixels; expected at least 1 x 1")
    try:
        if isinstance(image, ImageFile.ImageFile):
            check_pixels(image, "the image")
            _check_starts_nothing(image)
        image.load()
        rgb = _over_white(_eight_bits(_upright(image), image.format))
    except Exception as error:
        refuse(error, "the image")
    rgb.info = {}  # its orientation and transparency are applied: read again, it would turn the image once more
    return rgb


def _check_starts_nothing(image: ImageFile.ImageFile) -> None:
    """Raise ImageFormatError if decoding the image would start another program: Ghostscript, for EPS."""
    if image.format == "EPS" and image.tile:
        raise ImageFormatError(
            "the image is an EPS file that is not decoded yet, which would start Ghostscript; call its load() first, "
            "if you trust where it comes from, or save it as PNG"
        )


def _remedy(array: np.ndarray) -> str:
    """What makes uint8[H, W, 3] of another array."""
    if array.dtype != np.uint8:
        return "scale its values to 0 to 255 and make them uint8"
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 1):
        return "repeat grey on three channels"
    if array.ndim == 3 and array.shape[-1] == 4:
        return "hand in PIL.Image.fromarray of it, which knows transparency"
    return "rows, columns, and red, green and blue"


def _upright(image: Image.Image) -> Image.Image:
    """As `PIL.ImageOps.exif_transpose`, whose pixels these are; it also writes EXIF anew, and fails where it cannot."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises what it likes; EXIF that cannot be read does not say how to turn the image
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """Grey of more than 8 bits as mode L; other images as they are.

    Raises:
        ImageFormatError: the values do not say what is white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    factor = 255 / WHITE_16
    deep = file_format is not None and (image.mode.startswith("I;") or file_format in DEEP_FORMATS)
    if not deep:
        low = float(values.min())
        high = float(values.max())
        given = f"the image has mode {image.mode} and values from {low:g} to {high:g}"
        if not 0 <= low <= high <= WHITE_16:
            raise ImageFormatError(
                f"{given}; expected 0 to 255, or to 65535 for 16 bits: scale them, and convert the image to mode L"
            )
        if 0 < high <= 1 and (values != np.round(values)).any():
            raise ImageFormatError(
                f"{given}, of which it is not known whether 1 or 255 is white: scale them to 0 to 255, and convert the "
                "image to mode L"
            )
        if high <= 255 and image.mode == "F":
            return image.convert("L")
        factor = 1.0 if high <= 255 else factor
    levels = np.empty(values.shape, np.uint8)
    clear = image.info.get("transparency")
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = values[top : top + rows]
        levels[top : top + rows] = np.rint(band.astype(np.float64) * factor)
        if isinstance(clear, int):
            levels[top : top + rows][band == clear] = 255
    return Image.fromarray(levels)


def _over_white(image: Image.Image) -> Image.Image:
    if not (image.has_transparency_data or image.mode == "La"):
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if band.mode == "La":
            band = band.convert("LA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, band.convert("RGBA")), (0, top))
    return rgb
