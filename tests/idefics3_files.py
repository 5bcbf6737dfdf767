"""The tokenizer of the embedded models as Idefics3 and SmolVLM2 have it: tokens around tiles, and their template."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from eval.tiny.vocabulary import VOCABULARY, build_tokenizer

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_RENAMED = {
    "<|vision_start|>": "<fake_token_around_image>",
    "<|vision_end|>": "<global-img>",
    "<|image_pad|>": "<image>",
    "<|im_end|>": "<end_of_utterance>",
}
PLACES = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
SIZE = -(-(len(VOCABULARY) + len(PLACES)) // 8) * 8
"""Rows of embeddings: the embedded models' tokens, those before tiles, and a few more, so that devices divide them."""

PREPROCESSING: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SmolVLMImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 512},
    "processor_class": "SmolVLMProcessor",
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 2048},
}
"""As the hub has it."""


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer; ids of the tokens around and within images are those of the embedded models'."""
    build_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
            for old, new in _RENAMED.items():
                text = text.replace(json.dumps(old), json.dumps(new))
            path.write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(PLACES))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
