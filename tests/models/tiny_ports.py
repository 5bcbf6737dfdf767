"""Tiny models of every port with random weights, as hub folders; without torch."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from eval.tiny import checkpoint
from eval.tiny.backbones import BACKBONES
from models.blocks.params import Params, is_info


def random_params(declared: Params) -> Any:
    """Numbers for every parameter that is declared; norms and biases are random too."""
    rng = np.random.default_rng(5)

    def leaf(info: Any) -> np.ndarray:
        return np.float32(info.init == "ones") + 0.1 * rng.standard_normal(info.shape, np.float32)

    return jax.tree.map(leaf, declared, is_leaf=is_info)


def binding_params(declared: Params, seed: int) -> Any:
    """Numbers for every parameter that is declared, so large that attention binds: what stands before a chunk shows."""
    rng = np.random.default_rng(seed)

    def leaf(info: Any) -> np.ndarray:
        size = {"fan_in": info.shape[-2] ** -0.5 if len(info.shape) > 1 else 0.0, "embedding": 0.5}
        noise = size.get(info.init, 0.05) * rng.standard_normal(info.shape, np.float32)
        return np.float32(info.init == "ones") + noise

    return jax.tree.map(leaf, declared, is_leaf=is_info)


def write(folder: Path, attention: str) -> Path:
    """Write the folder of an embedded model's configuration."""
    backbone = BACKBONES[attention]
    checkpoint.write(folder, backbone, random_params(backbone.architecture.declaration(backbone.config)))
    return folder
