"""How byte-level tokenizers of GGUF files split text before they merge: by ``tokenizer.ggml.pre``, as llama.cpp has it.

What is written differently here and in llama.cpp, which has a regex engine of its own, is written as the models'
``tokenizer.json`` has it.
"""

from dataclasses import dataclass, replace

from tokenizers import Regex, pre_tokenizers

from models.hub.gguf.errors import UnknownPreTokenizerError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_QWEN35 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_MARKS}|{_BLANKS}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?|\p{{N}}{{1,3}}|{_MARKS}|{_BLANKS}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """A way of splitting text.

    Attributes:
        splits: regular expressions, each of which cuts every piece that the ones before left; what it does not match is
            a piece too.
        whole: whether a piece that is a token is that token, whatever the merges make of it.
        opens: whether texts begin with BOS where the file does not say.
    """

    splits: tuple[str, ...]
    whole: bool = False
    opens: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """It as the package ``tokenizers`` has it, bytes written as characters."""
        if self.splits == (_GPT2,):
            return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        steps = [pre_tokenizers.Split(Regex(each), "isolated") for each in self.splits]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_OF_GPT2 = PreTokenizer((_GPT2,))
_OF_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_OF_LLAMA3 = PreTokenizer((_LLAMA3,), whole=True, opens=True)
_OF_QWEN2 = PreTokenizer((_QWEN2,))
_OF_GPT4O = PreTokenizer((_GPT4O,))

KINDS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": PreTokenizer((_TEKKEN,), whole=True, opens=True),
    "qwen35": PreTokenizer((_QWEN35,)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_BLOOM,))),
    **dict.fromkeys(
        """
        gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code gigachat roberta-bpe mpt olmo jais
        """.split(),
        _OF_GPT2,
    ),
    **dict.fromkeys("smollm starcoder refact command-r codeshell exaone minerva-7b".split(), _OF_DIGITS),
    **dict.fromkeys("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2".split(), _OF_LLAMA3),
    **dict.fromkeys("dbrx smaug-bpe jina-v5-nano".split(), replace(_OF_LLAMA3, whole=False, opens=False)),
    **dict.fromkeys("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2".split(), _OF_QWEN2),
    **dict.fromkeys("gpt-4o llama4 kanana2 talkie minimax-m2".split(), _OF_GPT4O),
}
"""By ``tokenizer.ggml.pre``."""


def pre_tokenizer(path: object, name: object) -> PreTokenizer:
    """What a file's ``tokenizer.ggml.pre`` names.

    Raises:
        UnknownPreTokenizerError: it is missing, or not known.
    """
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    given = "no tokenizer.ggml.pre" if name is None else f"the tokenizer.ggml.pre {name!r:.200}"
    raise UnknownPreTokenizerError(
        f"{path} has {given}, which says how text is split before it is merged to tokens; expected one of "
        f"{', '.join(sorted(KINDS))}. Another one would give other tokens than the model was trained on: load the "
        "model from a folder in hub format, or convert it anew with a current llama.cpp"
    )
