"""A GGUF file's tokenizer and chat template as the files of a hub folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from models.hub.gguf.errors import GgufTokenizerError
from models.hub.gguf.file import GgufFile
from models.hub.gguf.pre_tokenizers import pre_tokenizer

TOKENS = 500_000
"""Tokens of a vocabulary, at most."""

TOKEN_CHARACTERS = 1024
"""Characters of a token, at most: every cut of it may be tried."""

_CONTROL = 3
_USER_DEFINED = 4
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>")
"""Control tokens that end an answer wherever they are one, as in llama.cpp."""

_SENTENCE_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""What SentencePiece's tokens are where the file does not say, as in llama.cpp."""

_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_TEMPLATE = "tokenizer.chat_template"
_AGAIN = "fetch the file again, or convert the model anew"


class Vocabulary:
    """What a file's metadata says of its tokens.

    Attributes:
        tokens: by id.
        kinds: of each, by llama.cpp's numbers.
    """

    def __init__(self, file: GgufFile) -> None:
        """Read tokens and their types.

        Raises:
            GgufTokenizerError: there are none, or they are no vocabulary.
        """
        self._file = file
        self.tokens: list[str] = [
            token or f"[EMPTY_{number}]" for number, token in enumerate(self.texts("tokens", required=True))
        ]
        longest = max(self.tokens, key=len)
        if len(self.tokens) > TOKENS or len(longest) > TOKEN_CHARACTERS:
            raise GgufTokenizerError(
                f"{file.path} has {len(self.tokens)} tokens, of up to {len(longest)} characters; expected at most "
                f"{TOKENS} of {TOKEN_CHARACTERS}: {_AGAIN}"
            )
        self.kinds: Sequence[int] = file.metadata.get("tokenizer.ggml.token_type", [1] * len(self.tokens))
        if not isinstance(self.kinds, list) or len(self.kinds) != len(self.tokens):
            count = len(self.kinds) if isinstance(self.kinds, list) else 0
            raise GgufTokenizerError(
                f"{file.path} has {len(self.tokens)} tokens and {count} token types; expected one for each: {_AGAIN}"
            )
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for number, token in enumerate(self.tokens) if self.ids[token] != number)
            raise GgufTokenizerError(f"{file.path} has the token {twice!r:.200} twice; expected each once: {_AGAIN}")

    def texts(self, name: str, *, required: bool = False) -> list[str]:
        """A list of texts in the metadata of tokenizers.

        Raises:
            GgufTokenizerError: it is something else, or missing where it is ``required``.
        """
        values = self._file.metadata.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values) or required > bool(values):
            raise GgufTokenizerError(f"{self._file.path} has no texts in tokenizer.ggml.{name}; {_AGAIN}")
        return values

    def flag(self, name: str, default: bool) -> bool:
        """A switch in the metadata of tokenizers."""
        return bool(self._file.metadata.get(f"tokenizer.ggml.{name}", default))

    def named(self, name: str) -> str | None:
        """The token that the metadata gives a role, such as ``"bos"``.

        Raises:
            GgufTokenizerError: its id is no token's.
        """
        number = self._file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is None and self._file.metadata.get("tokenizer.ggml.model") == "llama":
            number = _SENTENCE_PIECE_IDS.get(name)
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(self.tokens):
            raise GgufTokenizerError(
                f"{self._file.path}: tokenizer.ggml.{name}_token_id is {number!r:.200}; expected an id of one of the "
                f"{len(self.tokens)} tokens: {_AGAIN}"
            )
        return self.tokens[number]

    def ends(self) -> list[int]:
        """Ids of tokens that end an answer: those of the metadata first."""
        named = [self.named(name) for name in ("eos", "eot", "eom")]
        known = [token for token in _ENDS if token in self.ids and self.kinds[self.ids[token]] == _CONTROL]
        return list(dict.fromkeys(self.ids[token] for token in (*named, *known) if token is not None))

    def added(self) -> Iterator[AddedToken]:
        """Tokens that are matched in the text as they are, before it is split."""
        for token, kind in zip(self.tokens, self.kinds, strict=True):
            if kind in (_CONTROL, _USER_DEFINED):
                yield AddedToken(token, special=kind == _CONTROL, normalized=False)


