"""The embedded models: one tiny backbone for each attention family, described as its hub folder would."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from eval.tiny import pages
from eval.tiny.vocabulary import VOCABULARY
from models.architecture import Architecture, Config
from models.media.spans import Span, local_positions
from models.media.still import ImageMedium
from models.registry import ARCHITECTURES

Attention = Literal["gqa", "mla", "mha"]

WIDTH = 128
LAYERS = 5
HEADS = 4

_TOKENS = {
    "vocab_size": len(VOCABULARY),
    "bos_token_id": VOCABULARY.index("<|endoftext|>"),
    "eos_token_id": VOCABULARY.index("<|im_end|>"),
}
_IMAGE_TOKEN = VOCABULARY.index("<|image_pad|>")
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class TinyBackbone:
    """An embedded model before its weights.

    Attributes:
        attention: its family.
        square: whether pages are padded to a square, as towers of one image size need.
        hf_config: content of ``config.json``.
        preprocessing: content of ``preprocessor_config.json``.
        label: in its name, where that is not the family's.
        video: content of ``video_preprocessor_config.json``; None for a model that is shown no videos.
    """

    attention: Attention
    square: bool
    hf_config: dict[str, Any]
    preprocessing: dict[str, Any]
    label: str = ""
    video: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """What `EMBEDDED` knows it as."""
        return self.label or self.attention

    @property
    def name(self) -> str:
        """What `models.load` knows it as."""
        return f"kamera-tiny-{self.key}"

    @property
    def architecture(self) -> Architecture:
        """The port that serves it."""
        return ARCHITECTURES[self.hf_config["model_type"]]

    @cached_property
    def config(self) -> Config:
        """The configuration, as the port reads it."""
        return self.architecture.config_from_hf(self.hf_config)

    @property
    def images(self) -> ImageMedium:
        """How the port reads images."""
        return self.architecture.medium("image")

    @cached_property
    def settings(self) -> Any:
        """The image settings, as the port reads them."""
        return self.images.settings(self.preprocessing, self.config)

    @property
    def axes(self) -> int:
        """Position axes."""
        return self.config.text.rope.axes

    def seen(self, cells: np.ndarray) -> np.ndarray:
        """A page's cells [rows, columns] as its tokens come: in a square the page is centred, with padding around."""
        if not self.square:
            return cells
        side = max(cells.shape)
        around = [((side - extent) // 2, side - extent - (side - extent) // 2) for extent in cells.shape]
        return np.pad(cells, around, constant_values=pages.PADDING)

    def page_positions(self, rows: int, columns: int) -> tuple[np.ndarray, float]:
        """Local positions f32[A, n] of <|vision_start|>, the cells as `seen` and <|vision_end|>, and the advance."""
        length = rows * columns
        positions = None
        advance = None
        if self.images.positions is not None:
            merge = self.config.vision.spatial_merge_size
            positions, advance = self.images.positions(rows * merge, columns * merge, self.config.vision)
        token = Span([0])
        return local_positions([token, Span([0] * length, positions=positions, advance=advance), token], self.axes)

    def segment_positions(self, moments: int, rows: int, columns: int) -> tuple[np.ndarray, float]:
        """As `page_positions`, of a video segment of so many temporal patches of cells; see its port's video medium."""
        speed = self.config.media["video"]
        row, column = np.divmod(np.arange(rows * columns), columns)
        spans = [Span([0])]
        for moment in range(moments):
            time = np.floor(moment * pages.SECONDS * speed)
            positions = np.stack([np.full_like(row, time), row, column]).astype(np.float32)
            last = moment == moments - 1
            spans.append(Span([0] * len(row), None, positions, float(max(time + 1, rows, columns)) if last else 0.0))
        return local_positions([*spans, Span([0])], self.axes)

    def text_positions(self, count: int) -> np.ndarray:
        """Local positions f32[A, count] of text."""
        return np.tile(np.arange(count, dtype=np.float32), (self.axes, 1))


_NORMALISATION = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

# Windows of the vision tower are one merged token wide and no block sees the whole image.
_QWEN2_5_VL = TinyBackbone(
    attention="gqa",
    square=False,
    hf_config={
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "float32",
        **_TEXT,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": True,
        **_TOKENS,
        "image_token_id": _IMAGE_TOKEN,
        "video_token_id": VOCABULARY.index("<|video_pad|>"),
        "vision_start_token_id": VOCABULARY.index("<|vision_start|>"),
        "vision_end_token_id": VOCABULARY.index("<|vision_end|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": pages.CELL // 2,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": pages.CELL,
            "fullatt_block_indexes": [],
            "out_hidden_size": WIDTH,
            "hidden_act": "silu",
        },
    },
    preprocessing={
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": pages.CELL // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": pages.CELL**2,
        "max_pixels": pages.CELL**2 * 1024,
        **_NORMALISATION,
    },
)

_KIMI_VL = TinyBackbone(
    attention="mla",
    square=False,
    hf_config={
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "dtype": "float32",
        "tie_word_embeddings": True,
        "media_placeholder_token_id": _IMAGE_TOKEN,
        "text_config": {
            "model_type": "deepseek_v3",
            **_TEXT,
            **_TOKENS,
            "tie_word_embeddings": True,
            "num_key_value_heads": HEADS,
            "kv_lora_rank": 128,
            "q_lora_rank": None,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "v_head_dim": 32,
            "first_k_dense_replace": 3,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "rope_scaling": None,
        },
        "vision_config": {
            "model_type": "moonvit",
            "patch_size": pages.CELL // 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_size": 64,
            "intermediate_size": 128,
            "init_pos_emb_height": 16,
            "init_pos_emb_width": 16,
            "merge_kernel_size": [2, 2],
        },
    },
    preprocessing={
        "image_processor_type": "KimiVLImageProcessor",
        "patch_size": pages.CELL // 2,
        "merge_kernel_size": [2, 2],
        "in_token_limit": 4096,
        "pad_input": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
)

_DEEPSEEK_VL = TinyBackbone(
    attention="mha",
    square=True,
    hf_config={
        "architectures": ["DeepseekVLForConditionalGeneration"],
        "model_type": "deepseek_vl",
        "dtype": "float32",
        "tie_word_embeddings": True,
        "image_token_id": _IMAGE_TOKEN,
        "text_config": {
            "model_type": "llama",
            **_TEXT,
            **_TOKENS,
            "tie_word_embeddings": True,
            "num_key_value_heads": HEADS,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 10 * pages.CELL,
            "patch_size": pages.CELL,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    },
    preprocessing={
        "image_processor_type": "DeepseekVLImageProcessor",
        "size": {"height": 10 * pages.CELL, "width": 10 * pages.CELL},
        "min_size": 14,
        **_NORMALISATION,
    },
)

_VIDEO = replace(
    _QWEN2_5_VL,
    label="video",
    hf_config={
        **_QWEN2_5_VL.hf_config,
        "vision_config": {**_QWEN2_5_VL.hf_config["vision_config"], "tokens_per_second": 2},
    },
    video={
        "video_processor_type": "Qwen2VLVideoProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": pages.CELL // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": pages.CELL**2, "longest_edge": pages.CELL**2 * 1024},
        **_NORMALISATION,
    },
)

BACKBONES: dict[str, TinyBackbone] = {each.attention: each for each in (_QWEN2_5_VL, _KIMI_VL, _DEEPSEEK_VL)}
"""By attention family."""

EMBEDDED: dict[str, TinyBackbone] = {**BACKBONES, _VIDEO.key: _VIDEO}
"""All embedded models that are trained on cells: those of the attention families, and the one that is shown videos."""
