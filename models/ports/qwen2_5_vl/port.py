"""Qwen2.5-VL, as `models.vlm` serves it."""

import numpy as np

from models.architecture import Architecture
from models.ports.qwen2_5_vl import images, vision
from models.ports.qwen2_5_vl.config import VisionConfig, config_from_hf
from models.ports.qwen2_5_vl.weights import weight_table


def image_positions(rows: int, columns: int, config: VisionConfig, first: int, length: int) -> tuple[np.ndarray, float]:
    """Local positions f32[3, length] of an image chunk, and its advance (HF ``get_rope_index``).

    Text counts on, the same on the three axes time, height and width. The image's tokens, after ``first`` others, stand
    at (first, first + row, first + column) in raster order, and what follows them at first + max(rows, columns).

    Args:
        rows, columns: of patches.
        config: the vision tower's.
        first: tokens before the image's own.
        length: tokens of the chunk.
    """
    rows = rows // config.spatial_merge_size
    columns = columns // config.spatial_merge_size
    row, column = np.divmod(np.arange(rows * columns), columns)
    after = first + rows * columns
    positions = np.empty((3, length), np.float32)
    positions[:, :first] = np.arange(first)
    positions[:, first:after] = first + np.stack([np.zeros_like(row), row, column])
    positions[:, after:] = first + max(rows, columns) + np.arange(length - after)
    return positions, float(first + max(rows, columns) + length - after)


ARCHITECTURE = Architecture("qwen2_5_vl", config_from_hf, weight_table, images, vision, image_positions)