def tokenizer_of(file: GgufFile) -> Tokenizer:
    """The file's tokenizer.

    Raises:
        GgufTokenizerError: it is of a kind that is not served, or its parts do not fit; as `UnknownPreTokenizerError`,
            it splits text in a way that is not known.
    """
    vocabulary = Vocabulary(file)
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise GgufTokenizerError(
            f"{file.path} has a tokenizer of the kind {kind!r:.200}; only 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece) are served: load the model from a folder in hub format"
        )
    try:
        tokenizer, opens = _byte_level(file, vocabulary) if kind == "gpt2" else _sentence_piece(file, vocabulary)
    except GgufTokenizerError as error:
        raise type(error)(_in_file(file, str(error))) from error
    except Exception as error:  # what tokenizers raises of merges that are none
        raise GgufTokenizerError(f"{file.path} has a tokenizer that cannot be built ({error}); {_AGAIN}") from error
    tokenizer.add_tokens(list(vocabulary.added()))
    bos = vocabulary.named("bos")
    if vocabulary.flag("add_bos_token", opens) and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, vocabulary.ids[bos])]
        )
    return tokenizer


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json``.

    Raises:
        GgufTokenizerError: see `tokenizer_of`.
    """
    tokenizer = tokenizer_of(file)
    vocabulary = Vocabulary(file)
    tokenizer.save(str(folder / "tokenizer.json"))
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.metadata.get(f"{file.metadata['general.architecture']}.context_length"),
        "add_bos_token": tokenizer.post_processor is not None,
        "add_eos_token": False,
    }
    described |= {role: token for role, name in _ROLES.items() if (token := vocabulary.named(name)) is not None}
    if template := chat_template(file):
        described["chat_template"] = template
    write_json(folder / "tokenizer_config.json", described)
    if ends := vocabulary.ends():
        write_json(folder / "generation_config.json", {"eos_token_id": ends})


def chat_template(file: GgufFile) -> str | None:
    """The file's chat template; None if it has none.

    Raises:
        GgufTokenizerError: it is no text.
    """
    template = file.metadata.get(_TEMPLATE)
    if template is not None and not isinstance(template, str):
        raise GgufTokenizerError(f"{file.path}: {_TEMPLATE} is a {type(template).__name__}; expected a text: {_AGAIN}")
    return template or None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of a hub folder."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _byte_level(file: GgufFile, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """A BPE of bytes; and whether texts begin with BOS if the file does not say."""
    kind = pre_tokenizer(file.path, file.metadata.get("tokenizer.ggml.pre"))
    merges = _split_merges(vocabulary.texts("merges", required=True))
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, fuse_unk=False, ignore_merges=kind.whole))
    tokenizer.pre_tokenizer = kind.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, kind.opens


def _sentence_piece(file: GgufFile, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """A BPE whose merges come from the scores of what they make, with bytes for what is no token."""
    given = vocabulary.texts("merges")
    merges = _split_merges(given) if given else _scored_merges(file, vocabulary)
    unknown = vocabulary.named("unknown")
    bpe = models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    spaced = vocabulary.flag("add_space_prefix", True)
    scheme = "first" if spaced else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if spaced else steps)
    return tokenizer, True


def _in_file(file: GgufFile, message: str) -> str:
    """A message that names the file."""
    return message if str(file.path) in message else f"{file.path}: {message}"


def _split_merges(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in merges for cut in [merge.find(" ", 1)]]
    if wrong := next((merge for merge, pair in zip(merges, pairs, strict=True) if " ".join(pair) != merge), None):
        raise GgufTokenizerError(f"a merge is {wrong!r:.200}; expected two parts with a space between: {_AGAIN}")
    return pairs


def _scored_merges(file: GgufFile, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every cut of a token into two tokens, that of the highest score first.

    SentencePiece merges whichever neighbours make the token of the highest score.
    """
    scores: Any = file.metadata.get("tokenizer.ggml.scores")
    numbers = isinstance(scores, list) and all(isinstance(each, float) for each in scores)
    if not numbers or len(scores) != len(vocabulary.tokens):
        raise GgufTokenizerError(
            f"{file.path} has neither merges nor a score for each of its {len(vocabulary.tokens)} tokens; {_AGAIN}"
        )
    ranked = [
        (score, len(left), len(right), left, right)
        for token, score in zip(vocabulary.tokens, scores, strict=True)
        for cut in range(1, len(token))
        if (left := token[:cut]) in vocabulary.ids and (right := token[cut:]) in vocabulary.ids
    ]
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    return [(left, right) for *_, left, right in ranked]
