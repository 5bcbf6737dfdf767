"""The hub names of the tensors of Qwen2.5-Omni's thinker, and where they go; the talker's and the vocoder's are not."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import norm_rows
from models.hub.weight_table import Row, WeightTable, convolution
from models.ports.qwen2_5_vl.weights import tower_rows

_TOWER = "thinker.audio_tower"

_IN_MEMORY = (
    (r"^thinker\.", ""),
    (r"^model\.language_model\.", "model."),
    (r"^model\.(visual|audio_tower)\.", r"\1."),
    (r"^(?!talker\.|token2wav\.)", "thinker."),
)
"""transformers 5 names the thinker's modules so, and writes a thinker alone without its prefix."""

_IGNORED = (
    *(r"talker\..*", r"token2wav\..*", r"thinker\.visual\..*\.inv_freq"),
    *(r"thinker\.audio_tower\.positional_embedding\..*", r"thinker\.audio_tower\.audio_bos_eos_token\.weight"),
)
"""Two embeddings of the audio tower are stored and read by nothing: tokens of the text stand around sound."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``thinker.model.layers.*``, ``thinker.visual.*``)."""
    layer = f"{_TOWER}.layers.{{}}"
    blocks = "audio/blocks"
    audio = [
        *(
            row
            for name in ("conv1", "conv2")
            for row in dense_rows(f"{_TOWER}.{name}", f"audio/{name}", transform=convolution(3))
        ),
        *norm_rows(f"{layer}.self_attn_layer_norm", f"{blocks}/attn_norm"),
        *norm_rows(f"{layer}.final_layer_norm", f"{blocks}/mlp_norm"),
        *(row for p in "qkv" for row in dense_rows(f"{layer}.self_attn.{p}_proj", f"{blocks}/attn/{p}", bias=p != "k")),
        *dense_rows(f"{layer}.self_attn.out_proj", f"{blocks}/attn/o"),
        *dense_rows(f"{layer}.fc1", f"{blocks}/mlp/hidden"),
        *dense_rows(f"{layer}.fc2", f"{blocks}/mlp/out"),
        *norm_rows(f"{_TOWER}.ln_post", "audio/norm"),
        *dense_rows(f"{_TOWER}.proj", "audio/out"),
    ]
    rows: list[Row] = [*tower_rows(config.vision, "thinker.visual", fused=False), *audio]
    return port_table(
        config.text, rows, model="thinker.model", head="thinker.lm_head", renames=_IN_MEMORY, ignored=_IGNORED
    )
