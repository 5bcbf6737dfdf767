"""Qwen2.5-VL, as `models.vlm` serves it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from models.architecture import Architecture, Config
from models.hub.fields import Fields
from models.media.still import ImageMedium
from models.ports.qwen2_5_vl import config, images, vision
from models.ports.qwen2_5_vl.video import VideoMedium
from models.ports.qwen2_5_vl.weights import weight_table


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """As `models.ports.qwen2_5_vl.config.config_from_hf`, with what videos need beside the tower they share.

    Raises:
        ValueError: a subclass named for what is missing, unknown or unsupported.
    """
    read = config.config_from_hf(mapping)
    tower = Fields("vision_config", mapping["vision_config"])
    return replace(
        read,
        placeholders={"video": Fields("config.json", mapping).size("video_token_id", 151656, least=0)},
        media={"video": tower.positive("tokens_per_second", 4.0)},
    )


def image_positions(rows: int, columns: int, config: Any) -> tuple[np.ndarray, float]:
    """Positions f32[3, n] of an image's tokens, counted from where it begins, and its advance (HF ``get_rope_index``).

    On the axes time, height and width a token stands at (0, row, column), in raster order, and what follows the image
    begins at max(rows, columns).

    Args:
        rows, columns: of patches.
        config: the vision tower's, which says how many of them a token merges: `spatial_merge_size`.
    """
    rows = rows // config.spatial_merge_size
    columns = columns // config.spatial_merge_size
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([np.zeros_like(row), row, column]).astype(np.float32), float(max(rows, columns))


IMAGES = ImageMedium(
    images.ImageConfig.from_hf,
    images.preprocess_image,
    vision.vision_declaration,
    vision.plan,
    vision.encode_image,
    image_positions,
)

ARCHITECTURE = Architecture("qwen2_5_vl", config_from_hf, weight_table, (IMAGES, VideoMedium()))
