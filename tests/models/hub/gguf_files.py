"""Tiny GGUF files, written by llama.cpp's own writer from random weights and tokenizers trained on the spot."""

import json
from functools import cache

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.hub.gguf.pre_tokenizers import KINDS

WIDTH = 256
INNER = 256
HEADS = 8
KV_HEADS = 2
HEAD = 32
LAYERS = 2

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox doesn't jump over 12 lazy dogs; they're 345 years old, and I'll say it's 2024-05-17.",
    "  Spaces   and\n\nnewlines\r\n\tand tabs, (brackets) [more] {even} <more>!? == += $5.00 50% #tag @home",
    "Größe, naïve café, Ελληνικά, русский язык, 中文字符, 日本語テキスト, हिन्दी, العربية, 🦊🐕 and ½ ٣ Ⅷ",
    "def f(x_1, y2):\n    return x_1 ** 2 + y2 // 10  # CamelCase HTTPServer getURLs",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "   ",
    "\n\n\n",
    "a",
    " a  b   c ",
    "line\n\n  indented\n",
    "1234567890 12 3 4567",
    "it's IT'S they'LL we'Ve",
    "e\u0301 decomposed, \u00a0no-break, \u200bzero width, \ud7ff\ue000, \x00 and \x7f",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "hello<|im_end|>world <|im_start|>user\nhi<|endoftext|>",
    "no <|such|> token, <s>mark</s> it",
    "....---,,,;;;!!!???",
    "½½ ¼ x²+y³ ٣٤٥ ⅧⅨ",
]

FINITE_ENOUGH = 8.0


@cache
def byte_level(pre, size=420):
    """Tokens and merges of a byte-level BPE, trained on what that pre-tokenizer leaves."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = KINDS[pre].build()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), *CONTROL]
    return tokens, [" ".join(merge) for merge in model["merges"]]


@cache
def sentence_piece(size=420):
    """Tokens, scores and types of a SentencePiece BPE with bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=size - 259, show_progress=False))
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    # As SentencePiece has it: pieces by rank, and what was merged scored above single characters.
    order = [piece for piece in pieces if len(piece) > 1] + [piece for piece in pieces if len(piece) == 1]
    rank = {piece: -float(number) for number, piece in enumerate(order)}
    scores = [0.0] * 259 + [rank[piece] for piece in pieces]
    return tokens, scores, [2, 3, 3, *([6] * 256), *([1] * len(pieces))]


def blocks(random, shape, kind):
    """Random bytes of a quantised type whose values are finite and not large."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape)) // block
    raw = random.integers(0, 256, (2048, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(raw, kind)
        good = np.isfinite(values).all(1) & (np.abs(values).max(1) < FINITE_ENOUGH)
    good = np.flatnonzero(good)
    assert good.size, kind
    return raw[np.resize(good, count)].reshape(*shape[:-1], shape[-1] // block * size)


def stored(random, shape, kind):
    """A tensor as the file has it: by the package's quantiser where it has one, else of random bytes."""
    values = random.standard_normal(shape).astype(np.float32) / 16
    if len(shape) == 1:
        return (values + 1).astype(np.float32), Kind.F32
    try:
        return gguf.quantize(values, kind), kind
    except NotImplementedError:
        return blocks(random, shape, kind), kind


def tensors(arch="llama", *, vocab=420, tied=False, biases=None):
    """Names and shapes of the tensors of a model."""
    query = HEADS * HEAD
    key = KV_HEADS * HEAD
    yield "token_embd.weight", (vocab, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    if not tied:
        yield "output.weight", (vocab, WIDTH)
    biases = arch == "qwen2" if biases is None else biases
    for layer in range(LAYERS):
        shapes = {
            "attn_norm.weight": (WIDTH,),
            "attn_q.weight": (query, WIDTH),
            "attn_k.weight": (key, WIDTH),
            "attn_v.weight": (key, WIDTH),
            "attn_output.weight": (WIDTH, query),
            "ffn_norm.weight": (WIDTH,),
            "ffn_gate.weight": (INNER, WIDTH),
            "ffn_up.weight": (INNER, WIDTH),
            "ffn_down.weight": (WIDTH, INNER),
        }
        if biases:
            shapes |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
        if biases and arch == "llama":
            shapes["attn_output.bias"] = (WIDTH,)
        if arch == "qwen3":
            shapes |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}", shape


def add_model(writer, arch, vocab, **changed):
    """The metadata of a model's sizes; ``changed`` adds keys, or drops them where they are None."""
    keys = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": HEAD,
        "vocab_size": vocab,
    }
    if arch == "qwen3":
        keys |= {"attention.key_length": HEAD, "attention.value_length": HEAD}
    for name, value in (keys | changed).items():
        key = f"{arch}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)


def add_byte_level(writer, pre="qwen2", *, bos=None, template=TEMPLATE):
    """A byte-level tokenizer."""
    tokens, merges = byte_level(pre)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - len(CONTROL)) + [3] * len(CONTROL))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_pad_token_id(len(tokens) - 3)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if template:
        writer.add_chat_template(template)


def add_sentence_piece(writer, *, space=None, template=TEMPLATE):
    """A SentencePiece tokenizer."""
    tokens, scores, kinds = sentence_piece()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if space is not None:
        writer.add_add_space_prefix(space)
    if template:
        writer.add_chat_template(template)


def write(
    path,
    arch="llama",
    kind=Kind.Q8_0,
    *,
    seed=0,
    tokenizer=add_byte_level,
    tied=False,
    biases=None,
    extra=(),
    drop=(),
    endian=gguf.GGUFEndian.LITTLE,
    changed=None,
    vocab=None,
    alignment=None,
    **tokens,
):
    """Write a file; ``extra`` tensors are added as (name, values), those in ``drop`` are left out."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), arch, endianess=endian)
    tokenizer(writer, **tokens)
    if alignment:
        writer.add_custom_alignment(alignment)
    vocab = vocab or (len(sentence_piece()[0]) if tokenizer is add_sentence_piece else 420)
    add_model(writer, arch, vocab, **(changed or {}))
    for name, shape in tensors(arch, vocab=vocab, tied=tied, biases=biases):
        if name not in drop:
            values, stored_as = stored(random, shape, kind)
            writer.add_tensor(name, values, raw_dtype=stored_as)
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
