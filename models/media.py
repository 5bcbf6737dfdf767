"""Image preprocessing of Qwen2-VL and its successors, equal to HF ``Qwen2VLImageProcessorPil`` to the bit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image, UnidentifiedImageError

from models.fields import Fields, UnsupportedConfigError

MAX_ASPECT = 200
"""Longer side over shorter side, at most."""


class ImageError(ValueError):
    """An image that cannot be encoded."""


class EmptyImageError(ImageError):
    """An image without pixels."""


class ImageFormatError(ImageError):
    """Not a PIL image, nor uint8[H, W, 3]."""


class AspectRatioError(ImageError):
    """An image too long and thin to resize."""


@dataclass(frozen=True)
class ImageConfig:
    """How images become patches.

    Attributes:
        min_pixels, max_pixels: bounds on the resized image's area.
        patch_size: pixels along a side of a patch.
        temporal_patch_size: frames a patch spans; a still image is repeated.
        merge_size: patches along a side of a merged token.
        mean, std: of the normalisation, per channel.
        rescale: factor on pixel values before it.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale: float = 1 / 255

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any]) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        Raises:
            UnknownConfigFieldError: a field this does not know, named.
            UnsupportedConfigError: a value that asks for other preprocessing, named.
        """
        fields = Fields("preprocessor_config.json", mapping)
        names = (
            "Qwen2VLImageProcessor",
            "Qwen2VLImageProcessorFast",
            "Qwen2VLImageProcessorPil",
            "Qwen2_5_VLImageProcessor",
        )
        fields.expect("image_processor_type", *names)
        for switch in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            fields.expect(switch, True)
        for switch in ("do_center_crop", "do_pad"):
            fields.expect(switch, False)
        fields.expect("resample", int(Image.Resampling.BICUBIC))
        fields.expect("data_format", "channels_first")
        fields.ignore("processor_class", "default_to_square", "disable_grouping", "device", "return_tensors")

        bounds = Fields("preprocessor_config.json: size", fields.take("size", dict, {}))
        least = bounds.size("shortest_edge", bounds.size("min_pixels", cls.min_pixels))
        most = bounds.size("longest_edge", bounds.size("max_pixels", cls.max_pixels))
        bounds.close()

        def per_channel(name: str, default: tuple[float, ...]) -> tuple[float, ...]:
            values = tuple(map(float, fields.take(name, list, list(default))))
            if len(values) != 3:
                raise UnsupportedConfigError(f"preprocessor_config.json: {name} has {len(values)} values, not 3 (RGB)")
            return values

        config = cls(
            min_pixels=fields.size("min_pixels", least),
            max_pixels=fields.size("max_pixels", most),
            patch_size=fields.size("patch_size", cls.patch_size),
            temporal_patch_size=fields.size("temporal_patch_size", cls.temporal_patch_size),
            merge_size=fields.size("merge_size", cls.merge_size),
            mean=per_channel("image_mean", cls.mean),
            std=per_channel("image_std", cls.std),
            rescale=fields.take("rescale_factor", float, cls.rescale),
        )
        fields.close()
        return config


@dataclass(frozen=True)
class ImagePatches:
    """An image ready for a vision tower.

    Attributes:
        patches: normalised pixels, f32[P, 3 * frames * patch²]; all patches of a merged token together.
        grid: frames, rows and columns of patches.
    """

    patches: Float32[np.ndarray, "P C"]
    grid: tuple[int, int, int]


def smart_resize(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """The size an image is resized to: whole merged tokens, an area within bounds, about the same shape.

    Raises:
        EmptyImageError: a side is zero.
        AspectRatioError: one side is more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise EmptyImageError(f"the image is {width} x {height} pixels; expected at least 1 x 1")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise AspectRatioError(
            f"the image is {width} x {height} pixels; expected sides within a factor of {MAX_ASPECT}: cut it up"
        )
    factor = config.patch_size * config.merge_size
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """An RGB image of any PIL image (transparency over white) or uint8[H, W, 3] array.

    Raises:
        EmptyImageError: it has no pixels.
        ImageFormatError: it is anything else.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ImageFormatError(f"the image is {image.dtype}{list(image.shape)}; expected uint8[H, W, 3]")
        if not image.size:
            raise EmptyImageError(f"the image is uint8{list(image.shape)}; expected at least one pixel")
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ImageFormatError(f"the image is a {type(image).__name__}; expected a PIL image or uint8[H, W, 3]")
    if not (image.width and image.height):
        raise EmptyImageError(f"the image is {image.width} x {image.height} pixels; expected at least 1 x 1")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def open_item(item: Any) -> str | Image.Image | np.ndarray:
    """Text, or an image, of what a user hands in: str is text, Path a file, PIL image or uint8[H, W, 3] an image.

    Raises:
        ImageFormatError: another type, or a file that is neither an image nor UTF-8 text.
        FileNotFoundError: there is no such file.
    """
    if isinstance(item, Path):
        if item.suffix.lower() in (".txt", ".md"):
            return item.read_text(encoding="utf-8")
        try:
            with Image.open(item) as image:
                image.load()
                return image
        except UnidentifiedImageError as error:
            raise ImageFormatError(
                f"{item} is no image that Pillow can read; expected an image, .txt or .md file"
            ) from error
    if isinstance(item, str | Image.Image | np.ndarray):
        return item
    raise ImageFormatError(
        f"the item is a {type(item).__name__}; expected str (text), Path (a file), a PIL image or uint8[H, W, 3]"
    )


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """Resize, normalise and cut an image into patches.

    Args:
        image: a PIL image of any mode, or uint8[H, W, 3].
        config: the checkpoint's preprocessing.

    Raises:
        EmptyImageError, ImageFormatError, AspectRatioError: the image cannot be encoded; the message says why.
    """
    rgb = to_rgb(image)
    height, width = smart_resize(rgb.height, rgb.width, config)
    pixels = np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC))

    # 256 values per channel: the table keeps HF's f64 rescale and f32 normalisation at the price of a look-up.
    levels = (np.arange(256, dtype=np.float64) * config.rescale).astype(np.float32)
    table = (levels[:, None] - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)

    patch, merge = config.patch_size, config.merge_size
    rows, columns = height // patch, width // patch
    blocks = table[pixels, np.arange(3)].reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    frames = np.broadcast_to(blocks, (*blocks.shape[:5], config.temporal_patch_size, patch, patch))
    return ImagePatches(frames.reshape(rows * columns, -1), (1, rows, columns))
