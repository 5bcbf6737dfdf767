"""Model folders and GGUF files of an attacker: an error with a name within seconds, and within memory."""

import base64
import json
import os
import random
import shutil
import struct

import numpy as np

from models import load
from models.registry import CHECKPOINTS
from tests.hardening.named import unnamed

PORT = "kamera-tiny-gqa"
FILES = tuple(
    "config.json tokenizer.json tokenizer_config.json preprocessor_config.json chat_template.jinja "
    "special_tokens_map.json model.safetensors generation_config.json calibration.json".split()
)


TEXTS = {
    "empty": b"",
    "no json": b"\xff\xfe{",
    "half": b'{"model_type": "qwe',
    "null": b"null",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deeper": b"[" * 3_000_000,
    "less deep": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "infinity": b'{"model_type": Infinity}',
    "nan": b'{"a": [1, {"b": NaN}]}',
    "long number": b'{"a": ' + b"9" * 100_000 + b"}",
    "large exponent": b'{"a": 1e999}',
    "wide": b'{"a": [' + b"[]," * 3_000_000 + b"1]}",
    "many names": b"{" + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}",
    "long text": b'{"a": "' + b"x" * 34_000_000 + b'"}',
    "surrogates": b'{"\\ud800": "\\udfff", "model_type": "\\ud800"}',
    "zeros": bytes(1_000_000),
}

TEMPLATES = (
    "{% for i in range(10**12) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10**10 }}",
    "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'a' | center(10**10) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include 'x' %}",
    "{{ messages[0]['nothing'].more }}",
    "{{ raise_exception('no') }}",
    "{% endfor %}",
    "x" * 1_000_000,
    "",
    "{{" + "(" * 9000 + ")" * 9000 + "}}",
    "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
)


def header_of(folder):
    """Header and data of the base's weights."""
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put_header(folder, header, data, size=None):
    """Write weights with a header, which is text where it is no JSON that Python writes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").unlink()
    length = len(text) if size is None else size
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)


ENTRY_VALUES = (
    {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]},
    {"dtype": "F32", "shape": [1] * 200, "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**18]},
    {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]},
    {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
    {"dtype": "F13", "shape": [1], "data_offsets": [0, 4]},
    {"dtype": None, "shape": None, "data_offsets": None},
    {},
    [],
    7,
)


def spoil_header(folder, rng):
    """Weights whose header lies."""
    header, data = header_of(folder)
    names = [name for name in header if name != "__metadata__"]
    kind = rng.randrange(9)
    if kind < 4:
        header[rng.choice(names)] = rng.choice(ENTRY_VALUES)
    elif kind == 4:  # one over another
        one, other = rng.sample(names, 2)
        header[one]["data_offsets"] = header[other]["data_offsets"]
    elif kind == 5:
        text = json.dumps(header).encode()
        header = text[:-1] + b',"%s": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' % names[0].encode()
    elif kind == 6:
        header = rng.choice(list(TEXTS.values()))[:30_000_000]
    elif kind == 7:
        put_header(folder, header, data, size=rng.choice((2**63, 10**9, 0, 7, 2**64 - 1)))
        return
    else:
        data = data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + b"x"
    put_header(folder, header, data)


def spoil_index(folder, rng):
    """Shards that lie elsewhere, or nowhere."""
    shutil.copyfile(folder / "model.safetensors", folder.parent / f"outside-{folder.name}.safetensors")
    names = [name for name in header_of(folder)[0] if name != "__metadata__"]
    (folder / "model.safetensors").unlink()
    outside = folder.parent / f"outside-{folder.name}.safetensors"
    shard = rng.choice(
        (str(outside), f"../{outside.name}", "..", "", "a/b", "\0", 7, None, ["x"], "config.json", "pipe")
    )
    if shard == "pipe":
        os.mkfifo(folder / "pipe")
    index = rng.choice(({"weight_map": dict.fromkeys(names, shard)}, {"weight_map": [shard]}, {"weight_map": None}, []))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_kind(folder, rng):
    """Something else than a file where a file is expected."""
    name = rng.choice(FILES)
    path = folder / name
    if path.is_symlink() or path.exists():
        path.unlink()
    kind = rng.choice(("pipe", "folder", "device", "loop", "nothing", "secret"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        os.symlink(rng.choice(("/dev/zero", "/dev/random", "/dev/tty")), path)
    elif kind == "loop":
        os.symlink(path, path)
    elif kind == "secret":
        path.write_bytes(b"x")
        path.chmod(0)
    else:
        os.symlink(folder / "not there", path)
    return not (kind == "nothing" and name in FILES[5:6] + FILES[7:])


def spoil_json(folder, rng):
    """A JSON file that is none, or too much of one."""
    name = rng.choice(FILES[:6] + FILES[7:])
    path = folder / name
    if path.is_symlink():
        path.unlink()
    path.write_bytes(rng.choice(list(TEXTS.values())))


def spoil_tokenizer(folder, rng):
    """A tokenizer whose parts do not fit each other."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.unlink()
    kind = rng.randrange(10)
    if kind == 0:
        content["model"]["vocab"] = "HERE"
        many = "{" + ",".join([f'"t{n}":{n}' for n in range(600_000)]) + "}"
        path.write_text(json.dumps(content).replace('"HERE"', many))
        return
    if kind == 1:
        content["model"]["merges"] = [["no", "such"], ["a"], "x", 7]
    elif kind == 2:
        content["added_tokens"] = [{"id": 10**9, "content": "x"}, {"id": -1}, {"id": "a", "content": 7}]
    elif kind == 3:
        content["model"] = rng.choice(({}, None, [], {"type": "Unigram", "vocab": [["a", float("1e308")]]}, 7))
    elif kind == 4:
        content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    elif kind == 5:
        content["model"]["vocab"] = dict.fromkeys(content["model"]["vocab"], 3)
    elif kind == 6:
        content["model"]["vocab"] = {name: -number for name, number in content["model"]["vocab"].items()}
    elif kind == 7:
        content["decoder"] = content["normalizer"] = content["post_processor"] = {"type": "Nothing"}
    elif kind == 8:
        content["model"]["vocab"] = {"x" * 10_000_000: 0, "y": 1}
    else:
        content["version"] = {"a": []}
        content["truncation"] = {"max_length": -1}
    path.write_text(json.dumps(content))


