"""The thinkers of Qwen2.5-Omni and Qwen3-Omni in whole checkpoints, as `tests.parity.pairs` has other ports."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import kamera_jax as kj
from models.hub.tensor_files import SINGLE
from tests.omni_files import AUDIO, MEL, SIZE, START, TOKENS, write_tokenizer
from tests.parity.oracle import Media, Prompt, token
from tests.parity.qwen3_pairs import INTERLEAVED, TIED, YARN, QwenVLPair, rate_of, video_patches
from tests.parity.tiny_hf import save_hub_folder, tiny_qwen2_5_omni, tiny_qwen3_omni

SPECIAL = {
    "image_token_index": token("image_pad"),
    "video_token_index": token("video_pad"),
    "audio_token_index": TOKENS[AUDIO],
    "audio_start_token_id": TOKENS[START],
    "audio_end_token_id": TOKENS["<|audio_eos|>"],
    "vision_start_token_id": token("vision_start"),
    "vision_end_token_id": token("vision_end"),
}


class OmniPair(QwenVLPair):
    """M-RoPE; sound counts on by one a token. Of Qwen2.5-Omni; ``"alone"`` saves the thinker by itself.

    Attributes:
        make: builds the random model.
        family: the model's ``model_type``.
        special: ids of its tokens, by what config.json calls them.
        vocoder: what the names of the tensors begin with that make sound of the talker's.
        filled: how its processor fills a recording up.
    """

    make: Any = staticmethod(tiny_qwen2_5_omni)
    family = "qwen2_5_omni"
    special = SPECIAL
    vocoder = "token2wav"
    filled: dict[str, Any] = {"padding": "max_length"}

    def __init__(self, config: dict[str, Any], folder: Path, *, seed: int) -> None:
        super().__init__({**config, "text": {"vocab_size": SIZE, **config.get("text", {})}}, folder, seed=seed)

    def build(self, seed: int) -> Any:
        vision = {"initializer_range": 0.15, **self.config.get("vision", {})}
        audio = {"initializer_range": 0.15, **self.config.get("audio", {})}
        top = {**self.special, **self.config.get("top", {})}
        return self.make(seed, text=self.config["text"], vision=vision, audio=audio, **top)

    def save(self, folder: Path) -> None:
        """As the hub has it: the thinker behind its prefix, among what speaks."""
        save_hub_folder(self.hf, folder)
        if self.config.get("alone"):
            return
        tensors = {
            name if name.startswith("thinker.") else f"thinker.{name}": tensor
            for name, tensor in load_file(folder / SINGLE).items()
        }
        tensors |= {"talker.model.norm.weight": torch.ones(3), f"{self.vocoder}.proj.bias": torch.ones(2)}
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        whole = {
            "enable_audio_output": True,
            "model_type": self.family,
            "talker_config": {"model_type": f"{self.family}_talker"},
            "thinker_config": self.hf.config.to_dict(),
            f"{self.vocoder}_config": {"model_type": f"{self.family}_{self.vocoder}"},
        }
        (folder / "config.json").write_text(json.dumps(whole))

    def write_tokenizer(self, folder: Path) -> None:
        write_tokenizer(folder)

    def preprocessing(self) -> dict[str, Any]:
        return {**super().preprocessing(), **MEL, "feature_size": self.hf.config.audio_config.num_mel_bins}

    @cached_property
    def extractor(self) -> WhisperFeatureExtractor:
        names = ("feature_size", "chunk_length", "hop_length", "n_fft")
        return WhisperFeatureExtractor(**{name: self.preprocessing()[name] for name in names})

    def mel(self, audio: kj.Audio) -> tuple[torch.Tensor, torch.Tensor]:
        """What HF's processor makes of a recording: features [F, T] with silence behind, and which are none."""
        made = self.extractor(
            audio.samples, sampling_rate=16000, return_attention_mask=True, return_tensors="pt", **self.filled
        )
        return made["input_features"][0], made["attention_mask"][0]

    def samples(self, frames: int) -> int:
        """Those of a recording of so many frames, of which the last is none whole."""
        return frames * 160 - 77

    def tokens(self, frames: int) -> int:
        """Of a recording of so many frames."""
        return ((frames - 1) // 2 + 1 - 2) // 2 + 1

    def media(self, items: Sequence[Any]) -> Media:
        media = super().media(items)
        sounds = [self.mel(item) for item in items if isinstance(item, kj.Audio)]
        if not sounds:
            return media
        counts = tuple(self.tokens(int(mask.sum())) for _, mask in sounds)
        longest = max(mask.shape[-1] for _, mask in sounds)
        sounds = [[torch.nn.functional.pad(each, (0, longest - each.shape[-1])) for each in pair] for pair in sounds]
        features, masks = (torch.stack(each) for each in zip(*sounds, strict=True))
        tensors = {**media.tensors, "input_features": features, "feature_attention_mask": masks}
        return replace(media, tensors=tensors, audio_counts=counts)

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
        counts = tuple(int(grid.prod()) // merge**2 for grid in grids)
        seconds = tuple(2 / round(rate_of(video), 3) for video in videos)
        return replace(media, tensors=tensors, video_counts=counts, intervals=seconds)

    def expanded(self, template: Sequence[int], media: Media) -> list[int]:
        counts = iter(media.audio_counts)
        ids = []
        for each in super().expanded(template, media):
            ids += [each] * (next(counts) if each == TOKENS[AUDIO] else 1)
        return ids

    def positions(self, ids: np.ndarray, media: Media) -> np.ndarray:
        given = torch.from_numpy(ids)[None]
        masks = media.tensors.get("feature_attention_mask")
        at, _ = self.hf.model.get_rope_index(
            given,
            media.tensors.get("image_grid_thw"),
            media.tensors.get("video_grid_thw"),
            attention_mask=torch.ones_like(given),
            audio_seqlens=None if masks is None else masks.sum(-1),
            second_per_grids=torch.tensor(media.intervals),
        )
        return at[:, 0].numpy()

    def generation(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        return {}


class Qwen3OmniPair(OmniPair):
    """With experts, each in tensors of its own as on the hub; times of videos are fractions of a position."""

    make = staticmethod(tiny_qwen3_omni)
    family = "qwen3_omni_moe"
    special = {name.replace("_index", "_id"): each for name, each in SPECIAL.items()} | {"position_id_per_seconds": 13}
    vocoder = "code2wav"
    filled = {"padding": True, "truncation": False}

    def build(self, seed: int) -> Any:
        hf = super().build(seed)
        hf.model.get_audio_features = MethodType(_apart, hf.model)
        return hf

    def save(self, folder: Path) -> None:
        super().save(folder)
        images = QwenVLPair.preprocessing(self)
        settings = {name: each for name, each in images.items() if name != "image_processor_type"}
        settings["video_processor_type"] = "Qwen2VLVideoProcessor"
        (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))

    def samples(self, frames: int) -> int:
        return frames * 160 + 77

    def tokens(self, frames: int) -> int:
        whole, rest = divmod(frames, 2 * self.hf.config.audio_config.n_window)
        for _ in range(3):
            rest = (rest - 1) // 2 + 1
        return 13 * whole + rest


def _apart(model: Any, features: torch.Tensor, masks: torch.Tensor, *_: Any, **how: Any) -> Any:
    """HF's, one recording at a time: together the longest fills up the last pieces of the others."""
    each = [
        type(model).get_audio_features(model, *one, **how)
        for one in zip(features[:, None], masks[:, None], strict=True)
    ]
    return BaseModelOutputWithPooling(last_hidden_state=torch.cat([made.last_hidden_state for made in each]))


CONFIGS: dict[str, tuple[type[OmniPair], dict[str, Any]]] = {
    "qwen2_5_omni: 4 to 2 heads of 16, pieces of 10 frames": (OmniPair, {}),
    "qwen2_5_omni: 4 to 1 heads of 24, tied, pieces of 4, 3 layers of sound": (
        OmniPair,
        {
            "text": {
                "hidden_size": 96,
                "num_key_value_heads": 1,
                "num_hidden_layers": 2,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 4, 6]},
            },
            "vision": {"fullatt_block_indexes": [], "window_size": 24, "out_hidden_size": 96},
            "audio": {"n_window": 2, "output_dim": 96, "encoder_layers": 3, "num_mel_bins": 24},
            **TIED,
        },
    ),
    "qwen2_5_omni: 6 to 2 heads of 32, YaRN, 4 heads of sound, 13 positions a second": (
        OmniPair,
        {
            "text": {
                "hidden_size": 192,
                "num_attention_heads": 6,
                "num_hidden_layers": 2,
                "rope_parameters": {**YARN, "mrope_section": [4, 6, 6]},
            },
            "vision": {"num_heads": 4, "out_hidden_size": 192},
            "audio": {"encoder_attention_heads": 4, "output_dim": 192, "n_window": 3, "d_model": 48},
            "top": {"position_id_per_seconds": 13},
        },
    ),
    "qwen2_5_omni: 4 to 4 heads of 16, pieces of 200 frames, tanh": (
        OmniPair,
        {
            "text": {"num_key_value_heads": 4, "num_hidden_layers": 2},
            "vision": {"depth": 1, "fullatt_block_indexes": [0]},
            "audio": {"n_window": 100, "max_source_positions": 100, "activation_function": "gelu_pytorch_tanh"},
            "alone": True,
        },
    ),
    "qwen3_omni_moe: 4 to 2 heads of 16, 2 of 6 experts, 3 of 4 layers deep": (Qwen3OmniPair, {}),
}
"""By name, which begins with the port's."""

