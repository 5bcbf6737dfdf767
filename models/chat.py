"""A checkpoint's tokenizer and chat template, split where chunks go: preamble, chunks, tail."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.fields import read_json

_MARK, _ANSWER, _NEXT = "kamera-chunks-go-here", "kamera-answer-goes-here", "kamera-question-goes-here"


class ChatTemplateError(ValueError):
    """A chat template that cannot be split into preamble, chunks and tail."""


class ChatTemplate:
    """Tokens around the chunks of a user turn.

    Attributes:
        preamble: token ids before the first chunk: system text and user header.
        closing: token ids after an answer: end of turn and the next user header, but for a space at its end, which
            tokenizers join to the word that follows. Empty where the template writes no conversations.
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
        # A tokenizer that opens every text with a token (BOS) does so unless the template has; as HF's processors.
        opened = bool(tokenizer.bos_token) and before.startswith(tokenizer.bos_token)
        self.preamble = tokenizer.encode(before, add_special_tokens=not opened)
        between = self._between_turns(messages)
        self._header = between.rstrip(" ")
        self._space = between[len(self._header) :]
        self.closing = tuple(self._following(_ANSWER, self._header))
        messages[-1]["content"].insert(0, {"type": "image"})
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = whole.removeprefix(before).split(_MARK)
        self._image = parts[0] if whole.startswith(before) and parts[1:] == [self._after] else ""

    def _between_turns(self, messages: list[dict[str, Any]]) -> str:
        """What the template writes from an answer's end to the next question; nothing if it does not write both."""
        roles = (("assistant", _ANSWER), ("user", _NEXT))
        turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles]
        whole = self._tokenizer.apply_chat_template([*messages, *turns], tokenize=False, add_generation_prompt=True)
        if re.findall("|".join((_MARK, _ANSWER, _NEXT)), whole) != [_MARK, _ANSWER, _NEXT]:
            return ""
        return whole.split(_ANSWER)[1].split(_NEXT)[0]

    @classmethod
    def load(cls, folder: Path, *, system: str | None = None) -> "ChatTemplate":
        """Read tokenizer, template and end-of-turn tokens of a Hugging Face folder."""
        tokenizer = _load_tokenizer(folder)
        declared = (
            read_json(folder / "generation_config.json").get("eos_token_id")
            if (folder / "generation_config.json").exists()
            else None
        )
        if declared is None:
            declared = tokenizer.eos_token_id
        return cls(tokenizer, declared if isinstance(declared, list) else [declared], system)

    def encode(self, text: str) -> list[int]:
        """Token ids of text within the turn, special tokens written out.

        Where it follows an image: Llama's tokenizer, among others, sets a space before what begins a text.
        """
        return self._following(self._image, text)

    def _following(self, before: str, text: str) -> list[int]:
        """Token ids of text where it follows other text, as far as the tokens of that stay as they are."""
        first, whole = self._ids(before), self._ids(before + text)
        return whole[len(first) :] if whole[: len(first)] == first else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def tail(self, question: str) -> list[int]:
        """Token ids of the question and the assistant header."""
        return self.encode(question + self._after)

    def follow_up(self, question: str) -> list[int]:
        """As `tail`, for a question right after `closing`."""
        if not self._header:
            return self.tail(question)
        return self._following(self._header, self._space + question + self._after)

    def image(self, count: int, placeholder: int) -> tuple[list[int], int]:
        """Token ids of an image as the template writes it, and where its own tokens start.

        Args:
            count: tokens of the image itself.
            placeholder: the token that stands in for them, once in the template.

        Raises:
            ChatTemplateError: the template does not write an image with one placeholder.
        """
        ids = self._ids(self._image)
        if ids.count(placeholder) != 1:
            raise ChatTemplateError(
                f"the chat template writes an image as {self._image!r}, with the placeholder {ids.count(placeholder)} "
                "times; expected once: use the template of a vision-language model"
            )
        first = ids.index(placeholder)
        return [*ids[:first], *[placeholder] * count, *ids[first + 1 :]], first

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


def _load_tokenizer(folder: Path) -> Any:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if (folder / "tiktoken.model").exists() and not (folder / "tokenizer.json").exists():
        from models.tiktoken import load_tokenizer

        return load_tokenizer(folder)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    described = folder / "tokenizer_config.json"
    if described.exists() and read_json(described).get("tokenizer_class") == "PreTrainedTokenizerFast":
        # The general class asks the model type for a class, and warns of types it has never heard of.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
