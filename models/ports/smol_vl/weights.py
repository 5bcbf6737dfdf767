"""The hub names of kamera-smol-vl's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.weight_table import Row, WeightTable

LAYERS = ("strokes", "shapes", "whole", "code")
"""Layers of the tower that are the same trained and run."""

LETTERS = ("front", "back", "apart")
"""What tokens' codes are made of."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`: the language model's tensors as it has them, and the tower's."""
    vision = [*_layers("vision/"), *dense_rows("vision_model.tokens", "vision/tokens")]
    return port_table(config.text, vision)


def trained_table() -> WeightTable:
    """The table of what is trained, and stored."""
    return WeightTable((*_layers(""), *(Row(f"vision_model.{name}", name) for name in LETTERS)))


def _layers(path: str) -> list[Row]:
    return [row for name in LAYERS for row in dense_rows(f"vision_model.{name}", f"{path}{name}")]