def spoil_settings(folder, rng):
    """tokenizer_config.json that asks for other things."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    path.unlink()
    content |= rng.choice(
        (
            {"tokenizer_class": "os.system"},
            {"tokenizer_class": 7},
            {"tokenizer_class": None, "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
            {"tokenizer_class": "LlamaTokenizer"},
            {"chat_template": 7},
            {"chat_template": {"a": "b"}},
            {"chat_template": [{"name": "a", "template": "b"}]},
            {"eos_token": {"a": 1}},
            {"eos_token": 7},
            {"added_tokens_decoder": {"x": {"content": "y"}}},
            {"added_tokens_decoder": [1]},
            {"model_max_length": "x"},
            {"extra_special_tokens": 7},
        )
    )
    path.write_text(json.dumps(content))
    if "chat_template" in content:
        (folder / "chat_template.jinja").unlink()


def spoil_template(folder, rng):
    """A template that does not end, or is none."""
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text(rng.choice(TEMPLATES))


def spoil_values(folder, rng):
    """Weights that are no numbers."""
    header, data = header_of(folder)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    first, stop = entry["data_offsets"]
    values = np.frombuffer(data, np.uint8).copy()
    inside = values[first:stop].view(np.float32 if entry["dtype"] == "F32" else np.uint16)
    odd = rng.choice((np.nan, np.inf, -np.inf))
    inside[rng.randrange(inside.size)] = odd if entry["dtype"] == "F32" else np.uint16(0x7F80 if odd > 0 else 0xFFFF)
    put_header(folder, header, values.tobytes())


def spoil_layers(folder, rng):
    """Sizes of which there are far too many."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    section = rng.choice([content, *[value for value in content.values() if isinstance(value, dict)]])
    names = [name for name, value in section.items() if type(value) is int]
    for name in rng.sample(names, min(len(names), 2)):
        section[name] = rng.choice((10**9, 2**31 - 1, 10**6))
    if "num_hidden_layers" in content:
        content["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(content))


def spoil_tower(folder, rng):
    """A tower whose language model is elsewhere, or itself."""
    (folder / "config.json").unlink()
    named = rng.choice((str(folder), "..", ".", "/dev/zero", "", 7, None, "kamera-smol-vl", "x" * 10_000, "a\0b"))
    (folder / "config.json").write_text(json.dumps({"model_type": "kamera_smol_vl", "language_model": named}))


def spoil_tiktoken(folder, rng):
    """A vocabulary in tiktoken's format."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    tokens = [base64.b64encode(bytes([n])) + b" %d" % n for n in range(256)]
    tokens += rng.choice(
        (
            [b"x"],
            [base64.b64encode(b"ab") + b" 10000000000000000000000"],
            [base64.b64encode(b"ab") + b" 999"],
            [base64.b64encode(b"a" * 5_000_000) + b" 256"],
            [b"YWI= 256"] * 600_000,
            [base64.b64encode(b"ab") + b" 256"] * 2,
            [b"\xff\xff\xff 256"],
            [bytes(1_000_000)],
        )
    )
    (folder / "tiktoken.model").write_bytes(b"\n".join(tokens))
    config = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": {}, "bos_token": "x"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def spoil_sentencepiece(folder, rng):
    """A SentencePiece model that is none."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    field = b"\x0a" + bytes([7]) + b"\x0a\x05hello"
    text = rng.choice((b"", b"\xff" * 1000, b"\x0a\xff\xff\xff\xff\x0f", field * 100_000, bytes(50_000_000)))
    (folder / "tokenizer.model").write_bytes(text)


GGUF_TEXT = struct.pack("<Q", 1) + b"a"


def gguf(rng):
    """A GGUF file that lies."""
    key = struct.pack("<Q", 20) + b"general.architecture"
    arch = key + struct.pack("<IQ", 8, 5) + b"llama"
    array = GGUF_TEXT + struct.pack("<I", 9)
    nested = b"".join(struct.pack("<IQ", 9, 1) for _ in range(1000))
    head = {n: b"GGUF" + struct.pack("<IQQ", 3, *n) for n in ((0, 1), (0, 2), (1, 0), (2**63, 0), (0, 2**63), (0, 3))}
    return rng.choice(
        (
            b"",
            b"GGUF",
            b"GGUF" + bytes(30),
            b"NOPE" + bytes(100),
            b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
            b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
            head[2**63, 0] + bytes(100),
            head[0, 2**63] + bytes(100),
            head[0, 2] + arch + GGUF_TEXT + struct.pack("<IQ", 8, 2**63) + b"x",
            head[0, 2] + arch + array + struct.pack("<IQ", 4, 2**60) + bytes(100),
            head[0, 2] + arch + array + struct.pack("<IQ", 8, 2**40) + bytes(1000),
            head[0, 2] + arch + array + struct.pack("<IQ", 9, 1) + nested,
            head[0, 2] + arch + array + struct.pack("<IQ", 9, 4_000_000) + struct.pack("<IQ", 4, 0) * 4_000_000,
            head[0, 2] + arch + array + struct.pack("<IQ", 0, 60_000_000) + bytes(60_000_000),
            head[0, 2] + arch + GGUF_TEXT + struct.pack("<I", 77) + bytes(100),
            head[0, 2] + arch + GGUF_TEXT + struct.pack("<IQ", 8, 40_000_000) + b"x" * 40_000_000,
            head[0, 2] + arch + arch,
            head[0, 1] + key + struct.pack("<II", 4, 7),
            head[0, 1] + arch,
            head[1, 0] + GGUF_TEXT + struct.pack("<I", 2**31) + bytes(100),
            head[1, 0] + GGUF_TEXT + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0) + bytes(100),
            head[1, 0] + GGUF_TEXT + struct.pack("<IQIQ", 1, 32, 999, 0) + bytes(100),
            head[1, 0] + GGUF_TEXT + struct.pack("<IQIQ", 1, 32, 0, 2**62) + bytes(100),
            head[1, 0] + struct.pack("<Q", 2) + b"\xff\xff" + struct.pack("<IQIQ", 1, 32, 0, 0) + bytes(200),
            head[0, 2] + arch + struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<If", 6, float("nan")),
            head[0, 2] + arch + struct.pack("<Q", 23) + b"tokenizer.chat_template" + struct.pack("<II", 4, 7),
        )
    )


