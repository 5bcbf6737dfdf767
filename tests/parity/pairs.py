"""What differs from port to port: the random model, its hub folder, its images, its positions and its cache."""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from models.ports.kimi_vl.images import ImageConfig, preprocess_image
from tests.parity import idefics3_pair, internvl_pair, llava_onevision_pair, omni_pair, qwen3_pairs
from tests.parity.kimi_hub import save_kimi_vl
from tests.parity.oracle import Media, Pair, token
from tests.parity.qwen3_pairs import LIMIT, SPECIAL, QwenVLPair, rate_of, video_patches
from tests.parity.tiny_hf import save_hub_folder, tiny_deepseek_vl, tiny_kimi_k25, tiny_llava, tiny_qwen2_5_vl


class Qwen2_5VLPair(QwenVLPair):  # noqa: N801
    """M-RoPE: an image's tokens have positions of their own."""

    def build(self, seed: int) -> Any:
        vision = {"initializer_range": 0.15, **self.config.get("vision", {})}
        return tiny_qwen2_5_vl(seed, text=self.config["text"], vision=vision, **self.config.get("top", {}), **SPECIAL)

    def save(self, folder: Path) -> None:
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings)

    def positions(self, ids: np.ndarray, media: Media) -> np.ndarray:
        if media.video_counts:
            return self.positions_with_videos(ids, media)
        kinds = torch.from_numpy(ids == token("image_pad")).int()[None]
        grid = media.tensors.get("image_grid_thw")
        return self.hf.model.get_rope_index(torch.from_numpy(ids)[None], kinds, image_grid_thw=grid)[0][:, 0].numpy()

    def with_videos(self, media: Media, videos: Sequence[kj.Video]) -> Media:
        """Frames that need no resizing, at one rate; transformers' own video processor needs torchvision."""
        vision = self.hf.config.vision_config
        cut = [video_patches(video.frames, self.preprocessing(), vision.spatial_merge_size) for video in videos]
        grids = np.array([grid for _, grid in cut])
        rates = [rate_of(video) for video in videos]
        tensors = {
            **media.tensors,
            "pixel_values_videos": torch.from_numpy(np.concatenate([patches for patches, _ in cut])),
            "video_grid_thw": torch.from_numpy(grids),
        }
        counts = tuple(int(grid.prod()) // vision.spatial_merge_size**2 for grid in grids)
        intervals = tuple(vision.tokens_per_second * vision.temporal_patch_size / round(rate, 3) for rate in rates)
        return Media(tensors, media.counts, counts, intervals)

    def positions_with_videos(self, ids: np.ndarray, media: Media) -> np.ndarray:
        """As transformers 4, and the model's own code: what follows a block begins behind its largest position."""
        kinds = np.where(ids == token("image_pad"), 1, np.where(ids == token("video_pad"), 2, 0))
        grids = {name: iter(media.tensors.get(f"{name}_grid_thw", ())) for name in ("image", "video")}
        intervals = iter(media.intervals)
        merge = self.hf.config.vision_config.spatial_merge_size
        base = 0
        parts = []
        for kind, group in groupby(kinds):
            if kind:
                grid = next(grids["image" if kind == 1 else "video"])
                interval = next(intervals) if kind == 2 else 1
                parts.append(self.hf.model.get_vision_position_ids(base, grid, 1, merge, interval).numpy())
            else:
                parts.append(base + np.tile(np.arange(len(list(group))), (3, 1)))
            base = parts[-1].max() + 1
        return np.concatenate(parts, axis=1)


class KimiVLPair(Pair):
    """kimi_k25 with one frame; transformers has no image processor of Kimi-VL, so both are given the port's patches."""

    unreadable = (token("image_pad"), token("video_pad"))

    def build(self, seed: int) -> Any:
        vision = {"initializer_range": 0.15, **self.config.get("vision", {})}
        return tiny_kimi_k25(seed, text=self.config["text"], vision=vision, **self.config.get("top", {}), **SPECIAL)

    def save(self, folder: Path) -> None:
        save_kimi_vl(self.hf, folder, rope_parameters=self.config.get("rope_parameters", False))

    @property
    def cell(self) -> int:
        return 2 * self.hf.config.vision_config.patch_size

    def preprocessing(self) -> dict[str, Any]:
        patch = self.hf.config.vision_config.patch_size
        return {**BACKBONES["mla"].preprocessing, "patch_size": patch, "in_token_limit": 4 * LIMIT}

    def preprocessed(self, images: Sequence[Image.Image]) -> Media:
        config = ImageConfig.from_hf(self.preprocessing())
        cut = [preprocess_image(image, config) for image in images]
        pixels = np.concatenate([each.patches for each in cut]).reshape(-1, 3, config.patch_size, config.patch_size)
        grids = np.array([each.grid for each in cut])
        tensors = {"pixel_values": torch.from_numpy(pixels), "image_grid_thw": torch.from_numpy(grids)}
        return Media(tensors, tuple(grids.prod(-1) // 4))

    def features(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        # transformers caches the latent as keys and k_pe as values.
        return layer.values, layer.keys


class SquarePair(Pair):
    """Towers of one image size: every image has as many tokens."""

    processor_class: Any

    @property
    def cell(self) -> int:
        return self.hf.config.vision_config.patch_size

    def save(self, folder: Path) -> None:
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings)

    @cached_property
    def processor(self) -> Any:
        return self.processor_class.from_pretrained(self.folder)

    def preprocessed(self, images: Sequence[Image.Image]) -> Media:
        side = self.hf.config.vision_config.image_size // self.cell
        tensors = dict(self.processor(images=list(images), return_tensors="pt"))
        return Media(tensors, (side**2,) * len(images))


class DeepseekVLPair(SquarePair):
    """Images are padded to a square."""

    processor_class = DeepseekVLImageProcessorPil

    def build(self, seed: int) -> Any:
        image = {"image_token_id": token("image_pad")}
        vision = self.config.get("vision", {})
        return tiny_deepseek_vl(seed, text=self.config["text"], vision=vision, **self.config.get("top", {}), **image)

    def preprocessing(self) -> dict[str, Any]:
        side = self.hf.config.vision_config.image_size
        return {**BACKBONES["mha"].preprocessing, "size": {"height": side, "width": side}, "min_size": self.cell - 1}


class LlavaPair(SquarePair):
    """Images are cropped to a square."""

    processor_class = CLIPImageProcessorPil

    def build(self, seed: int) -> Any:
        image = {"image_token_index": token("image_pad")}
        vision = self.config.get("vision", {})
        return tiny_llava(seed, text=self.config["text"], vision=vision, **self.config.get("top", {}), **image)

    def preprocessing(self) -> dict[str, Any]:
        side = self.hf.config.vision_config.image_size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": side},
        }


_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
_TIED = {"top": {"tie_word_embeddings": True}}

# DeepSeek-VL and LLaVA have the same language model: equal configurations of it share what is compiled.
_LLAMA_GQA = {"num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-5, "rope_parameters": _LINEAR}
_LLAMA_YARN = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "num_hidden_layers": 2,
    "rope_parameters": _YARN,
}

CONFIGS: dict[str, tuple[type[Pair], dict[str, Any]]] = {
    "qwen2_5_vl: 4 to 2 heads of 16": (Qwen2_5VLPair, {}),
    "qwen2_5_vl: 4 to 1 heads of 24, tied, windows": (
        Qwen2_5VLPair,
        {
            "text": {
                "hidden_size": 96,
                "num_key_value_heads": 1,
                "num_hidden_layers": 2,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 4, 6]},
            },
            "vision": {"fullatt_block_indexes": [], "window_size": 24, "out_hidden_size": 96},
            **_TIED,
        },
    ),
    "qwen2_5_vl: 6 to 2 heads of 32, YaRN, full": (
        Qwen2_5VLPair,
        {
            "text": {
                "hidden_size": 192,
                "num_attention_heads": 6,
                "num_hidden_layers": 4,
                "rope_parameters": {**_YARN, "mrope_section": [4, 6, 6]},
            },
            "vision": {"fullatt_block_indexes": [0, 1, 2], "num_heads": 4, "out_hidden_size": 192},
        },
    ),
    "qwen2_5_vl: 4 to 4 heads of 16, YaRN, tied": (
        Qwen2_5VLPair,
        {
            "text": {"num_key_value_heads": 4, "rope_parameters": {**_YARN, "factor": 2.0, "mrope_section": [4, 2, 2]}},
            "vision": {"depth": 4, "patch_size": 6, "window_size": 24, "fullatt_block_indexes": [1, 3]},
            **_TIED,
        },
    ),
    **qwen3_pairs.CONFIGS,
    **omni_pair.CONFIGS,
    "kimi_vl: 4 heads, 2 of 8 experts": (KimiVLPair, {}),
    "kimi_vl: 2 heads, query latent, 4 of 16 experts in 4 groups, YaRN": (
        KimiVLPair,
        {
            "text": {
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "num_hidden_layers": 2,
                "kv_lora_rank": 48,
                "q_lora_rank": 24,
                "qk_nope_head_dim": 24,
                "qk_rope_head_dim": 16,
                "v_head_dim": 32,
                "first_k_dense_replace": 0,
                "n_routed_experts": 16,
                "num_experts_per_tok": 4,
                "n_shared_experts": 1,
                "n_group": 4,
                "topk_group": 2,
                "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
            },
            "vision": {"num_attention_heads": 4},
            "rope_parameters": True,
        },
    ),
    "kimi_vl: 6 heads, 3 of 8 experts in 4 groups, none shared, YaRN, tied": (
        KimiVLPair,
        {
            "text": {
                "hidden_size": 96,
                "num_attention_heads": 6,
                "num_key_value_heads": 6,
                "num_hidden_layers": 4,
                "qk_nope_head_dim": 32,
                "v_head_dim": 16,
                "rms_norm_eps": 1e-5,
                "first_k_dense_replace": 2,
                "num_experts_per_tok": 3,
                "n_shared_experts": 0,
                "n_group": 4,
                "topk_group": 2,
                "rope_parameters": {**_YARN, "factor": 16.0, "mscale": 0.707, "mscale_all_dim": 1.3},
            },
            "vision": {"patch_size": 6, "num_hidden_layers": 3, "pos_emb_height": 5, "pos_emb_width": 5},
            **_TIED,
        },
    ),
    "kimi_vl: 4 heads, query latent, weights as they are, YaRN": (
        KimiVLPair,
        {
            "text": {
                "q_lora_rank": 40,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 24,
                "norm_topk_prob": False,
                "routed_scaling_factor": 1.0,
                "n_shared_experts": 1,
                "rope_parameters": _YARN,
            }
        },
    ),
    "deepseek_vl: 4 heads of 16": (DeepseekVLPair, {}),
    "deepseek_vl: 4 to 2 heads of 24, linear, tied": (
        DeepseekVLPair,
        {"text": _LLAMA_GQA, "vision": {"image_size": 20, "patch_size": 5, "vision_use_head": False}, **_TIED},
    ),
    "deepseek_vl: 6 heads of 16, YaRN": (
        DeepseekVLPair,
        {"text": _LLAMA_YARN, "vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-5}},
    ),
    "llava: 4 heads of 16, layer 1": (
        LlavaPair,
        {"top": {"vision_feature_layer": 1, "projector_hidden_act": "quick_gelu"}},
    ),
    "llava: 4 to 2 heads of 24, linear, tied, layer -1": (
        LlavaPair,
        {
            "text": _LLAMA_GQA,
            "vision": {"image_size": 20, "patch_size": 5, "hidden_act": "gelu"},
            "top": {"tie_word_embeddings": True, "vision_feature_layer": -1, "multimodal_projector_bias": False},
        },
    ),
    "llava: 6 heads of 16, YaRN": (LlavaPair, {"text": _LLAMA_YARN, "vision": {"num_attention_heads": 4}}),
    **llava_onevision_pair.CONFIGS,
    **internvl_pair.CONFIGS,
    **idefics3_pair.CONFIGS,
}
"""By name, which begins with the port's."""

MORE = omni_pair.MORE
"""Others, which no test takes that runs on all of `CONFIGS`."""

_POWERS = {"rope_type": "default", "rope_theta": 256.0}

FAR: dict[str, tuple[type[Pair], dict[str, Any]]] = {
    "qwen2_5_vl": (Qwen2_5VLPair, {"text": {"rope_parameters": {**_POWERS, "mrope_section": [2, 3, 3]}}}),
    **qwen3_pairs.FAR,
    **omni_pair.FAR,
    "kimi_vl": (KimiVLPair, {"text": {"qk_rope_head_dim": 16, "rope_parameters": _POWERS}}),
    "deepseek_vl": (DeepseekVLPair, {"text": {"rope_parameters": _POWERS}}),
    "llava": (LlavaPair, {"text": {"rope_parameters": _POWERS}}),
    "llava_onevision": (
        llava_onevision_pair.LlavaOnevisionPair,
        {"text": {"rope_parameters": _POWERS}, "tiles": [(1, 2), (2, 1)]},
    ),
    "internvl": (internvl_pair.InternVLPair, {"text": {"rope_parameters": _POWERS}}),
    "idefics3": (idefics3_pair.Idefics3Pair, {"text": {"rope_parameters": _POWERS}}),
}
"""256 ** (-2i / 16) is 2 ** -i, so f32 angles are exact however far from 0. With other frequencies an angle rounds by
3e-5 at position 1000, and transformers there is as far from transformers at 0."""
