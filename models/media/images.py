"""Images on their way to a vision tower: what the preprocessing of every port shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from models.hub.fields import Fields, UnsupportedConfigError
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

__all__ = [
    "MAX_ASPECT",
    "AspectRatioError",
    "DamagedImageError",
    "EmptyImageError",
    "FirstFrameWarning",
    "ImageError",
    "ImageFormatError",
    "ImagePatches",
    "ImageSizeError",
    "PatchConfig",
    "PatchLimitError",
    "check_aspect",
    "check_image_size",
    "check_merged_grid",
    "check_whole_patches",
    "cropped_patches",
    "normalise",
    "padded_and_resized",
    "open_item",
    "pad_to_square",
    "preprocessor_fields",
    "raster_patches",
    "resized",
    "take_normalisation",
    "take_per_channel",
    "take_square",
    "to_rgb",
]

VERSION = 2
"""Of what becomes of an image's pixels; it enters a chunk's content digest, so that older chunks are not taken for new.

1 resized as the installed Pillow did. 2 resizes width first, whatever the Pillow; turns images as their EXIF says, and
scales grey images of 16 bits.
"""

MAX_SQUARE_PIXELS = 2**24
"""An image that would be padded to a square of more pixels than this is shrunk first."""

MAX_BETWEEN = 2**26
"""Pixels of an image of which one side is resized and the other not yet, at most, unless the other order has more."""

MAX_ASPECT = 200
"""Longer side over shorter side, at most, where an image's shape is kept."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class AspectRatioError(ImageError):
    """An image too long and thin to resize."""


class PatchLimitError(ImageError):
    """An image of more patches along a side than the vision tower has positions for."""


@dataclass(frozen=True)
class PatchConfig:
    """What every port's image settings begin with.

    Attributes:
        patch_size: pixels along a side of a patch.
        mean, std: of the normalisation, per channel.
        rescale: factor on pixel values before it.
    """

    patch_size: int = 14
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale: float = 1 / 255


@dataclass(frozen=True)
class ImagePatches:
    """An image ready for a vision tower.

    Attributes:
        patches: normalised pixels, f32[P, C], a patch as the convolution kernel has it (channel, frame if the kernel
            has frames, row, column); their order is the port's: raster, or all patches of a merged token together.
        grid: frames, rows and columns of patches.
    """

    patches: Float32[np.ndarray, "P C"]
    grid: tuple[int, int, int]


def preprocessor_fields(
    mapping: Mapping[str, Any], *processors: str, resample: int = int(Image.Resampling.BICUBIC)
) -> Fields:
    """The fields of a ``preprocessor_config.json``, less those that mean the same in every port.

    Args:
        mapping: the file.
        processors: image processors of transformers that compute what the port does, without ``Fast`` or ``Pil``.
        resample: the number of the filter that images are resized by.

    Raises:
        UnsupportedConfigError: a value that asks for other preprocessing, named.
    """
    fields = Fields("preprocessor_config.json", mapping)
    fields.expect("image_processor_type", *(name + suffix for name in processors for suffix in ("", "Fast", "Pil")))
    for switch in ("do_resize", "do_rescale", "do_normalize"):
        fields.expect(switch, True)
    fields.expect("resample", resample)
    fields.expect("data_format", "channels_first")
    fields.ignore("processor_class", "disable_grouping", "device", "return_tensors", "_valid_processor_keys")
    return fields


def take_per_channel(
    fields: Fields, name: str, default: tuple[float, ...], *, above_zero: bool = False, colour: bool = False
) -> tuple[float, ...]:
    """A field of three finite numbers: red, green, blue.

    Args:
        fields: the file's.
        name: of the field.
        default: where it is absent.
        above_zero: whether each must be.
        colour: whether each must be from 0 to 1, as something is painted with them.

    Raises:
        UnsupportedConfigError: it is something else.
    """
    values = fields.take(name, list, list(default))
    if len(values) != 3:
        raise UnsupportedConfigError(f"{fields.section}: {name} is {values!r:.200}; expected 3 numbers (RGB)")
    each = Fields(fields.section, {f"{name}[{place}]": value for place, value in enumerate(values)})
    channels = tuple((each.positive if above_zero else each.number)(f"{name}[{place}]") for place in range(3))
    if colour and not all(0 <= value <= 1 for value in channels):
        raise UnsupportedConfigError(
            f"{fields.section}: {name} is {values!r:.200}; expected numbers from 0 to 1: it is the colour of padding"
        )
    return channels


def take_normalisation(fields: Fields, config: type[PatchConfig], *, colour: bool = False) -> dict[str, Any]:
    """The fields of a `PatchConfig` about pixel values, with the defaults of ``config``.

    Args:
        fields: the file's.
        config: the port's.
        colour: whether the mean is a colour that something is painted with.

    Raises:
        UnsupportedConfigError: one is no three numbers, a deviation or the factor is not above 0, or a colour none.
    """
    return {
        "mean": take_per_channel(fields, "image_mean", config.mean, colour=colour),
        "std": take_per_channel(fields, "image_std", config.std, above_zero=True),
        "rescale": fields.positive("rescale_factor", config.rescale),
    }


