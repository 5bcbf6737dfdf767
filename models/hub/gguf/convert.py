"""A GGUF file written as a folder in hub format: where the user likes, and by `models.load` in the user's cache."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kamera_jax.library.files import locked
from models.errors import WeightsError
from models.hub.cache import cache_folder
from models.hub.gguf.errors import GgufTokenizerError
from models.hub.gguf.file import GgufFile
from models.hub.gguf.metadata import config_of
from models.hub.gguf.tensors import HubTensors
from models.hub.gguf.tokenizer import chat_template, write_json, write_tokenizer
from models.hub.tensor_files import write_tensors
from models.hub.weights import revision

VERSION = 1
"""Of what is written: raised with every change of it, so that folders in caches are made anew."""

RECORD = "gguf.json"
"""In a converted folder: what it was made from, and what its files have to be."""


def convert(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write the model of a GGUF file as a folder in hub format, which `models.load` and transformers read.

    The weights are written as float32, the values that the file's blocks stand for, tensor by tensor: no more than one
    is in memory. The folder appears whole, or not at all.

    Args:
        path: the file, of the architecture llama (Mistral too), qwen2 or qwen3.
        folder: is not there yet, or is empty.

    Returns:
        The folder.

    Raises:
        GgufError: a subclass named for what is wrong with the file, or not served.
        FileExistsError: the folder has content.
        FileNotFoundError: there is no such file.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there, and not an empty folder; expected a new one")
    source = GgufFile(path)
    config = config_of(source)
    tensors = HubTensors(source, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        write_json(partial / "config.json", config)
        write_tokenizer(source, partial)
        write_tensors(partial, "F32", tensors.shapes, tensors)
        files = {each.name: _digest(each) for each in sorted(partial.iterdir()) if each.suffix == ".json"}
        record = {"version": VERSION, "source": source.path.name, "weights": revision(partial), "files": files}
        write_json(partial / RECORD, record)
        partial.chmod(0o755)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def hub_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A GGUF file as a folder in hub format: from the user's cache, written there first if it is not.

    The cache's folder is named by the file's digest and by `VERSION`. One that is not whole is made anew, by one
    process at a time. Where there is no cache (``KAMERA_CACHE=off``), or none can be written, the folder is a temporary
    one and is gone when the context ends.

    Raises:
        GgufError: a subclass named for what is wrong with the file, or not served.
        FileNotFoundError: there is no such file.
    """
    source = GgufFile(path)
    if chat_template(source) is None:
        raise GgufTokenizerError(
            f"{source.path} has no chat template (tokenizer.chat_template), so prompts cannot be made: write it as a "
            "folder (models.hub.gguf.convert.convert(file, folder)), add the model's chat_template.jinja to that, and "
            "load the folder"
        )
    config_of(source)  # what is not served is refused before the whole file is read
    cache = _writable(cache_folder("gguf"))
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="kamera-jax-gguf-") as temporary:
            yield convert(path, Path(temporary) / "model")
        return
    yield _cached(source.path, cache)


def _cached(path: Path, cache: Path) -> Path:
    key = f"{_digest(path)[:32]}-{VERSION}"
    folder = cache / key
    if _whole(folder):
        return folder
    with locked(cache / f"{key}.lock"):
        if _whole(folder):  # another process was faster
            return folder
        for left in cache.glob(f"{key}.*-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        if folder.exists():
            broken = Path(tempfile.mkdtemp(prefix=f"{key}.broken-", dir=cache))
            folder.replace(broken)
            shutil.rmtree(broken, ignore_errors=True)
        return convert(path, folder)


def _whole(folder: Path) -> bool:
    """Whether a converted folder has all that was written there, unchanged."""
    try:
        record: Any = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["version"] != VERSION or "config.json" not in record["files"]:
            return False
        if any(_digest(folder / name) != digest for name, digest in record["files"].items()):
            return False
        return revision(folder) == record["weights"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, WeightsError):
        return False


def _writable(cache: Path | None) -> Path | None:
    """The folder, made if it is not there; None if it cannot be written."""
    if cache is None:
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return cache if os.access(cache, os.W_OK | os.X_OK) else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
