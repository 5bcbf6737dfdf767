"""Kimi's tokenizer without its own code: ``tiktoken.model`` as a byte-level BPE of `tokenizers`, with the same ids."""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.hub.fields import Fields, MissingConfigFileError, UnsupportedConfigError, read_json
from models.hub.files import JSON_BYTES, read_bytes, read_text

TOKENS = 500_000
"""Tokens of a vocabulary, at most."""

TOKEN_BYTES = 1024
"""Bytes of a token, at most: every cut of it is tried."""

RESERVED = 256
"""Ids after the ranks, for special tokens; those without a name are ``<|reserved_token_ID|>``."""

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDING}",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""What text is cut into before the BPE (``pat_str`` of the published ``TikTokenTokenizer``)."""


class VocabularyError(ValueError):
    """A vocabulary that cannot be read as it was meant."""


class CorruptLineError(VocabularyError):
    """A line that is not a token in base64 and its rank."""


class DuplicateRankError(VocabularyError):
    """A rank or a token that comes twice."""


class MissingRankError(VocabularyError):
    """Ranks that do not count from 0 without gaps."""


class MissingByteError(VocabularyError):
    """Bytes that no token stands for, so that not every text can be encoded."""


class SpecialTokenError(VocabularyError):
    """A special token whose id, name or behaviour does not fit the vocabulary."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in ``tiktoken.model`` and ``tokenizer_config.json`` of a Kimi folder.

    Its ids are those of the published tokenizer, except that that one cuts runs of more than 25,000 characters without
    (or of nothing but) white space, and names two reserved tokens past the end of the model's embedding.

    Raises:
        MissingConfigFileError: a file is not there.
        ConfigError: a field of ``tokenizer_config.json`` is unknown or asks for other tokenization, named.
        VocabularyError: a subclass named for what is wrong with the tokens.
    """
    ranks = read_ranks(folder / "tiktoken.model")
    fields = Fields("tokenizer_config.json", read_json(folder / "tokenizer_config.json"))
    fields.expect("tokenizer_class", "TikTokenTokenizer")
    fields.expect("clean_up_tokenization_spaces", False)
    fields.expect("split_special_tokens", False)
    fields.ignore("auto_map", "model_max_length", "padding_side", "truncation_side", "processor_class", "backend")
    fields.ignore("add_bos_token", "add_eos_token", "is_local", "local_files_only", "model_input_names", "use_fast")
    roles = {
        role: _content(fields.rest.pop(role))
        for role in ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
        if role in fields.rest
    }
    special = set()
    for name in ("additional_special_tokens", "extra_special_tokens"):
        names = fields.rest.pop(name, [])
        if not isinstance(names, list | Mapping):
            raise UnsupportedConfigError(f"tokenizer_config.json: {name} is {names!r:.200}; expected a list of tokens")
        special.update(map(_content, names.values() if isinstance(names, Mapping) else names))
    template = fields.rest.pop("chat_template", None)
    if (folder / "chat_template.jinja").exists():
        template = read_text(folder / "chat_template.jinja")
    tokens = _added_tokens(fields.take("added_tokens_decoder", dict), len(ranks), special)
    fields.close()
    if missing := {*roles.values()} - {token.content for token in tokens}:
        raise SpecialTokenError(
            f"tokenizer_config.json names the special tokens {sorted(missing)}, which have no id in "
            "added_tokens_decoder; add them there"
        )

    tokenizer = Tokenizer(_bpe(ranks))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(tokens)
    for number, token in enumerate(tokens, len(ranks)):
        if tokenizer.token_to_id(token.content) != number:
            raise SpecialTokenError(
                f"{folder}: the special token {token.content!r:.200} is also an ordinary token or a special one of "
                f"another id than {number}; expected one id per token: fetch the model's folder again"
            )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False, **roles
    )


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks, in the order of the ranks.

    Raises:
        MissingConfigFileError: there is no such file.
        CorruptLineError, DuplicateRankError, MissingRankError, MissingByteError: it is no whole vocabulary.
    """
    try:
        lines = read_bytes(path, JSON_BYTES).splitlines()
    except MissingConfigFileError as error:
        raise MissingConfigFileError(f"{path.parent} has no {path.name}; expected a Kimi model folder") from error
    if len(lines) > TOKENS:
        raise VocabularyError(f"{path} has {len(lines)} lines; expected at most {TOKENS}: fetch the file again")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if not rank.isdigit() or len(rank) > 9:
                raise ValueError("the rank is no number that a token may have")
            if len(token) > TOKEN_BYTES:
                raise ValueError(f"the token has {len(token)} bytes; expected at most {TOKEN_BYTES}")
        except (ValueError, binascii.Error) as error:
            raise CorruptLineError(
                f"{path}, line {number} is {line[:80]!r:.200}; expected a token in base64 and its rank ({error}): "
                "fetch the file again"
            ) from error
        if token in ranks:
            raise DuplicateRankError(f"{path}, line {number}: the token {token!r:.200} has rank {ranks[token]} already")
        ranks[token] = int(rank)

    ordered = sorted(ranks.items(), key=lambda entry: entry[1])
    for expected, (token, rank) in enumerate(ordered):
        if rank < expected:
            raise DuplicateRankError(
                f"{path}: {token!r:.200} and {ordered[expected - 1][0]!r:.200} both have rank {rank}"
            )
        if rank > expected:
            raise MissingRankError(f"{path}: no token has rank {expected}; expected every rank from 0 to the highest")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise MissingByteError(f"{path}: no token is the byte {missing[0]:#04x} ({len(missing)} bytes are missing)")
    return dict(ordered)


def _bpe(ranks: Mapping[bytes, int]) -> models.BPE:
    """The BPE that merges as tiktoken does: always the leftmost of the adjacent pairs that make the lowest rank.

    tokenizers knows merges by their two parts. Every cut of a token into two tokens becomes a merge, in the order of
    the ranks: whichever pair is adjacent merges as its token's rank says, and cuts that no text leads to do no harm.
    A piece of text that is a token needs no merges in tiktoken, nor here.
    """
    alphabet = _alphabet()
    vocabulary = {token.decode("latin-1").translate(alphabet): rank for token, rank in ranks.items()}
    merges = [
        (left, right)
        for token in vocabulary
        for cut in range(1, len(token))
        if (left := token[:cut]) in vocabulary and (right := token[cut:]) in vocabulary
    ]
    return models.BPE(vocabulary, merges, ignore_merges=True)


def _alphabet() -> dict[int, int]:
    """Bytes to the printable characters that tokenizers writes them as (GPT-2's)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {byte: 256 + index for index, byte in enumerate(others)}


def _added_tokens(declared: Mapping[str, Any], first: int, special: set[str]) -> list[AddedToken]:
    """The tokens of ids ``first`` to ``first + RESERVED - 1``, declared or reserved."""
    tokens = {
        number: AddedToken(f"<|reserved_token_{number}|>", special=True, normalized=False)
        for number in range(first, first + RESERVED)
    }
    for key, entry in declared.items():
        if not (key.isdecimal() and len(key) < 10 and int(key) in tokens):
            raise SpecialTokenError(
                f"tokenizer_config.json: added_tokens_decoder has the id {key!r:.200}; expected {first} to "
                f"{first + RESERVED - 1}, as tiktoken.model has {first} ranks: fetch both files again"
            )
        token = Fields(
            f"tokenizer_config.json: added_tokens_decoder[{key}]", entry if isinstance(entry, Mapping) else {}
        )
        for switch in ("lstrip", "rstrip", "single_word"):
            token.expect(switch, False)
        token.ignore("normalized", "__type")
        content = token.take("content", str)
        is_special = token.take("special", bool, True) or content in special
        token.close()
        tokens[int(key)] = AddedToken(content, special=is_special, normalized=False)
    return list(tokens.values())


def _content(token: Any) -> str:
    """A token as tokenizer_config.json writes it: its text, or an object that has it."""
    mapping = token if isinstance(token, Mapping) else {"content": token}
    return Fields("tokenizer_config.json: a special token", mapping).take("content", str)
