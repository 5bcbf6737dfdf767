"""LLaVA-OneVision: tiles that are stitched, unpadded and shrunk, frames, and the form of several images."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

import kamera_jax as kj
from tests.models.tiny_llava_onevision import PREPROCESSING
from tests.parity.oracle import Media, Pair, token
from tests.parity.tiny_hf import save_hub_folder, tiny_llava_onevision
from tests.pictures import width_first


class Counting(LlavaOnevisionProcessor):
    """HF's, of which only the numbers of tokens are asked; it has no tokenizer."""

    def __init__(self, images: LlavaOnevisionImageProcessorPil, tokens: int, ratio: str) -> None:
        self.image_processor = images
        self.num_image_tokens = tokens
        self.video_token = "V"
        self.vision_aspect_ratio = ratio


class LlavaOnevisionPair(Pair):
    """Pixels and numbers of tokens are what HF's processor makes; ``pad`` asks it for the form of several images."""

    def build(self, seed: int) -> Any:
        side = self.config.get("vision", {}).get("image_size", 8)
        vision = {"initializer_range": 0.15, "image_size": side, **self.config.get("vision", {})}
        ids = {"image_token_index": token("image_pad"), "video_token_index": token("video_pad")}
        top = {**ids, "image_grid_pinpoints": self.pinpoints, **self.config.get("top", {})}
        return tiny_llava_onevision(seed, text=self.config["text"], vision=vision, **top)

    @property
    def pinpoints(self) -> list[list[int]]:
        side = self.config.get("vision", {}).get("image_size", 8)
        return [[side * rows, side * columns] for rows, columns in self.config["tiles"]]

    @property
    def padded(self) -> bool:
        """Whether every image is one tile."""
        return self.config.get("padded", False)

    def save(self, folder: Path) -> None:
        if self.padded:
            self.hf.config.vision_aspect_ratio = "pad"
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings)
        if self.padded:
            self.hf.config.vision_aspect_ratio = "anyres_max_9"

    @property
    def cell(self) -> int:
        return self.config.get("cell", 2)

    @property
    def side(self) -> int:
        """Features along a side of a tile."""
        vision = self.hf.config.vision_config
        return vision.image_size // vision.patch_size

    def preprocessing(self) -> dict[str, Any]:
        side = self.hf.config.vision_config.image_size
        size = {"size": {"height": side, "width": side}, "image_grid_pinpoints": self.pinpoints}
        return {**PREPROCESSING, **size, **self.config.get("images", {})}

    @cached_property
    def processor(self) -> Counting:
        names = ("image_grid_pinpoints", "image_mean", "image_std", "rescale_factor", "size")
        images = LlavaOnevisionImageProcessorPil(**{name: self.preprocessing()[name] for name in names})
        return Counting(images, self.side**2, self.hf.config.vision_aspect_ratio)

    def preprocessed(self, images: Sequence[Image.Image]) -> Media:
        """As a flat list, or as the images of one sample; one image then twice, for one alone is never of that form."""
        images = list(images)
        side = self.hf.config.vision_config.image_size
        if self.padded:
            made = self.processor.image_processor(images=[images * 2], return_tensors="pt")
            tensors = {name: made[name][: len(images)] for name in ("pixel_values", "image_sizes")}
            tensors["batch_num_images"] = torch.tensor([len(images) + 1])
            return Media(tensors, (self.side**2 + 1,) * len(images))
        made = self.processor.image_processor(images=images, return_tensors="pt")
        counts = [self.processor._get_number_of_features(i.height, i.width, side, side) for i in images]
        return Media(dict(made), tuple(counts))

    def with_videos(self, media: Media, videos: Sequence[kj.Video]) -> Media:
        """Videos of as many frames each, squashed as HF squashes the whole of an image."""
        whole = self.processor.image_processor
        with width_first():
            shown = [
                [whole(images=[frame], return_tensors="pt")["pixel_values"][0, 0] for frame in video.frames]
                for video in videos
            ]
        pixels = torch.stack([torch.stack(frames) for frames in shown])
        given = {"pixel_values_videos": pixels}
        counts = tuple(len(self.processor.replace_video_token(given, number)) for number in range(len(videos)))
        return Media({**media.tensors, **given}, media.counts, counts)


# The language models are two of InternVL's, and share what these compile.
_GRID = [(1, 1), (1, 2), (2, 1), (2, 2)]

CONFIGS: dict[str, tuple[type[Pair], dict[str, Any]]] = {
    "llava_onevision: 4 to 2 heads of 16": (LlavaOnevisionPair, {"tiles": _GRID}),
    "llava_onevision: 3 to 1 heads of 16, tied within, pixels left over, shrunk": (
        LlavaOnevisionPair,
        {
            "text": {
                "hidden_size": 48,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "num_hidden_layers": 4,
                "tie_word_embeddings": True,
            },
            "vision": {"image_size": 14, "patch_size": 4, "vision_use_head": True},
            "top": {"vision_aspect_ratio": "anyres_max_1"},
            "tiles": [(1, 2), (2, 1), (2, 2), (1, 3)],
        },
    ),
    "llava_onevision: 4 to 2 heads of 16, layer -2, no biases in the projector, shrunk": (
        LlavaOnevisionPair,
        {
            "vision": {"image_size": 4, "patch_size": 2, "num_hidden_layers": 3, "layer_norm_eps": 1e-3},
            "top": {
                "vision_feature_layer": -2,
                "multimodal_projector_bias": False,
                "projector_hidden_act": "gelu_pytorch_tanh",
                "vision_aspect_ratio": "anyres_max_1",
            },
            "images": {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.3, 0.5, 0.2], "rescale_factor": 1 / 128},
            "tiles": [(1, 1), (3, 1), (1, 2)],
        },
    ),
    "llava_onevision: 4 to 2 heads of 16, one tile, as of several images": (
        LlavaOnevisionPair,
        {
            "vision": {"image_size": 10, "num_attention_heads": 4, "hidden_act": "gelu", "num_hidden_layers": 1},
            "tiles": _GRID,
            "padded": True,
        },
    ),
}
"""By name, which begins with the port's; ``tiles`` are rows and columns, ``images`` other preprocessing."""
