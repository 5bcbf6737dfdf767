"""The hub names of a text-only model's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import port_table
from models.hub.weight_table import WeightTable


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``model.layers.*``, ``lm_head.*``)."""
    return port_table(config.text, ())
