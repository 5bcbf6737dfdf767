"""Model folders whose configuration has one or two odd values: an error with a name, or a model that loads."""

import copy
import json
import os
import random
import shutil

import jax
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from kamera_jax.forward import check_forward
from models import load
from models.blocks.params import is_info
from models.hub import fields as reading
from models.hub.thinkers import alone
from models.hub.weights import save_params
from models.registry import ARCHITECTURES, CHECKPOINTS, EMBEDDED
from tests.hardening.named import unnamed
from tests.hardening.warm import cached
from tests.models import tiny_internvl, tiny_llava, tiny_llava_onevision, tiny_omni, tiny_qwen3_vl

TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": VOCABULARY.index("<|endoftext|>"),
    "eos_token_id": VOCABULARY.index("<|im_end|>"),
}
LANGUAGES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
QWEN3_VL = ("qwen3_vl", "qwen3_vl_moe")
THINKERS = {alone(family): family for family in tiny_omni.CONFIGS}
PORTS = (*EMBEDDED, "llava", "llava_onevision", "internvl", *QWEN3_VL, *THINKERS, *LANGUAGES)
FILES = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
)

ROPES = (
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
    {"rope_type": "dynamic", "factor": 0},
    {"rope_type": "yarn", "factor": 1e30, "beta_fast": 1e-30, "attention_factor": 1e30},
    {"type": "linear", "factor": -1},
    {"rope_type": ["yarn"]},
    {"rope_type": {"a": 1}},
    {"rope_type": "mrope", "mrope_section": [10**9, 1, 1]},
    {"mrope_section": [True, 1, 1]},
    {"rope_theta": "x"},
    {"rope_theta": True, "partial_rotary_factor": 0.5},
)
ODD = (
    *(-1, 0, 1, 2, 3, 7, 10**9, 2**31 - 1, 2**31, 10**18, 10**400, 1.5, -0.5, 0.0, 1e-30, 1e308, True, False, None),
    *(
        "",
        "x",
        "64",
        "silu",
        "\ud800",
        "a" * 100_000,
        [],
        [1],
        [-1],
        [[1]],
        ["x"],
        [10**9] * 3,
        {},
        {"a": 1},
        {"a": []},
    ),
    *(list(range(5000)), [0.5, "x", None], [1] * 10_000),
)

IMPORTED = (AutoTokenizer, PreTrainedTokenizerFast)
"""Libraries that no case has to wait for."""


def base(folder, port):
    """The folder of a port's tiny model, which is made when it is first asked for."""
    place = folder / f"base-{port}"
    if place.exists():
        return place
    if port in EMBEDDED:
        shutil.copytree(CHECKPOINTS / port, place)
        (place / "calibration.json").unlink(missing_ok=True)
    elif port == "llava":
        tiny_llava.write(place, np.float32)
    elif port == "llava_onevision":
        tiny_llava_onevision.write(place)
    elif port in THINKERS:
        tiny_omni.write(place, family=THINKERS[port], alone=True)
    elif port in QWEN3_VL:
        tiny_qwen3_vl.write(place, experts=port == "qwen3_vl_moe")
    elif port == "internvl":
        tiny_internvl.write(place, np.float32)
    else:
        config = {"model_type": port, "architectures": ["X"], **TEXT}
        if port == "mistral":
            config["sliding_window"] = 256
        if port in ("qwen2", "mistral"):
            del config["head_dim"]
        architecture = ARCHITECTURES[port]
        read = architecture.config_from_hf(config)
        rng = np.random.default_rng(3)
        params = jax.tree.map(
            lambda info: rng.standard_normal(info.shape, np.float32), architecture.declaration(read), is_leaf=is_info
        )
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        build_tokenizer(place)
        save_params(place, params, architecture.weight_table(read), np.float32)
    if not (place / "generation_config.json").exists():
        (place / "generation_config.json").write_text(json.dumps({"eos_token_id": VOCABULARY.index("<|im_end|>")}))
    return place


def known_fields(port, config):
    """Paths of the fields that a port reads, whether or not the file has them."""
    names = set()
    sections = [()] + [(name,) for name, value in config.items() if isinstance(value, dict)]

    take = reading.Fields.take
    expect = reading.Fields.expect

    def note(fields, name):
        names.update((*section, name) for section in sections if not section or section[-1] == fields.section)
        if fields.section == "config.json":
            names.add((name,))

    def taking(self, name, *arguments, **options):
        note(self, name)
        return take(self, name, *arguments, **options)

    def expecting(self, name, *accepted):
        note(self, name)
        return expect(self, name, *accepted)

    reading.Fields.take = taking
    reading.Fields.expect = expecting
    try:
        ARCHITECTURES[config["model_type"]].config_from_hf(config)
    finally:
        reading.Fields.take = take
        reading.Fields.expect = expect
    written = {(name,) for name in config} | {(*s, name) for s in sections if s for name in config[s[0]]}
    return sorted(names | written)


def prepare():
    """Compile and import what loading takes."""
    load(EMBEDDED[0])


def cases(folder, count, seed):
    """Port, file, and the paths and values that are put into it."""
    cached()
    rng = random.Random(seed)
    made = []
    paths = {}
    for number in range(count):
        port = PORTS[number % len(PORTS)]
        place = base(folder, port)
        name = FILES[0] if rng.random() < 0.75 else rng.choice(FILES)
        if not (place / name).exists():
            name = FILES[0]
        content = json.loads((place / name).read_text())
        if (port, name) not in paths:
            own = known_fields(port, content) if name == FILES[0] else []
            nested = [(key, inner) for key, value in content.items() if isinstance(value, dict) for inner in value]
            paths[port, name] = own or sorted({(key,) for key in content} | set(nested))
        changes = []
        for _ in range(rng.choice((1, 1, 2))):
            path = rng.choice(paths[port, name])
            ropes = path[-1] in ("rope_scaling", "rope_parameters") and rng.random() < 0.8
            changes.append((path, rng.choice(ROPES if ropes else ODD)))
        made.append((port, name, tuple(changes), number % 5 == 0))
    return made


def changed(content, changes):
    """A copy with values at paths."""
    content = copy.deepcopy(content)
    for path, value in changes:
        inner = content
        for name in path[:-1]:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[path[-1]] = value
    return content


def judge(case, folder):
    """Load the folder, and preprocess an image, a video and sound with it."""
    port, name, changes, runs = case
    place = base(folder.parent, port)
    for path in place.iterdir():
        if path.name != name:
            os.symlink(path, folder / path.name)
    (folder / name).write_text(json.dumps(changed(json.loads((place / name).read_text()), changes)))
    try:
        vlm = load(folder)
        if vlm.architecture.media:
            vlm.preprocess(np.full((30, 40, 3), 127, np.uint8))
        kinds = [medium.kind for medium in vlm.architecture.media]
        if "audio" in kinds:
            vlm.preprocess(kj.Audio(np.full(8000, 0.1, np.float32), 16000))
        if "video" in kinds:
            vlm.preprocess(kj.Video(np.full((3, 30, 40, 3), 127, np.uint8), [0.0, 0.5, 1.0]))
        if runs:
            check_forward(vlm)  # traced, and not compiled
    except Exception as error:
        return unnamed(error)
    return ""
