"""The tower's files and the language model's put together, as one folder in hub format."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from models.blocks.params import Params
from models.hub.fields import Fields, read_json
from models.hub.tensor_files import INDEX, SINGLE, open_tensors, write_tensors
from models.hub.tokenizers import load_tokenizer
from models.hub.weights import load_params
from models.media.typeset import Piece, piece
from models.ports.smol_vl.config import MODEL_TYPE, tower_config
from models.ports.smol_vl.tower import Spelling, TowerConfig, trained_declaration
from models.ports.smol_vl.weights import LAYERS, trained_table

UNREAD = np.float32(-10000)
"""What is added to the scores of tokens that cannot be drawn."""

_OWN = ("preprocessor_config.json", "chat_template.jinja")
_LANGUAGE = ("tokenizer.json", "generation_config.json", "special_tokens_map.json")


def language_model(folder: Path) -> str | None:
    """The name of the language model that a folder's tower is for; None for a folder that is whole."""
    if not (folder / "config.json").is_file():
        return None
    mapping = read_json(folder / "config.json")
    if mapping.get("model_type") != MODEL_TYPE or "text_config" in mapping:
        return None
    return Fields("config.json", mapping).take("language_model", str)


@contextmanager
def whole_folder(tower: Path, language: Path) -> Iterator[Path]:
    """A folder with the tower and its language model, for as long as the context lasts; no weights are copied.

    Args:
        tower: the folder of what is trained.
        language: the language model's, in hub format.

    Raises:
        ValueError: a subclass named for what is missing, truncated or unknown in either.
    """
    mapping = read_json(tower / "config.json")
    text = read_json(language / "config.json")
    with tempfile.TemporaryDirectory(prefix="kamera-jax-smol-vl-") as temporary:
        folder = Path(temporary)
        tied = {"tie_word_embeddings": bool(text.get("tie_word_embeddings"))}
        _write(folder / "config.json", {**mapping, **tied, "text_config": text})
        for source, names in ((tower, _OWN), (language, _LANGUAGE)):
            for name in names:
                if (source / name).exists():
                    shutil.copyfile(source / name, folder / name)
        described = read_json(language / "tokenizer_config.json")
        described.pop("chat_template", None)
        _write(folder / "tokenizer_config.json", described)
        sizes = tower_config(Fields("config.json", mapping), 0)
        config = TowerConfig(vocab_size=int(text["vocab_size"]), **sizes)
        shards = {SINGLE.replace("model", "language"): language / SINGLE, "tower.safetensors": None}
        _write_tower(folder, tower, config, pieces(load_tokenizer(folder)))
        os.replace(folder / SINGLE, folder / "tower.safetensors")
        os.symlink((language / SINGLE).resolve(), folder / next(iter(shards)))
        placed = {name: next(iter(shards)) for name in open_tensors(language)}
        placed |= {name: "tower.safetensors" for name in _tower_names()}
        _write(folder / INDEX, {"weight_map": placed})
        yield folder


def pieces(tokenizer: Any) -> dict[int, Piece]:
    """The tokens that can be drawn, by their ids."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = [number for number in range(len(tokenizer)) if number not in special]
    spellings = tokenizer.backend_tokenizer.decode_batch([[number] for number in ids])
    drawn = {number: piece(text) for number, text in zip(ids, spellings, strict=True)}
    return {number: each for number, each in drawn.items() if each is not None}


def token_codes(params: Params, config: TowerConfig, spelling: Spelling) -> Float32[np.ndarray, "V C"]:
    """The codes of all tokens of the vocabulary, from those of their letters; zero for what cannot be drawn."""
    codes = np.zeros((config.vocab_size, config.code), np.float32)
    total = spelling.apart[:, None] * np.asarray(params["apart"], np.float32)
    for name, rows in (("front", spelling.front), ("back", spelling.back)):
        table = np.pad(np.asarray(params[name], np.float32), ((0, 1), (0, 0)))
        for place in range(rows.shape[1]):
            longer = np.flatnonzero(rows[:, place] < len(table) - 1)
            total[longer] += table[rows[longer, place]]
    codes[spelling.ids] = total
    return codes


def _write_tower(folder: Path, tower: Path, config: TowerConfig, drawn: Mapping[int, Piece]) -> None:
    """Write the tower's tensors as they run."""
    params = load_params(tower, trained_declaration(config), trained_table(), np.dtype(np.float32))
    codes = token_codes(params, config, Spelling.of(drawn))
    bias = np.full(config.vocab_size, UNREAD)
    bias[np.asarray(sorted(drawn))] = 0
    tensors = {f"vision_model.{name}.weight": np.asarray(params[name]["w"]).T for name in LAYERS}
    tensors |= {f"vision_model.{name}.bias": np.asarray(params[name]["b"]) for name in LAYERS}
    tensors |= {"vision_model.tokens.weight": codes, "vision_model.tokens.bias": bias}
    write_tensors(folder, "F32", {name: each.shape for name, each in tensors.items()}, tensors.values())


def _tower_names() -> list[str]:
    return [f"vision_model.{name}.{part}" for name in (*LAYERS, "tokens") for part in ("weight", "bias")]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