KINDS = {
    "header": spoil_header,
    "index": spoil_index,
    "kind": spoil_kind,
    "json": spoil_json,
    "tokenizer": spoil_tokenizer,
    "settings": spoil_settings,
    "template": spoil_template,
    "values": spoil_values,
    "layers": spoil_layers,
    "tower": spoil_tower,
    "tiktoken": spoil_tiktoken,
    "sentencepiece": spoil_sentencepiece,
    "gguf": None,
}
OFTEN = ("header", "json", "kind", "gguf", "template", "tokenizer")


def prepare():
    """Compile and import what loading takes."""
    load(PORT)


def cases(folder, count, seed):
    """A kind of attack, and the seed of what is drawn for it."""
    kinds = (*KINDS, *OFTEN)
    return [(kinds[number % len(kinds)], seed * 1_000_003 + number) for number in range(count)]


def judge(case, folder):
    """Load what an attacker made."""
    kind, seed = case
    rng = random.Random(seed)
    model = folder / "model"
    if kind == "gguf":
        model = folder / "model.gguf"
        if rng.random() < 0.1:
            os.mkfifo(model)
        else:
            model.write_bytes(gguf(rng))
        fails = True
    else:
        model.mkdir()
        for path in (CHECKPOINTS / PORT).iterdir():
            if path.name != "calibration.json":
                os.symlink(path, model / path.name)
        fails = KINDS[kind](model, rng) is not False
    try:
        load(model)
    except Exception as error:
        return unnamed(error)
    finally:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o600)
    return "wrong: it loads" if fails and kind in ("header", "values", "index", "gguf", "tiktoken", "tower") else ""
