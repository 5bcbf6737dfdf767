"""Qwen3-VL, dense and with experts, as `tests.parity.pairs` has other ports."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from tests.parity.oracle import Media, Pair, Prompt, token
from tests.parity.tiny_hf import save_experts, save_hub_folder, tiny_qwen3_vl, tiny_qwen3_vl_moe

SPECIAL = {
    "image_token_id": token("image_pad"),
    "video_token_id": token("video_pad"),
    "vision_start_token_id": token("vision_start"),
    "vision_end_token_id": token("vision_end"),
}

LIMIT = 14
"""Tokens of an image, at most: with its start and end in one bucket, so that few programs serve every image."""


class QwenVLPair(Pair):
    """Images of any size, in patches that are merged."""

    @property
    def cell(self) -> int:
        return self.hf.config.vision_config.patch_size * self.hf.config.vision_config.spatial_merge_size

    def preprocessing(self) -> dict[str, Any]:
        return {
            **BACKBONES["gqa"].preprocessing,
            "patch_size": self.hf.config.vision_config.patch_size,
            "min_pixels": self.cell**2,
            "max_pixels": LIMIT * self.cell**2,
        }

    @cached_property
    def processor(self) -> Any:
        return Qwen2VLImageProcessorPil.from_pretrained(self.folder)

    def preprocessed(self, images: Sequence[Image.Image]) -> Media:
        tensors = dict(self.processor(images=list(images), return_tensors="pt"))
        merged = self.hf.config.vision_config.spatial_merge_size**2
        return Media(tensors, tuple(int(grid.prod()) // merged for grid in tensors["image_grid_thw"]))

    def generation(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": prompt.kinds}


class Qwen3VLPair(QwenVLPair):
    """M-RoPE, and the times of a video as text; ``"experts"`` of the configuration says how they lie in the files."""

    make: Any = staticmethod(tiny_qwen3_vl)

    def build(self, seed: int) -> Any:
        vision = {"initializer_range": 0.15, **self.config.get("vision", {})}
        return self.make(seed, text=self.config["text"], vision=vision, **self.config.get("top", {}), **SPECIAL)

    def save(self, folder: Path) -> None:
        layout = self.config.get("experts")
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings and layout is None)
        if layout is not None:
            save_experts(folder, layout)
        settings = {name: value for name, value in self.preprocessing().items() if not name.endswith("_pixels")}
        settings["size"] = {"shortest_edge": 1, "longest_edge": 10**6}  # of all frames together
        settings["video_processor_type"] = "Qwen3VLVideoProcessor"
        (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))

    def positions(self, ids: np.ndarray, media: Media) -> np.ndarray:
        kinds = np.where(ids == token("image_pad"), 1, np.where(ids == token("video_pad"), 2, 0))
        grids = {name: media.tensors.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        at = self.hf.model.get_rope_index(torch.from_numpy(ids)[None], torch.from_numpy(kinds).int()[None], **grids)
        return at[0][:, 0].numpy()

    def with_videos(self, media: Media, videos: Sequence[kj.Video]) -> Media:
        """Frames that need no resizing, at one rate; transformers' own video processor needs torchvision."""
        merge = self.hf.config.vision_config.spatial_merge_size
        cut = [video_patches(video.frames, self.preprocessing(), merge) for video in videos]
        grids = np.array([grid for _, grid in cut])
        tensors = {
            **media.tensors,
            "pixel_values_videos": torch.from_numpy(np.concatenate([patches for patches, _ in cut])),
            "video_grid_thw": torch.from_numpy(grids),
        }
        counts = tuple(int(grid[1:].prod()) // merge**2 for grid in grids)
        stamps = []
        for video in videos:
            seconds = Qwen3VLProcessor._calculate_timestamps(None, list(range(len(video.times))), rate_of(video))
            stamps.append(tuple(f"<{each:.1f} seconds>" for each in seconds))
        return Media(tensors, media.counts, counts, stamps=tuple(stamps))

    def expanded(self, template: Sequence[int], media: Media) -> list[int]:
        """As transformers 4: its temporal patches in place of a video and of what the template writes around it."""
        start, pad, end = (token(word) for word in ("vision_start", "video_pad", "vision_end"))
        ids = super().expanded([each for each in template if each != pad], media)
        places = [at for at in range(len(template) - 2) if list(template[at : at + 3]) == [start, pad, end]]
        assert len(places) == list(template).count(pad) == len(media.stamps)
        empty = [at for at in range(len(ids) - 1) if ids[at : at + 2] == [start, end]]
        for at, stamps, count in reversed(list(zip(empty, media.stamps, media.video_counts, strict=True))):
            written: list[int] = []
            for stamp in stamps:
                text = self.tokenizer(stamp, add_special_tokens=False)["input_ids"]
                written += [*text, start, *[pad] * count, end]
            ids[at : at + 2] = written
        return ids


class Qwen3VLMoePair(Qwen3VLPair):
    """With experts."""

    make = staticmethod(tiny_qwen3_vl_moe)


def rate_of(video: kj.Video) -> float:
    """Frames a second of a video whose frames follow one another at one rate."""
    return float((len(video.times) - 1) / (video.times[-1] - video.times[0])) if len(video.times) > 1 else 1.0


def video_patches(frames: np.ndarray, settings: dict[str, Any], merge: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """What HF ``Qwen2VLVideoProcessor`` cuts of frames [n, H, W, 3] that need no resizing; an odd last one repeats."""
    patch = settings["patch_size"]
    pixels = (frames / np.float32(255) - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    pixels = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    if len(pixels) % 2:
        pixels = torch.cat([pixels, pixels[-1:]])
    time = len(pixels) // 2
    rows = pixels.shape[2] // patch
    columns = pixels.shape[3] // patch
    blocks = pixels.view(1, time, 2, 3, rows // merge, merge, patch, columns // merge, merge, patch)
    blocks = blocks.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(time * rows * columns, -1)
    return blocks.numpy(), (time, rows, columns)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
INTERLEAVED = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
TIED = {"top": {"tie_word_embeddings": True}}

CONFIGS: dict[str, tuple[type[Pair], dict[str, Any]]] = {
    "qwen3_vl: 4 to 2 heads of 16, 3 of 4 layers deep": (Qwen3VLPair, {}),
    "qwen3_vl: 4 to 1 heads of 24, tied, a deep layer": (
        Qwen3VLPair,
        {
            "text": {
                "hidden_size": 96,
                "num_key_value_heads": 1,
                "num_hidden_layers": 3,
                "head_dim": 24,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {**INTERLEAVED, "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
            },
            "vision": {"num_position_embeddings": 9, "deepstack_visual_indexes": [1], "out_hidden_size": 96},
            **TIED,
        },
    ),
    "qwen3_vl: 6 to 2 heads of 32 in 80, biases, YaRN": (
        Qwen3VLPair,
        {
            "text": {
                "hidden_size": 80,
                "num_attention_heads": 6,
                "head_dim": 32,
                "attention_bias": True,
                "rope_parameters": {**YARN, "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
            },
            "vision": {
                "depth": 5,
                "num_heads": 4,
                "patch_size": 6,
                "num_position_embeddings": 100,
                "deepstack_visual_indexes": [0, 1, 2, 4],
                "out_hidden_size": 80,
            },
        },
    ),
    "qwen3_vl: 4 to 4 heads of 16, nothing deep, tied": (
        Qwen3VLPair,
        {
            "text": {"num_key_value_heads": 4, "num_hidden_layers": 2},
            "vision": {"hidden_act": "gelu", "num_position_embeddings": 1, "deepstack_visual_indexes": []},
            **TIED,
        },
    ),
    "qwen3_vl_moe: 4 to 2 heads of 16, 2 of 6 experts": (Qwen3VLMoePair, {}),
    "qwen3_vl_moe: 4 to 1 heads of 24, 1 of 5 experts as on the hub, a dense layer": (
        Qwen3VLMoePair,
        {
            "text": {
                "hidden_size": 96,
                "num_key_value_heads": 1,
                "head_dim": 24,
                "num_experts": 5,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 32,
                "mlp_only_layers": [0],
                "rope_parameters": {**INTERLEAVED, "mrope_section": [4, 4, 4]},
            },
            "vision": {"num_position_embeddings": 9, "deepstack_visual_indexes": [1, 3], "out_hidden_size": 96},
            "experts": "hub",
        },
    ),
    "qwen3_vl_moe: 8 to 2 heads of 16, 4 of 16 experts apart, tied, YaRN": (
        Qwen3VLMoePair,
        {
            "text": {
                "num_attention_heads": 8,
                "num_hidden_layers": 3,
                "num_experts": 16,
                "num_experts_per_tok": 4,
                "mlp_only_layers": [0, 1],
                "rope_parameters": {**YARN, "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
            },
            "vision": {"patch_size": 6, "num_position_embeddings": 36},
            "experts": "apart",
            **TIED,
        },
    ),
    "qwen3_vl_moe: 4 to 4 heads of 16, 2 of 3 experts, tied": (
        Qwen3VLMoePair,
        {
            "text": {
                "num_key_value_heads": 4,
                "num_hidden_layers": 3,
                "num_experts": 3,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 40,
            },
            "vision": {"num_heads": 4, "deepstack_visual_indexes": [2]},
            "experts": "hub",
            **TIED,
        },
    ),
}
"""By name, which begins with the port's."""

POWERS = {"rope_type": "default", "rope_theta": 256.0, "mrope_section": [3, 3, 2], "mrope_interleaved": True}

FAR: dict[str, tuple[type[Pair], dict[str, Any]]] = {"qwen3_vl": (Qwen3VLPair, {"text": {"rope_parameters": POWERS}})}
"""Of angles that are exact far from 0."""