MORE: dict[str, tuple[type[OmniPair], dict[str, Any]]] = {
    "qwen3_omni_moe: 4 to 1 heads of 24, a dense layer, tied, windows of 3 pieces of 104": (
        Qwen3OmniPair,
        {
            "text": {
                "hidden_size": 96,
                "num_key_value_heads": 1,
                "num_hidden_layers": 2,
                "head_dim": 24,
                "num_experts": 5,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 32,
                "mlp_only_layers": [0],
                "rms_norm_eps": 1e-5,
                "rope_parameters": {**INTERLEAVED, "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
            },
            "vision": {"num_position_embeddings": 9, "deepstack_visual_indexes": [1], "out_hidden_size": 96},
            "audio": {"n_window": 52, "n_window_infer": 320, "output_dim": 96, "encoder_layers": 3, "num_mel_bins": 24},
            **TIED,
        },
    ),
    "qwen3_omni_moe: 8 to 2 heads of 16, YaRN, 4 of 16 experts, weights as they are, 25 positions a second": (
        Qwen3OmniPair,
        {
            "text": {
                "num_attention_heads": 8,
                "num_hidden_layers": 3,
                "num_experts": 16,
                "num_experts_per_tok": 4,
                "norm_topk_prob": False,
                "rope_parameters": {**YARN, "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
            },
            "vision": {"num_heads": 4, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 3]},
            "audio": {"encoder_attention_heads": 4, "d_model": 48, "downsample_hidden_size": 5, "num_mel_bins": 20},
            "top": {"position_id_per_seconds": 25},
        },
    ),
    "qwen3_omni_moe: 4 to 4 heads of 16, a thinker alone, nothing deep, windows of a piece, tanh": (
        Qwen3OmniPair,
        {
            "text": {"num_key_value_heads": 4, "num_hidden_layers": 2, "moe_intermediate_size": 40},
            "vision": {"depth": 1, "deepstack_visual_indexes": []},
            "audio": {"n_window": 49, "n_window_infer": 100, "activation_function": "gelu_pytorch_tanh"},
            "alone": True,
        },
    ),
}
"""For what is of omni models alone: language model and images are those of Qwen3-VL with experts."""

SOUNDING = CONFIGS | MORE

FAR: dict[str, tuple[type[OmniPair], dict[str, Any]]] = {
    "qwen2_5_omni": (
        OmniPair,
        {"text": {"rope_parameters": {"rope_type": "default", "rope_theta": 256.0, "mrope_section": [2, 3, 3]}}},
    ),
}
"""Of angles that are exact far from 0; Qwen3-Omni's are those of Qwen3-VL."""
