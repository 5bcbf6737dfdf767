"""InternVL: images are tiles between two tokens, and frames of a video are lines of text with a tile each."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

import kamera_jax as kj
from tests.internvl_files import PREPROCESSING, TEMPLATE, write_tokenizer
from tests.parity.oracle import Media, Pair, Prompt, token
from tests.parity.tiny_hf import save_hub_folder, tiny_internvl
from tests.pictures import width_first


class Frames:
    """In place of ``InternVLVideoProcessor``, which needs torchvision: the same pixels where nothing is resized."""

    def __init__(self, images: GotOcr2ImageProcessorPil) -> None:
        self.images = images

    def __call__(self, videos: Sequence[np.ndarray], **_: Any) -> dict[str, Any]:
        one_tile = {"crop_to_patches": False, "return_tensors": "pt"}
        shown = [self.images(images=list(frames), **one_tile)["pixel_values"] for frames in videos]
        return {"pixel_values_videos": torch.stack(shown)}


class Processor(InternVLProcessor):
    """HF's, which may then have no video processor of its own."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        return type(argument)


def processor_of(tokenizer: Any, preprocessing: dict[str, Any], tokens: int) -> Processor:
    """HF's processor, for a tower of so many tokens a tile."""
    names = ("image_mean", "image_std", "max_patches", "min_patches", "rescale_factor", "size")
    images = GotOcr2ImageProcessorPil(**{name: preprocessing[name] for name in names})
    return Processor(images, tokenizer, Frames(images), image_seq_length=tokens, chat_template=TEMPLATE)


class InternVLPair(Pair):
    """Tiles: what they are and how many, and the text around them, is what HF's processor makes."""

    def build(self, seed: int) -> Any:
        vision = {"initializer_range": 0.15, **self.config.get("vision", {})}
        top = {"image_token_id": token("image_pad"), **self.config.get("top", {})}
        return tiny_internvl(seed, text=self.config["text"], vision=vision, **top)

    def save(self, folder: Path) -> None:
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings)

    def write_tokenizer(self, folder: Path) -> None:
        write_tokenizer(folder)

    @property
    def cell(self) -> int:
        return 8

    def preprocessing(self) -> dict[str, Any]:
        height, width = self.hf.config.vision_config.image_size
        return {**PREPROCESSING, "size": {"height": height, "width": width}, **self.config.get("tiles", {})}

    @cached_property
    def tokens(self) -> int:
        """Of a tile."""
        vision = self.hf.config.vision_config
        return int((vision.image_size[0] // vision.patch_size[0] * self.hf.config.downsample_ratio) ** 2)

    @cached_property
    def processor(self) -> Processor:
        return processor_of(self.tokenizer, self.preprocessing(), self.tokens)

    def media(self, items: Sequence[Any]) -> Media:
        """Pixels in the order of the items, as ``InternVLProcessor`` puts them."""
        images = self.processor.image_processor
        tiles = []
        counts: dict[type, list[int]] = {Image.Image: [], kj.Video: []}
        with width_first():
            for item in items:
                if isinstance(item, Image.Image):
                    made = images(images=[item], crop_to_patches=True, return_tensors="pt")["pixel_values"]
                elif isinstance(item, kj.Video):
                    made = self.processor.video_processor([item.frames])["pixel_values_videos"][0]
                else:
                    continue
                tiles.append(made)
                counts[type(item)].append(self.tokens * len(made))
        tensors = {"pixel_values": torch.cat(tiles)} if tiles else {}
        return Media(tensors, tuple(counts[Image.Image]), tuple(counts[kj.Video]))

    def prompt(self, items: Sequence[Any], question: str) -> Prompt:
        """With the tokens of the template's text after HF's processor has written its own in place of placeholders."""
        prompt = Prompt(self, items, question)
        parts = [part for item in items for part in (item if isinstance(item, list) else [item])]
        kinds = {kj.Video: "video", Image.Image: "image"}
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": kinds[type(part)]}
            for part in [*parts, question]
        ]
        prompt.ids = self.ids([{"role": "user", "content": content}], prompt.media)
        return prompt

    def ids(self, messages: list[dict[str, Any]], media: Media) -> np.ndarray:
        """The template's text with HF's processor's own in place of placeholders, as tokens."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        numbers = {"<IMG_CONTEXT>": iter(range(len(media.counts))), "<video>": iter(range(len(media.video_counts)))}
        tiles = {"num_patches": [count // self.tokens for count in media.counts]}
        frames = {"pixel_values_videos": [torch.zeros(count // self.tokens) for count in media.video_counts]}

        def written(match: re.Match) -> str:
            number = next(numbers[match.group()])
            if match.group() == "<video>":
                return self.processor.replace_video_token(frames, number)
            return self.processor.replace_image_token(tiles, number)

        text = re.sub("<IMG_CONTEXT>|<video>", written, text)
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"])


_6B = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_TIED = {"tie_word_embeddings": True}

CONFIGS: dict[str, tuple[type[Pair], dict[str, Any]]] = {
    "internvl: Qwen2, 4 to 2 heads of 16, up to 12 tiles": (InternVLPair, {}),
    "internvl: Qwen3, 4 to 2 heads of 24, dynamic, tied, tower as of 6B": (
        InternVLPair,
        {
            "text": {"model_type": "qwen3", "head_dim": 24, "rope_parameters": _DYNAMIC, "rms_norm_eps": 1e-5},
            "vision": {**_6B, "image_size": 16},
            "top": _TIED,
            "tiles": {"max_patches": 3},
        },
    ),
    "internvl: Llama, 6 heads of 16, YaRN, 2 to 4 tiles, norm behind the tower": (
        InternVLPair,
        {
            "text": {
                "model_type": "llama",
                "hidden_size": 96,
                "num_attention_heads": 6,
                "num_key_value_heads": 6,
                "num_hidden_layers": 2,
                "rope_parameters": _YARN,
            },
            "vision": {"image_size": 12, "patch_size": 3, "use_qk_norm": True, "use_mean_pooling": False},
            "tiles": {"min_patches": 2, "max_patches": 4, "image_mean": [0.1, 0.5, 0.9], "rescale_factor": 1 / 128},
        },
    ),
    "internvl: Qwen2, 3 to 1 heads of 16, tied, RMSNorm, layer -2, every patch a token": (
        InternVLPair,
        {
            "text": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 4},
            "vision": {"norm_type": "rms_norm", "num_hidden_layers": 3, "layer_norm_eps": 1e-3},
            "top": {**_TIED, "vision_feature_layer": -2, "downsample_ratio": 1.0, "projector_hidden_act": "quick_gelu"},
            "tiles": {"max_patches": 2},
        },
    ),
    "internvl: Qwen3, 4 heads of 16, one tile": (
        InternVLPair,
        {
            "text": {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 4},
            "vision": {"image_size": 32, "patch_size": 4, "num_attention_heads": 4, "hidden_act": "gelu_pytorch_tanh"},
            "top": {"vision_feature_layer": 1, "downsample_ratio": 0.25},
            "tiles": {"max_patches": 1},
        },
    ),
}
"""By name, which begins with the port's; ``tiles`` is what preprocessor_config.json says otherwise."""
