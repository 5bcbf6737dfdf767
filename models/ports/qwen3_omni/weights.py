"""The hub names of the tensors of Qwen3-Omni's thinker, and where they go; the talker's and the vocoder's are not."""

from models.architecture import Config
from models.hub.text_weights import dense_rows
from models.hub.thinkers import TOWER, audio_rows, thinker_table
from models.hub.weight_table import Row, WeightTable, convolution
from models.ports.qwen3_omni.audio import CONVOLUTIONS, TAPS
from models.ports.qwen3_vl.weights import tower_rows

_IGNORED = (r"thinker\.audio_tower\.positional_embedding\..*",)


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`; see `models.hub.thinkers.thinker_table`."""
    kernel = convolution(TAPS, TAPS)
    rows: list[Row] = [
        *tower_rows(config.vision, "thinker.visual", deep="merger_list", merger=("ln_q", "mlp.0", "mlp.2")),
        *(
            row
            for number in range(1, CONVOLUTIONS + 1)
            for row in dense_rows(f"{TOWER}.conv2d{number}", f"audio/conv{number}", transform=kernel)
        ),
        *dense_rows(f"{TOWER}.conv_out", "audio/flat", bias=False),
        *audio_rows(key_bias=True),
        *dense_rows(f"{TOWER}.proj1", "audio/projector/hidden"),
        *dense_rows(f"{TOWER}.proj2", "audio/projector/out"),
    ]
    return thinker_table(config.text, rows, others=("talker", "code2wav"), ignored=_IGNORED)
