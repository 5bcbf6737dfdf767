"""A tiny tokenizer in the files that a Kimi folder has."""

import base64
import json

TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}<|im_system|>system<|im_middle|>You help.<|im_end|>{%- endif -%}"
    "{%- for message in messages -%}<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<|media_start|>image<|media_content|><|media_pad|><|media_end|>"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}<|im_end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"
)
SPECIAL = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    10: "<|im_system|>",
    17: "<|im_middle|>",
    18: "<|media_start|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    254: "[PAD]",
    255: "[UNK]",
}
"""Names by their place after the ranks, as Kimi-VL has them."""

BYTES = tuple(bytes([byte]) for byte in range(256))


def tokenizer_config(ranks, **changes):
    """tokenizer_config.json of a vocabulary of so many ranks."""
    return {
        "added_tokens_decoder": {
            str(ranks + place): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for place, content in SPECIAL.items()
        },
        "additional_special_tokens": ["<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "extra_special_tokens": {},
        "model_max_length": 1048576,
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
        **changes,
    }


def write_tokenizer(folder, tokens=BYTES, **changes):
    """tiktoken.model and tokenizer_config.json, the tokens in the order of their ranks."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_text("".join(lines))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(len(tokens), **changes)))
    return folder
