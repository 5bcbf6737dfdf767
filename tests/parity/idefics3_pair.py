"""Idefics3 and SmolVLM2: images are tiles, each behind the token of its place, and the whole image last."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from tests.idefics3_files import PREPROCESSING, SIZE, TEMPLATE, write_tokenizer
from tests.parity.oracle import Media, Pair, Prompt, token
from tests.parity.tiny_hf import save_hub_folder, tiny_idefics3


def processor_of(tokenizer: Any, preprocessing: dict[str, Any], tokens: int) -> Idefics3Processor:
    """HF's processor, for a tower of so many tokens a tile; SmolVLM's differs in what it says of videos alone."""
    names = ("do_image_splitting", "image_mean", "image_std", "max_image_size", "rescale_factor", "size")
    images = Idefics3ImageProcessorPil(**{name: preprocessing[name] for name in names})
    return Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=TEMPLATE)


class Idefics3Pair(Pair):
    """Tiles: what they are and how many, and the text around them, is what HF's processor makes."""

    def __init__(self, config: dict[str, Any], folder: Path, *, seed: int) -> None:
        text = {"vocab_size": SIZE, **config.get("text", {})}
        super().__init__({**config, "text": text}, folder, seed=seed)

    def build(self, seed: int) -> Any:
        vision = {"initializer_range": 0.15, **self.config.get("vision", {})}
        top = {"image_token_id": token("image_pad"), **self.config.get("top", {})}
        smolvlm = self.config.get("smolvlm", False)
        return tiny_idefics3(seed, smolvlm=smolvlm, text=self.config["text"], vision=vision, **top)

    def save(self, folder: Path) -> None:
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings)

    def write_tokenizer(self, folder: Path) -> None:
        write_tokenizer(folder)

    @property
    def cell(self) -> int:
        return 8

    def preprocessing(self) -> dict[str, Any]:
        side = self.hf.config.vision_config.image_size
        tiles = {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": side * self.config.get("tiles", 2)}}
        return {**PREPROCESSING, **tiles, **self.config.get("images", {})}

    @cached_property
    def tokens(self) -> int:
        """Of a tile."""
        vision = self.hf.config.vision_config
        return (vision.image_size // vision.patch_size // self.hf.config.scale_factor) ** 2

    @cached_property
    def processor(self) -> Idefics3Processor:
        return processor_of(AutoTokenizer.from_pretrained(self.folder), self.preprocessing(), self.tokens)

    def preprocessed(self, images: Sequence[Image.Image]) -> Media:
        """All tiles in a row; a ``counts`` of an image is rows and columns of its tiles, in place of tokens."""
        made = [
            self.processor.image_processor(images=[[image]], return_row_col_info=True, return_tensors="np")
            for image in images
        ]
        pixels = np.concatenate([each["pixel_values"][0] for each in made])
        grids = tuple((each["rows"][0][0], each["cols"][0][0]) for each in made)
        return Media({"pixel_values": torch.from_numpy(pixels)[None]}, grids)

    def expanded(self, template: Sequence[int], media: Media) -> list[int]:
        """Not what is asked for here: `prompt` expands the text, so that what stands between tiles is one piece."""
        return list(template)

    def prompt(self, items: Sequence[Any], question: str) -> Prompt:
        """With the tokens of the template's text after HF's processor has written its own in place of placeholders."""
        prompt = Prompt(self, items, question)
        parts = [part for item in items for part in (item if isinstance(item, list) else [item])]
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in [*parts, question]
        ]
        messages = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt.ids = np.array(
            self.tokenizer(self.written(text, prompt.media.counts), add_special_tokens=False)["input_ids"]
        )
        return prompt

    def written(self, text: str, grids: Sequence[tuple[int, int]]) -> str:
        """A text with what HF's processor writes in place of each placeholder."""
        inputs = {"rows": [[rows for rows, _ in grids]], "cols": [[columns for _, columns in grids]]}
        numbers = iter(range(len(grids)))
        return re.sub("<image>", lambda _: self.processor.replace_image_token(inputs, next(numbers)), text)


_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}

CONFIGS: dict[str, tuple[type[Pair], dict[str, Any]]] = {
    "smolvlm: 4 heads of 16, up to 4 tiles": (Idefics3Pair, {"smolvlm": True}),
    "smolvlm: 3 to 1 heads of 16, tied, 3 x 3 merged, pixels left over": (
        Idefics3Pair,
        {
            "smolvlm": True,
            "text": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
            "vision": {"image_size": 14, "patch_size": 4, "hidden_act": "gelu"},
            "top": {"tie_word_embeddings": True, "scale_factor": 3},
        },
    ),
    "idefics3: 4 to 2 heads of 24, YaRN, every patch a token, one tile": (
        Idefics3Pair,
        {
            "text": {"num_key_value_heads": 2, "head_dim": 24, "num_hidden_layers": 2, "rope_parameters": _YARN},
            "vision": {"layer_norm_eps": 1e-3, "num_attention_heads": 4},
            "top": {"scale_factor": 1},
            "images": {"do_image_splitting": False, "image_mean": [0.1, 0.5, 0.9], "rescale_factor": 1 / 128},
        },
    ),
    "idefics3: 6 heads of 16, 4 x 4 merged, one tile unless it is long": (
        Idefics3Pair,
        {
            "text": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6, "num_hidden_layers": 2},
            "vision": {"image_size": 32, "patch_size": 4, "num_hidden_layers": 1},
            "top": {"scale_factor": 4},
            "tiles": 1,
        },
    ),
}
"""By name, which begins with the port's; ``tiles`` is how many the longer side has, ``images`` other preprocessing."""
