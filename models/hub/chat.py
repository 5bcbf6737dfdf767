"""A checkpoint's tokenizer and chat template, split where chunks go: preamble, chunks, tail."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from models.hub.borders import Piece, ends_open, pieces
from models.hub.control_tokens import ControlTokens
from models.hub.fields import Fields, read_json
from models.hub.splitting import PADDED, header_of_all, stripping
from models.hub.templates import ChatTemplateError, render, template_of
from models.hub.tokenizers import load_tokenizer, opener, stopped_clock

_MARK = "kamera-chunks-go-here"
_ANSWER = "kamera-answer-goes-here"
_NEXT = "kamera-question-goes-here"
_SYSTEM = "kamera-system-goes-here"
_PART = "kamera-part-{}-goes-here"
_STARTS = ("", "x", "1", ".", "\n")
"""What stands before a text within a turn, to see what it becomes there: one of them joins no token of it."""
_PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""What a language model without a chat template reads: texts and question as they are, one after another."""


@dataclass(frozen=True)
class Block:
    """A media block among the parts of a message; ``kind`` is the type of its content part, such as ``"image"``."""

    kind: str


IMAGE = Block("image")


class ChatTemplate:
    """Tokens around the chunks of a user turn.

    Preamble, chunks and tail in a row say what the template writes of the same message, control tokens included,
    but each is made into tokens alone: a chunk's are the same wherever it stands. So they are the template's own tokens
    wherever none of those reaches across a border. One that does is split there; such are a space at the end of the
    user's header ("USER: ") or after a text with the word that follows, a run of white space, digits or punctuation
    that a text ends with and the next begins with, and parts of a word that goes on in the next text.

    What a user types is never a control token: ``<|im_end|>`` in a text is its letters.

    Attributes:
        preamble: token ids before the first chunk: system text and user header.
        closing: token ids after an answer: end of turn and the next user header, but for a space at its end, which
            tokenizers join to the word that follows. Empty where the template writes no conversations.
        eos: token ids that end an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos: Sequence[int],
        system: str | None = None,
        kinds: Sequence[str] = (IMAGE.kind,),
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Split the tokenizer's template.

        Args:
            tokenizer: with its chat template.
            eos: token ids that end an answer.
            system: system text; the template's own by default.
            kinds: of the media that messages may hold; the first is what a text is taken to follow. Where there are
                none, as of a language model, the content of messages is a list of parts only if the template writes it
                as it writes a string, and a string otherwise. Such a model may also have no template: what it reads is
                then the token that opens a text, the system text, the chunks and the question, as they are.
            variables: of the template, by name, such as ``{"enable_thinking": False}``; as ``strftime_now`` a date, for
                templates that write today's.

        Raises:
            ChatTemplateError: there is no template, or it does not put the user's or the system's text down once.
            TokenizerError: the tokenizer cannot keep control tokens apart from text.
        """
        self._tokenizer = tokenizer
        self.eos = tuple(eos)
        self._variables = dict(variables or {})
        template = self._template = template_of(tokenizer)
        if not template:
            if kinds:
                raise ChatTemplateError(
                    "the tokenizer has no chat template; add chat_template.jinja to the model's folder"
                )
            self._variables |= {"chat_template": _PLAIN}
        moment = self._variables.pop("strftime_now", None) or datetime.now()
        if "strftime_now" in template:
            self._variables |= stopped_clock(template, moment)
        # An empty system text has nothing to keep apart, and templates may ask whether there is one.
        self._system = [] if system is None else [_turn("system", _SYSTEM if system else "")]
        self._strings = not kinds and self._takes_strings()
        whole = self._render([_MARK])
        for whose, mark in {"user's": _MARK, **({"system's": _SYSTEM} if system else {})}.items():
            if whole.count(mark) != 1:
                raise ChatTemplateError(
                    f"the chat template writes the {whose} text {whole.count(mark)} times; expected once"
                )
        asked = None  # system text that the template reads, such as one with "/no_think"
        if system and not self._copies_system(whole, system):
            asked = system
            system = None
            self._system = [_turn("system", asked)]
            whole = self._render([_MARK])
        with_block = {kind: self._render([Block(kind), _MARK], optional=True) for kind in kinds}
        between = self._between_turns()
        self._control = ControlTokens(tokenizer, whole + "".join(with_block.values()) + between)

        if asked and self._control.written(asked) != asked:
            raise ChatTemplateError(
                f"the chat template does not write the system text {asked!r} as it is, and there are control tokens in "
                "it; leave them out"
            )
        before, after = whole.split(_MARK)
        header = header_of_all(before, with_block.values())
        self._around = ((before, header), after)
        self._after = self._control.written(after)
        first = self._with_system(header, system)
        if kinds:
            # A tokenizer that opens every text with a token (BOS) does so unless the template has; as HF's processors.
            # A language model's template is alone with it.
            opened = bool(tokenizer.bos_token) and header.startswith(tokenizer.bos_token)
            self.preamble = self._control.ids(first, opened=not opened)
        elif template:
            self.preamble = self._control.ids(first) or self._control.ids(self._control.written(opener(tokenizer)))
        else:
            self.preamble = self._plain_preamble(first)
            first = first or "\n"
        next_header = between.rstrip(" ")
        self._space = between[len(next_header) :]
        self._header = self._control.written(next_header)
        self.closing = tuple(self._following(_ANSWER, self._header))
        self._blocks = {kind: self._control.written(self._between(text)) for kind, text in with_block.items()}
        self._before_text = next(iter(self._blocks.values()), first)
        self._strip = stripping(self._render([PADDED.format(_MARK)]), _MARK)
        self._parting = self._control.written(self._between_texts())

    def _plain_preamble(self, first: str) -> list[int]:
        """What stands before texts where there is no template: what opens them, and the system text.

        A tokenizer that sets a space before what begins a text (Llama's) sets it there, so that a chunk's text has none
        wherever it stands.
        """
        opened = self._control.ids("", opened=True)
        if not opened:
            return self._control.ids(self._control.written(opener(self._tokenizer)) + first)
        if first:
            return self._control.ids(first, opened=True)
        with_break = self._control.ids("\n", opened=True)
        spaced = with_break[: len(opened)] == opened and len(with_break) == len(opened) + 2
        return with_break[:-1] if spaced else opened

    def _between(self, whole: str) -> str:
        """What the template writes from the user's header to the question; nothing if it writes these otherwise."""
        headers, after = self._around
        for header in headers:
            parts = whole.removeprefix(header).split(_MARK)
            if whole.startswith(header) and parts[1:] == [after]:
                return parts[0]
        return ""

    def _render(
        self, content: Sequence[str | Block], *turns: dict[str, Any], optional: bool = False, system: bool = True
    ) -> str:
        """What the template writes of a user's texts and media blocks, and of turns after it; ``system`` text first.

        Raises:
            ChatTemplateError: it does not take them; where that is ``optional`` it wrote nothing.
        """
        messages = [*(self._system if system else ()), _turn("user", *content), *turns]
        try:
            return self._write(messages)
        except TemplateError as error:
            if optional:
                return ""
            roles = ", ".join(message["role"] for message in messages)
            kind = "strings as" if self._strings else "lists of"
            advice = "" if self._strings else "use the template of a vision-language model, and "
            raise ChatTemplateError(
                f"the chat template does not take messages of {roles} with {kind} content ({error}); {advice}give no "
                "system text if it takes none: it can stand at the start of the first chunk"
            ) from error

    def _write(self, messages: list[dict[str, Any]]) -> str:
        if self._strings:
            messages = [{**each, "content": "".join(part["text"] for part in each["content"])} for each in messages]
        variables = {**self._tokenizer.special_tokens_map, **self._variables}
        template = variables.pop("chat_template", None)
        return render(self._template if template is None else template, messages, variables)

    def _takes_strings(self) -> bool:
        """Whether a language model's template is given strings: wherever lists of parts are not written alike.

        It may refuse lists, or print them as Python does.
        """
        written = []
        for strings in (True, False):
            self._strings = strings
            written.append((self._render([_MARK], optional=True), self._between_turns()))
        if all(_MARK not in whole for whole, _ in written):
            return True  # refused, with what the template says of strings
        return written[0] != written[1] and written[0][0].count(_MARK) == 1

    def _with_system(self, before: str, system: str | None) -> str:
        """What the template writes before the chunks, with the system's text where it goes."""
        if not system:
            return self._control.written(before)
        first, second = before.split(_SYSTEM)
        return self._control.written(first) + self._strip_system(system) + self._control.written(second)

    def _strip_system(self, text: str) -> str:
        """The system's text less the white space that the template takes from its ends."""
        return stripping(self._render_system(PADDED.format(_SYSTEM)), _SYSTEM)(text)

    def _copies_system(self, whole: str, text: str) -> bool:
        """Whether the template writes this system text where it writes any other, and nothing else for it."""
        try:
            return self._render_system(text) == whole.replace(_SYSTEM, self._strip_system(text))
        except TemplateError:
            return False

    def _render_system(self, text: str) -> str:
        return self._write([_turn("system", text), _turn("user", _MARK)])

    def _between_turns(self) -> str:
        """What the template writes from an answer's end to the next question; nothing if it does not write both."""
        turns = (_turn("assistant", _ANSWER), _turn("user", _NEXT))
        whole = self._render([_MARK], *turns, optional=True)
        texts = [turn["content"][0]["text"] for turn in self._system]
        if any(text and text in whole.partition(_ANSWER)[2] for text in texts):
            # The template writes the system's text in the last turn; the preamble has it already.
            whole = self._render([_MARK], *turns, optional=True, system=False)
        parts = re.split("|".join((_MARK, _ANSWER, _NEXT)), whole)
        in_order = re.findall("|".join((_MARK, _ANSWER, _NEXT)), whole) == [_MARK, _ANSWER, _NEXT]
        return parts[2] if in_order else ""

    def _between_texts(self) -> str:
        """What the template writes from a text to the next of the same message, if that is always the same."""
        marks = (_MARK, _ANSWER, _NEXT)
        parts = re.split("|".join(marks), self._render(marks, optional=True))
        return parts[1] if len(parts) == 4 and parts[1] == parts[2] else ""

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        system: str | None = None,
        kinds: Sequence[str] = (IMAGE.kind,),
        variables: Mapping[str, Any] | None = None,
    ) -> "ChatTemplate":
        """Read tokenizer, template and end-of-turn tokens of a Hugging Face folder.

        Args:
            folder: in hub format.
            system: system text; the template's own by default.
            kinds: of the media that messages may hold.
            variables: of the template, by name.

        Raises:
            ConfigError: a file is missing or unreadable, or end-of-turn tokens are no ids.
            ChatTemplateError, TokenizerError: see `ChatTemplate`.
        """
        tokenizer = load_tokenizer(folder)
        eos = tokenizer.eos_token_id
        if (folder / "generation_config.json").exists():
            declared = read_json(folder / "generation_config.json").get("eos_token_id")
            eos = eos if declared is None else declared
        if eos is None and (folder / "config.json").exists():
            eos = read_json(folder / "config.json").get("eos_token_id")
        fields = Fields("generation_config.json", {"eos_token_id": eos})
        ends = (
            fields.sizes("eos_token_id", least=0) if isinstance(eos, list) else (fields.size("eos_token_id", least=0),)
        )
        try:
            return cls(tokenizer, ends, system, kinds, variables)
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template cannot be used ({error}); use the model's own") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text within the turn, and of what the template writes from it to a next one.

        Where it follows an image: Llama's tokenizer, among others, sets a space before what begins a text. Empty for a
        text without tokens.
        """
        text = self._strip(text)
        return self._in_turn(text + self._parting) if self._in_turn(text) else []

    def cut(self, text: str, tokens: int) -> list[Piece]:
        """A user's text in pieces of at most so many tokens, whose ids in a row are what `encode` gives the whole.

        See `models.hub.borders.pieces`; what the template writes from the text to a next one comes to the last piece.
        """
        text = self._strip(text)
        return pieces(text, self._in_turn(text + self._parting), self._in_turn, tokens)

    def ends_open(self, text: str) -> bool:
        """Whether a user's text ends in white space that the tokenizer would join to a word that follows."""
        return not self._parting and ends_open(self._strip(text), self._in_turn)

    def _in_turn(self, text: str) -> list[int]:
        """Token ids of text where it follows the first kind of block, or begins the turn where there is none."""
        return self._following(self._before_text, text)

    def _following(self, before: str, text: str) -> list[int]:
        """Token ids of text where it follows other text, whose own tokens stay as they are."""
        for start in ("",) if self._control.ends_with_one(before) or not before else _STARTS:
            first = self._control.ids(before + start)
            whole = self._control.ids(before + start + text)
            if whole[: len(first)] == first:
                return whole[len(first) :]
        return self._control.ids(text)

    def tail(self, question: str) -> list[int]:
        """Token ids of the question and the assistant header."""
        return self._in_turn(self._strip(question) + self._after)

    def follow_up(self, question: str) -> list[int]:
        """As `tail`, for a question right after `closing`."""
        if not self._header:
            return self.tail(question)
        return self._following(self._header, self._space + self._strip(question) + self._after)

    def answer(self, question: str, text: str) -> list[int]:
        """Token ids of a text as the answer to a question, behind `tail`, whose own tokens stay as they are."""
        before = self._in_turn(self._strip(question) + self._after)
        whole = self._in_turn(self._strip(question) + self._after + text)
        same = whole[: len(before)] == before
        return whole[len(before) :] if same else self._following(self._after, text)

    def content(self, parts: Sequence[str | Block], placeholders: Mapping[str, int]) -> list[int]:
        """Token ids of texts and media blocks as the template writes them in one message, up to what follows them.

        Args:
            parts: one at least; where the template puts media first, whatever comes first, so does this.
            placeholders: by kind, the token that stands for a block, once in the template.

        Raises:
            ChatTemplateError: the template does not write each text once, and each block with one placeholder.
        """
        ids = self._part(parts[0]) if len(parts) == 1 else self._joined(parts)
        kinds = [part.kind for part in parts if isinstance(part, Block)]
        for placeholder in {placeholders[kind] for kind in kinds}:
            blocks = [kind for kind in kinds if placeholders[kind] == placeholder]
            if ids.count(placeholder) != len(blocks):
                raise ChatTemplateError(
                    f"the chat template writes {', '.join(blocks)} as {self._tokenizer.decode(ids)!r}, with the "
                    f"placeholder {ids.count(placeholder)} times; expected {len(blocks)}: use the template of a "
                    "vision-language model"
                )
        return ids

    def _part(self, part: str | Block) -> list[int]:
        return self.encode(part) if isinstance(part, str) else self._control.ids(self._blocks[part.kind])

    def _joined(self, parts: Sequence[str | Block]) -> list[int]:
        """Token ids of what the template writes of several parts.

        Raises:
            ChatTemplateError: it does not write each text once, between the user's header and the question.
        """
        marks = {_PART.format(number): part for number, part in enumerate(parts) if isinstance(part, str)}
        names = iter(marks)
        whole = self._render([next(names) if isinstance(part, str) else part for part in parts] + [_MARK])
        body = self._between(whole)
        if not body or any(body.count(mark) != 1 for mark in marks):
            raise ChatTemplateError(
                f"the chat template does not write the {len(parts)} parts of a message (texts and media blocks) once "
                "each between the user's header and the question; encode them one by one"
            )
        pieces = re.split(f"({'|'.join(marks)})" if marks else r"(?!)", body)
        text = "".join(self._strip(marks[each]) if each in marks else self._control.written(each) for each in pieces)
        return self._in_turn(text) if body.startswith(tuple(marks)) else self._control.ids(text)

    def ids(self, text: str) -> list[int]:
        """Token ids of text that is the template's own, or a port's: control tokens in it are control tokens."""
        return self._control.ids(self._control.written(text))

    def token(self, text: str) -> int:
        """The id of a control token, such as ``<img>``; raises TokenizerError where the tokenizer has none of it."""
        return self._control.token(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


def _turn(role: str, *content: str | Block) -> dict[str, Any]:
    """A message of texts and media blocks."""
    items = [{"type": each.kind} if isinstance(each, Block) else {"type": "text", "text": each} for each in content]
    return {"role": role, "content": items}
