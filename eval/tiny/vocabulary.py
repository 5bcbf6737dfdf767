"""The words of the embedded model: a tokenizer, a chat template and image settings, in Hugging Face format."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from eval.tiny.glyphs import COLOUR_NAMES, NAMES

UNKNOWN = "[UNK]"
"""What every word outside the vocabulary becomes."""

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens, with the roles they have in Qwen2.5-VL."""

SYSTEM = "you read pages"
"""The system message when none is given."""

_WORDS = """
system user assistant you read pages ? . , ; : ! ' →
what which how many where who colour color colours colors is are was does do did has have can could would
the a an of on in at to from with for by as and or not it its this that these there here
i me my we your tell show say give name find look see answer please now if only
points refers means same like page cell glyph picture image text one two three first last s yes no
"""

VOCABULARY: tuple[str, ...] = (UNKNOWN, *SPECIAL_TOKENS, *NAMES, *COLOUR_NAMES, *_WORDS.split())
"""Every token; its place is its id. The shipped weights depend on the order: it never changes."""

# A line break after a text passage parts it from the text that follows; to the tokenizer it is no token at all.
CHAT_TEMPLATE = r"""
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\n%SYSTEM%<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif item['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif item['type'] == 'text' %}
                {{- item['text'] }}
                {%- if not loop.last %}
                    {{- '\n' }}
                {%- endif %}
            {%- else %}
                {{- raise_exception('content of type ' + item['type'] + '; expected image, video or text') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip().replace("%SYSTEM%", SYSTEM)
"""Messages as text; the structure is that of Qwen2.5-VL's template."""


def build_tokenizer(folder: str | Path) -> None:
    """Write the tokenizer of the embedded model.

    Args:
        folder: where `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` go;
            made if it is missing. `transformers.AutoTokenizer.from_pretrained` loads it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    # No token has a "##": this decoder is here because it sets no space before a full stop or a question mark.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([UNKNOWN, *SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))

    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": UNKNOWN}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", roles)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
