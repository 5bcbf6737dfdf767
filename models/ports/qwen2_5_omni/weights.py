"""The hub names of the tensors of Qwen2.5-Omni's thinker, and where they go; the talker's and the vocoder's are not."""

from models.architecture import Config
from models.hub.text_weights import dense_rows
from models.hub.thinkers import TOWER, audio_rows, thinker_table
from models.hub.weight_table import Row, WeightTable, convolution
from models.ports.qwen2_5_vl.weights import tower_rows

_IGNORED = (r"thinker\.audio_tower\.positional_embedding\..*", r"thinker\.audio_tower\.audio_bos_eos_token\.weight")
"""Two embeddings of the audio tower are stored and read by nothing: tokens of the text stand around sound."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`; see `models.hub.thinkers.thinker_table`."""
    kernel = convolution(3)
    rows: list[Row] = [
        *tower_rows(config.vision, "thinker.visual", fused=False),
        *dense_rows(f"{TOWER}.conv1", "audio/conv1", transform=kernel),
        *dense_rows(f"{TOWER}.conv2", "audio/conv2", transform=kernel),
        *audio_rows(key_bias=False),
        *dense_rows(f"{TOWER}.proj", "audio/out"),
    ]
    return thinker_table(config.text, rows, others=("talker", "token2wav"), ignored=_IGNORED)
