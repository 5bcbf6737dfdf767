"""A tokenizer to which a control token is one only where the chat template wrote it, and plain text where a user did.

``split_special_tokens`` of transformers is not enough: it spares added tokens that are not marked special, as
``<image>`` and ``<tool_call>`` often are, and it splits those of the template as well.
"""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

_BRACKETS = re.compile(r"[<\[({|＜｜⟨【「].*[>\])}|＞｜⟩】」]", re.DOTALL)


class TokenizerError(ValueError):
    """A tokenizer that cannot keep control tokens apart from text."""


class ControlTokens:
    """A copy of a tokenizer in which every control token has a secret name instead of its own, and the same id.

    Text keeps no way to spell one. What the template writes is given the secret names by `written`, and may then be
    joined to text: tokens are those of the whole, as the tokenizer itself would have made them.

    Control tokens are the special ones, those between brackets or bars, and what the template writes of others unless
    it is a word, white space or a single character. The rest of the added tokens stays ordinary vocabulary.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Copy the tokenizer.

        Args:
            tokenizer: of transformers, backed by one of ``tokenizers``.
            template: what its chat template writes.

        Raises:
            TokenizerError: it has another backend, or a model that this does not know.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise TokenizerError(
                f"the tokenizer is a {type(tokenizer).__name__} without tokenizer.json, so control tokens in a user's "
                "text cannot be distinguished from the template's; convert it (AutoTokenizer, then save_pretrained)"
            )
        self._rows: int | None = getattr(tokenizer, "embedding_rows", None)
        special = set(getattr(tokenizer, "all_special_tokens", ()))
        added = dict(sorted(backend.get_added_tokens_decoder().items()))
        nonce = uuid.uuid4().hex
        self._names = {
            token.content: f"<{nonce}:{number}>"
            for number, token in added.items()
            if token.content in special or _is_control(token, template)
        }
        self._copy = _renamed(backend, added, self._names)
        for content, name in self._names.items():
            if self._copy.token_to_id(name) != backend.token_to_id(content):
                raise TokenizerError(
                    f"the tokenizer gives the control token {content!r:.200} no id of its own; expected one"
                )
        longest_first = sorted(self._names, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def written(self, text: str) -> str:
        """Text of the template, which may contain control tokens, ready to be joined to a user's."""
        return self._written.sub(lambda match: self._names[match.group()], text)

    def ids(self, text: str, *, opened: bool = False) -> list[int]:
        """Token ids of text, in which only what `written` gave out is a control token.

        Args:
            text: of users and of the template, joined.
            opened: whether to put before it what the tokenizer opens a text with.

        Raises:
            ValueError: the text contains half a character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text contains {text[error.start]!r:.200}, half of a character cut in two; expected whole ones: "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it"
            ) from error
        try:
            ids = self._copy.encode(text, add_special_tokens=opened).ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # what tokenizers makes of a vocabulary that lacks something; it may panic
            raise TokenizerError(
                f"the tokenizer cannot encode text ({type(error).__name__}: {str(error)[:200]}); fetch it again"
            ) from error
        if self._rows is not None and ids and max(ids) >= self._rows:
            raise TokenizerError(
                f"the tokenizer gives the token {max(ids)}, and the model has {self._rows}; expected a tokenizer of "
                "the same model: fetch the folder again"
            )
        return ids

    def token(self, text: str) -> int:
        """The id of a control token.

        Raises:
            TokenizerError: the tokenizer has none that is spelled so.
        """
        number = None if text not in self._names else self._copy.token_to_id(self._names[text])
        if number is None:
            raise TokenizerError(
                f"the tokenizer has no control token {text!r:.200}, which stands around or for media in this model's "
                "prompts; use the tokenizer of the checkpoint, in the format of transformers"
            )
        return number

    def ends_with_one(self, text: str) -> bool:
        """Whether text ends with a control token that `written` gave out."""
        return text.endswith(tuple(self._names.values()))


def _is_control(token: AddedToken, template: str) -> bool:
    content = token.content
    if token.special:
        return True
    if len(content) < 2 or content.isspace() or content.isalnum():
        return False
    return bool(_BRACKETS.fullmatch(content)) or content in template


def _renamed(backend: Tokenizer, added: Mapping[int, AddedToken], names: Mapping[str, str]) -> Tokenizer:
    """A copy with other names of added tokens, also where they stand in the model's vocabulary."""
    if not any(backend.model.token_to_id(content) is not None for content in names):
        # The model may then be shared, which spares large vocabularies a copy.
        copy = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            if getattr(backend, part) is not None:
                setattr(copy, part, getattr(backend, part))
        copy.add_tokens([_named(token, names) for token in added.values()])
        if all(copy.token_to_id(_named(token, names).content) == number for number, token in added.items()):
            return copy
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    _rename(state["model"], names)
    return Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}, ensure_ascii=False))


def _named(token: AddedToken, names: Mapping[str, str]) -> AddedToken:
    return AddedToken(
        names.get(token.content, token.content),
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Put new names into a model's vocabulary, and drop the merges that lead to the old ones."""
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    if model["type"] not in ("BPE", "WordLevel", "WordPiece"):
        raise TokenizerError(f"the tokenizer is a {model['type']} model; expected BPE, Unigram, WordLevel or WordPiece")
    model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        skipped = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left not in names and right not in names and left + right[skipped:] not in names
        ]
