"""The tokenizer of the embedded models with tokens around sound, and preprocessing, as Qwen2.5-Omni has them."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from eval.tiny.backbones import BACKBONES
from eval.tiny.vocabulary import CHAT_TEMPLATE, VOCABULARY, build_tokenizer

START, AUDIO, END = (f"<|{name}|>" for name in ("audio_bos", "AUDIO", "audio_eos"))
TOKENS = {word: len(VOCABULARY) + place for place, word in enumerate((START, AUDIO, END))}
SIZE = -(-(len(VOCABULARY) + len(TOKENS)) // 8) * 8
"""Rows of embeddings: the embedded models' tokens, those of sound, and a few more, so that devices divide them."""

_VIDEO = "{%- elif item['type'] == 'video' %}"
TEMPLATE = CHAT_TEMPLATE.replace(
    _VIDEO, f"{{%- elif item['type'] == 'audio' %}}{{{{- '{START}{AUDIO}{END}' }}}}{_VIDEO}"
)

BANDS = 16
SECONDS = 6
MEL: dict[str, Any] = {
    "chunk_length": SECONDS,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": BANDS,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": SECONDS * 16000,
    "nb_max_frames": SECONDS * 100,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}
"""As the hub has it, of fewer bands and shorter sound; it stands in one file with that of images."""

PREPROCESSING: dict[str, Any] = {**BACKBONES["gqa"].preprocessing, **MEL, "processor_class": "Qwen2_5OmniProcessor"}


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer; ids of all other tokens are the embedded models'."""
    build_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