def take_square(fields: Fields, name: str, default: int) -> int:
    """A field that is a square's side, as a number or as height and width.

    Raises:
        UnsupportedConfigError: height and width differ, or it is no size.
        UnknownConfigFieldError: it is sized some other way, named.
    """
    if not isinstance(fields.rest.get(name), Mapping):
        return fields.size(name, default)
    sides = Fields(f"{fields.section}: {name}", fields.take(name, dict))
    height = sides.size("height", default)
    width = sides.size("width", default)
    sides.close()
    if height != width:
        raise UnsupportedConfigError(f"{sides.section} is {width} x {height}; only a square is supported")
    return height


def check_aspect(width: int, height: int) -> None:
    """Refuse an image that is too long and thin: it would be resized, cropped or padded at a size out of all bounds.

    Raises:
        AspectRatioError: one side is more than `MAX_ASPECT` times the other.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise AspectRatioError(
            f"the image is {width} x {height} pixels; expected sides within a factor of {MAX_ASPECT}: cut it up"
        )


def check_merged_grid(rows: int, columns: int, merge: int) -> None:
    """Refuse a grid of patches that merged tokens do not tile.

    Raises:
        ValueError: it is empty, or not a whole number of merged tokens.
    """
    if rows < 1 or columns < 1 or rows % merge or columns % merge:
        raise ValueError(f"the grid is {rows} x {columns} patches; expected positive multiples of {merge}")


def check_whole_patches(side: int, patch_size: int) -> None:
    """Refuse a square that patches do not tile.

    Raises:
        UnsupportedConfigError: the side is no multiple of the patch's.
    """
    if side % patch_size:
        raise UnsupportedConfigError(
            f"preprocessor_config.json asks for {side} x {side} pixels; expected a multiple of the vision tower's "
            f"patch_size {patch_size}"
        )


def check_image_size(side: int, image_size: int) -> None:
    """Refuse images of another size than the tower has learned positions for; transformers interpolates these.

    Raises:
        UnsupportedConfigError: the sides differ.
    """
    if side != image_size:
        raise UnsupportedConfigError(
            f"preprocessor_config.json: size is {side} x {side} pixels; expected what the vision tower has positions "
            f"for (vision_config: image_size), {image_size} x {image_size}"
        )


def resized(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """An RGB image resized, width first, then height: the same pixels from every Pillow.

    Each pass rounds to 8 bits, so their order shows. Pillow up to 12.1 takes the width first; 12.2 and 12.3 too, save
    where the height of an image more than 100 times as tall as wide shrinks. Pillow 13 takes the height first where the
    height shrinks, and by more than twice as many pixels as the width does; by any number where the width grows. There,
    and only there, transformers on such a Pillow has other pixels. The height is also taken first where the image would
    have more than `MAX_BETWEEN` pixels in between.

    Args:
        image: in RGB.
        width, height: of the result, in pixels.
        resample: the filter; most ports' is bicubic interpolation.
    """
    if width * image.height > max(MAX_BETWEEN, image.width * height):
        return image.resize((image.width, height), resample).resize((width, height), resample)
    return image.resize((width, image.height), resample).resize((width, height), resample)


def pad_to_square(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """An RGB image in the middle of a square as large as its longer side, over the normalisation's mean colour."""
    side = max(image.size)
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def padded_and_resized(image: Image.Image, side: int, mean: tuple[float, ...]) -> Image.Image:
    """An RGB image padded to a square (`pad_to_square`), and this resized to ``side`` x ``side`` pixels.

    Where the square would have more than `MAX_SQUARE_PIXELS`, the image is shrunk first and padded then: the same
    picture, up to its border with the padding, where less than a pixel of each is mixed.
    """
    longer = max(image.size)
    if longer**2 <= MAX_SQUARE_PIXELS or longer <= side:
        return resized(pad_to_square(image, mean), side, side)
    width, height = (max(1, round(side * each / longer)) for each in image.size)
    return pad_to_square(resized(image, width, height), mean)


def normalise(image: Image.Image, config: PatchConfig) -> Float32[np.ndarray, "H W 3"]:
    """The pixels of an RGB image, rescaled and normalised with the rounding of transformers."""
    # 256 values per channel: the table keeps HF's f64 rescale and f32 normalisation at the price of a look-up.
    levels = (np.arange(256, dtype=np.float64) * config.rescale).astype(np.float32)
    table = (levels[:, None] - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)
    return table[np.asarray(image), np.arange(3)]


def raster_patches(image: Image.Image, config: PatchConfig) -> ImagePatches:
    """An RGB image of whole patches, normalised and cut row by row."""
    patch = config.patch_size
    rows = image.height // patch
    columns = image.width // patch
    blocks = normalise(image, config).reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    return ImagePatches(blocks.reshape(rows * columns, -1), (1, rows, columns))


def cropped_patches(image: Image.Image, config: PatchConfig) -> ImagePatches:
    """As `raster_patches`, as far as whole patches go: a valid convolution reads no further."""
    patch = config.patch_size
    return raster_patches(image.crop((0, 0, image.width // patch * patch, image.height // patch * patch)), config)
