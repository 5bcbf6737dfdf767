"""A checkpoint's tokenizer and chat template, split where chunks go: preamble, chunks, tail."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.fields import read_json

_MARK = "kamera-chunks-go-here"


class ChatTemplateError(ValueError):
    """A chat template that cannot be split into preamble, chunks and tail."""


class ChatTemplate:
    """Tokens around the chunks of a user turn.

    Attributes:
        preamble: token ids before the first chunk: system text and user header.
        eos: token ids that end an answer.
    """

    def __init__(self, tokenizer: Any, eos: Sequence[int], system: str | None = None) -> None:
        """Split the tokenizer's template.

        Raises:
            ChatTemplateError: there is no template, or it does not put the user's text down once, as it is.
        """
        self._tokenizer = tokenizer
        self.eos = tuple(eos)
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": _MARK}]}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        if not getattr(tokenizer, "chat_template", None):
            raise ChatTemplateError("the tokenizer has no chat template; add chat_template.jinja to the model's folder")
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if whole.count(_MARK) != 1:
            raise ChatTemplateError(
                f"the chat template writes the user's text {whole.count(_MARK)} times; expected once"
            )
        before, self._after = whole.split(_MARK)
        self.preamble = self.encode(before)

    @classmethod
    def load(cls, folder: Path, *, system: str | None = None) -> "ChatTemplate":
        """Read tokenizer, template and end-of-turn tokens of a Hugging Face folder."""
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        declared = (
            read_json(folder / "generation_config.json").get("eos_token_id")
            if (folder / "generation_config.json").exists()
            else None
        )
        if declared is None:
            declared = tokenizer.eos_token_id
        return cls(tokenizer, declared if isinstance(declared, list) else [declared], system)

    def encode(self, text: str) -> list[int]:
        """Token ids of text as it stands, special tokens written out."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def tail(self, question: str) -> list[int]:
        """Token ids of the question and the assistant header."""
        return self.encode(question + self._after)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)
