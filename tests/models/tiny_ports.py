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


def write(folder: Path, attention: str) -> Path:
    """Write the folder of an embedded model's configuration."""
    backbone = BACKBONES[attention]
    checkpoint.write(folder, backbone, random_params(backbone.architecture.declaration(backbone.config)))
    return folder
