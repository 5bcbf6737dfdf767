"""Images and videos of LLaVA-OneVision: tiles that are stitched, and frames of half their size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from PIL import Image

from kamera_jax.items import Video
from models.architecture import Config, Encode
from models.blocks.params import Params
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError
from models.media.images import check_image_size, cropped_patches, padded_and_resized, resized
from models.media.moving import FrameByFrame
from models.media.sampling import FPS, UNBOUNDED, UniformSampling
from models.media.spans import Features, Span
from models.media.still import ImageItems
from models.ports.llava_onevision.images import ImageConfig, tiles_of
from models.ports.llava_onevision.packing import Packing, packed_frame, packed_square, packed_tiles
from models.ports.llava_onevision.vision import VisionConfig, encode_image, vision_declaration

NUM_FRAMES = 8
"""Frames that are taken of a file where its preprocessing says neither ``num_frames`` nor ``fps``: as many as the
examples of transformers' documentation take."""

_FEW = 8
"""Tiles up to which their number is padded to a power of two; beyond, to a multiple of this."""


@dataclass(frozen=True)
class TileMedium(ImageItems):
    """Images: the whole of one, then its tiles, stitched; one tile alone where ``vision_aspect_ratio`` is ``pad``.

    An image has the same tokens however many stand in a prompt. transformers reads several images of one message, where
    they are handed in as a list in a list, in the second form, and any others in the first.
    """

    kind: str = "image"
    tower: str = "vision"
    items: str = "images (a file, a PIL image or uint8[H, W, 3])"

    def settings(self, preprocessing: Mapping[str, Any], config: Config) -> ImageConfig:
        """See `models.architecture.Medium`."""
        layout = config.media["image"]
        settings = ImageConfig.from_hf(preprocessing, config.vision.patch_size, padded=layout.most is None)
        check_image_size(settings.tile, config.vision.image_size)
        if settings.pinpoints != layout.pinpoints:
            raise UnsupportedConfigError(
                "image_grid_pinpoints of preprocessor_config.json are others than those of config.json; expected the "
                "same in both"
            )
        return settings

    def declaration(self, tower: VisionConfig) -> Params:
        """See `models.architecture.Medium`."""
        return vision_declaration(tower)

    def spans(
        self, item: Any, settings: ImageConfig, config: Config, chat: ChatTemplate, encode: Encode
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`.

        Raises:
            AspectRatioError: the image is too long and thin.
        """
        layout = config.media["image"]
        side = config.vision.side
        if layout.most is None:
            tiles = [padded_and_resized(item, settings.tile, settings.mean)]
            return (self.block(tiles, packed_square(side), settings, config, encode),)
        tiles, rows, columns = tiles_of(item, settings)
        packing = packed_tiles(item.width, item.height, rows, columns, side, layout.most)
        return (self.block(tiles, packing, settings, config, encode),)

    def block(
        self, tiles: Sequence[Image.Image], packing: Packing, settings: ImageConfig, config: Config, encode: Encode
    ) -> Span:
        """The tokens that some tiles become."""
        patches = np.stack([cropped_patches(tile, settings).patches for tile in tiles])
        count = len(tiles)
        padded = 1 << (count - 1).bit_length() if count <= _FEW else -(-count // _FEW) * _FEW
        patches = np.pad(patches, ((0, padded - count), (0, 0), (0, 0)))
        return Span([config.placeholders[self.kind]] * int(packing.tokens), encode(patches, packing))

    def encode(self, params: Params, tower: VisionConfig, inputs: jax.Array, plan: Packing) -> Features:
        """See `models.architecture.Medium`."""
        return Features(encode_image(params, tower, inputs, plan))


@dataclass(frozen=True)
class VideoMedium(FrameByFrame, TileMedium):
    """Videos: each frame is squashed to one tile and halved, and the end of a row stands behind the last one.

    Frames do not see each other in the tower, so a long video is cut between them; each part is then a video of its
    own, with such an end.
    """

    kind: str = "video"
    items: str = "videos (a file, or kamera_jax.Video)"

    def settings(self, preprocessing: Mapping[str, Any], config: Config) -> ImageConfig:
        """See `models.architecture.Medium`."""
        settings = video_config_from_hf(preprocessing, config.vision)
        check_image_size(settings.tile, config.vision.image_size)
        return settings

    def sampling(self, preprocessing: Mapping[str, Any], config: Config) -> UniformSampling:
        """See `models.architecture.sampling_of`."""
        return sampling_from_hf(preprocessing)

    def spans(
        self, item: Video, settings: ImageConfig, config: Config, chat: ChatTemplate, encode: Encode
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`: a span for each frame."""
        spans = []
        for index, frame in enumerate(item.frames):
            picture = resized(Image.fromarray(frame), settings.tile, settings.tile)
            packing = packed_frame(config.vision.side, last=index == len(item.frames) - 1)
            spans.append(self.block([picture], packing, settings, config, encode))
        return spans

    def cut(self, item: Video, settings: Any, config: Config, tokens: int) -> Sequence[Video]:
        """See `models.architecture.Medium`; each part is whole frames, one at least, and the end of a row."""
        return super().cut(item, settings, config, tokens - 1)


def video_config_from_hf(mapping: Mapping[str, Any], vision: Any) -> ImageConfig:
    """As `ImageConfig.from_hf`, from a ``video_preprocessor_config.json``, or from the images' where there is none.

    Args:
        mapping: the file.
        vision: configuration of the tower.
    """
    fields = Fields("video_preprocessor_config.json", mapping)
    fields.expect("video_processor_type", "LlavaOnevisionVideoProcessor")
    # Which frames to take of a file is for `sampling_from_hf`.
    fields.ignore("do_sample_frames", "fps", "num_frames", "return_metadata", "video_metadata")
    one_tile = [[vision.image_size, vision.image_size]]
    return ImageConfig.from_hf({**fields.rest, "image_grid_pinpoints": one_tile}, vision.patch_size)


def sampling_from_hf(mapping: Mapping[str, Any]) -> UniformSampling:
    """Which frames are taken of a file, from the preprocessing of videos (HF ``LlavaOnevisionVideoProcessor``).

    So many frames as ``num_frames`` states, else ``fps`` a second, else `NUM_FRAMES`; where it states neither,
    transformers takes every frame. ``do_sample_frames`` is about frames that were read before: of a file some are
    always taken.

    Raises:
        UnsupportedConfigError: a number that cannot be.
    """
    stated = {name: mapping[name] for name in ("num_frames", "fps") if mapping.get(name) is not None}
    fields = Fields("video_preprocessor_config.json", stated)
    frames = None if "fps" in stated and "num_frames" not in stated else fields.size("num_frames", NUM_FRAMES)
    return UniformSampling(fps=fields.positive("fps", FPS), frames=frames, most=UNBOUNDED)
