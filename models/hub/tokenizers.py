"""A checkpoint's tokenizer, as its folder describes it."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from models.errors import ConfigError, MissingConfigFileError
from models.hub.files import JSON_BYTES, VOCABULARY_BYTES, check_folder, read_bytes, read_json

_WHOLE = "tokenizer.json"
_LISTS = ("vocab.json", "added_tokens.json")
_JSON = (*_LISTS, "tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json")

_LONGEST = 10_000
_NAMES = 1000
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of the class whose tokenizer.json says everything, in transformers 4 and 5."""

_CLOCK = """{%- macro strftime_now(format) -%}
{%- set written = namespace(text=format) -%}
{%- for directive, text in stopped_clock.items() -%}
{%- set written.text = written.text | replace(directive, text) -%}
{%- endfor -%}
{{- written.text -}}
{%- endmacro %}
"""
"""In place of transformers' function, whose answer changes while a model is in use."""


TOKENS = 500_000
"""Tokens of a vocabulary in tokenizer.json, at most."""

_SHORT = 6 * 2**20
"""A file of so many bytes has no more tokens than that."""


class TokenizerFilesError(ConfigError):
    """The files of a tokenizer cannot be read."""


class MissingTokenizerError(TokenizerFilesError, MissingConfigFileError):
    """A folder lacks the files that a tokenizer is made of."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, with the rows of its model's embedding as ``embedding_rows``.

    Raises:
        MissingTokenizerError: there are no files of a tokenizer.
        ConfigError: its files cannot be read; `TokenizerFilesError` where no library makes a tokenizer of them.
    """
    tokenizer = _loaded(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    text = config.get("text_config")
    rows = (text if isinstance(text, Mapping) else config).get("vocab_size", config.get("vocab_size"))
    tokenizer.embedding_rows = rows if type(rows) is int else None
    return tokenizer


def _loaded(folder: Path) -> Any:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    check_folder(folder)
    if (folder / "tiktoken.model").exists() and not (folder / "tokenizer.json").exists():
        from models.hub import tiktoken

        return tiktoken.load_tokenizer(folder)
    described = folder / "tokenizer_config.json"
    settings = read_json(described) if described.exists() else {}
    _check_files(folder, settings)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if settings.get("tokenizer_class") in _GENERAL:
            # AutoTokenizer warns of model types that it has never heard of, and builds the tokenizer of others, such
            # as qwen2, anew from the vocabulary alone.
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit, ConfigError):
        raise
    except BaseException as error:  # whatever the libraries make of broken files; one of them panics
        raise TokenizerFilesError(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {str(error)[:300]}); fetch the model's "
            "folder again"
        ) from error


def _check_files(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what the libraries that read tokenizers would not come to an end with.

    Raises:
        ConfigError: a file is too long, no JSON, or nested too deeply; or a field is of another type than it may be.
    """
    for path in sorted(folder.iterdir()):
        if path.name == _WHOLE:
            _check_vocabulary(path, read_bytes(path, VOCABULARY_BYTES))
        elif path.name in _JSON and path.exists():
            content = read_json(path)
            if path.name not in _LISTS and len(content) > _NAMES:
                raise TokenizerFilesError(
                    f"{path} has {len(content)} fields; expected at most {_NAMES}: fetch it again"
                )
        elif path.name.endswith((".model", ".vocab")) or path.name in ("merges.txt", "vocab.txt"):
            read_bytes(path, JSON_BYTES)
    _check_there(folder)
    if not isinstance(settings.get("tokenizer_class", ""), str):
        raise TokenizerFilesError(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class is {settings['tokenizer_class']!r:.200}; expected a "
            "name"
        )


def _check_there(folder: Path) -> None:
    """Raise MissingTokenizerError unless the folder has the files of one kind of tokenizer.

    Other names than these are left to the libraries, as long as they could be a vocabulary.
    """
    there = {path.name for path in folder.iterdir() if path.exists()}
    if _WHOLE in there or any(name.endswith((".model", ".vocab")) or name == "vocab.txt" for name in there):
        return
    lists = ("vocab.json", "merges.txt")
    missing = [name for name in lists if name not in there]
    if not missing:
        return
    if len(missing) < len(lists):
        raise MissingTokenizerError(
            f"{folder} has {next(name for name in lists if name in there)}, and neither {missing[0]} nor {_WHOLE}: "
            f"fetch {_WHOLE} from where the model comes from"
        )
    raise MissingTokenizerError(
        f"{folder} has no tokenizer: expected {_WHOLE}, or {' with '.join(lists)}, tokenizer.model or "
        f"tiktoken.model; fetch {_WHOLE} from where the model comes from"
    )


def _check_vocabulary(path: Path, content: bytes) -> None:
    """Refuse a vocabulary that is too large to be read in good time."""
    if len(content) <= _SHORT:
        return
    if content.count(b"[") + content.count(b"{") > 5 * TOKENS:
        raise TokenizerFilesError(f"{path} has over {5 * TOKENS} lists and objects; fetch the model's folder again")
    try:
        model = json.loads(content)["model"]
        vocabulary = model["vocab"]
        merges = model.get("merges", ())
        counts = (len(vocabulary), len(merges))
        longest = max((len(str(each)) for each in vocabulary), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise TokenizerFilesError(f"{path} is no tokenizer ({error!r:.200}); fetch the model's folder again") from error
    if counts[0] > TOKENS or counts[1] > 4 * TOKENS or longest > _LONGEST:
        raise TokenizerFilesError(
            f"{path} has {counts[0]} tokens of up to {longest} characters and {counts[1]} merges; expected at most "
            f"{TOKENS} tokens of {_LONGEST} characters, and {4 * TOKENS} merges: fetch the model's folder again"
        )


def opener(tokenizer: Any) -> str:
    """The token that stands before a text: what the tokenizer puts there, its BOS, or else what parts texts (EOS).

    Empty for a tokenizer that has none of them.
    """
    special = set(tokenizer.all_special_ids)
    opening = tokenizer("x")["input_ids"][:1]
    if opening and opening[0] in special:
        return tokenizer.convert_ids_to_tokens(opening)[0]
    return tokenizer.bos_token or tokenizer.eos_token or ""


def stopped_clock(template: str, moment: Any) -> dict[str, Any]:
    """Arguments of ``apply_chat_template`` with which a template writes one moment, whenever it is rendered.

    What a template writes around a chunk must stay as it is while a model is in use, past midnight too.

    Raises:
        ValueError: the moment is no date.
    """
    if not isinstance(moment, date):
        raise ValueError(
            f"strftime_now is {moment!r:.200}; expected a datetime.date or datetime.datetime to be written"
        )
    return {"chat_template": _CLOCK + template, "stopped_clock": dict(_directives(moment))}


def _directives(moment: date) -> Iterator[tuple[str, str]]:
    """Directives of ``strftime`` and what they give; those with ``-`` are not known everywhere."""
    for letter in "aAwdbBmyYHIpMSfzZjUWcxXGuV":
        for directive in (f"%{letter}", f"%-{letter}"):
            try:
                yield directive, moment.strftime(directive)
            except ValueError:
                continue
    yield "%%", "%"
