"""Converted GGUF files in the user's cache: written once, whole, and made anew where they are broken."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kamera_jax as kj
import models.hub.gguf.convert as module
from eval.commands import compile_cache
from models import load
from models.hub.cache import cache_folder
from models.hub.gguf.convert import hub_folder
from models.hub.gguf.errors import GgufTokenizerError
from models.hub.tensor_files import open_tensors
from tests.models.hub.gguf_files import write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KAMERA_CACHE", raising=False)
    return tmp_path / "cache" / "kamera-jax" / "gguf"


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "a.gguf")


@pytest.fixture
def converted(monkeypatch):
    """How often something was converted."""
    calls = []
    convert = module.convert
    monkeypatch.setattr(module, "convert", lambda *given: calls.append(given) or convert(*given))
    return calls


def opened(path):
    with hub_folder(path) as folder:
        return folder


def test_a_file_is_converted_once(path, home, converted):
    folder = opened(path)
    assert folder.parent == home and opened(path) == folder and len(converted) == 1
    assert sorted(each.name for each in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "gguf.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_cache_is_where_the_compiled_programs_are(home, tmp_path, monkeypatch):
    assert cache_folder("gguf") == home and cache_folder("xla") == compile_cache._home()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("xla") == compile_cache._home() == tmp_path / ".cache" / "kamera-jax" / "xla"


def test_the_key_is_the_content_and_the_version(path, home, converted, tmp_path, monkeypatch):
    folder = opened(path)
    other = path.rename(tmp_path / "b.gguf")
    assert opened(other) == folder and len(converted) == 1
    monkeypatch.setattr(module, "VERSION", 2)
    assert opened(other) != folder and len(converted) == 2
    assert opened(write(tmp_path / "c.gguf", seed=1)) != folder and len(converted) == 3


def cut(file):
    os.truncate(file, file.stat().st_size - 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, cut, flip, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "gguf.json"]
)
def test_a_broken_folder_is_made_anew(path, home, converted, harm, name):
    folder = opened(path)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    harm(folder / name)
    assert opened(path) == folder and len(converted) == 2
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
    assert sorted(each.name for each in home.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_what_a_killed_process_left_is_swept_away(path, home, converted):
    folder = opened(path)
    left = home / f"{folder.name}.partial-x1"
    folder.rename(left)
    folder.mkdir()
    assert opened(path) == folder and not left.exists()


def test_nothing_is_kept_where_the_cache_is_off(path, home, converted, monkeypatch):
    monkeypatch.setenv("KAMERA_CACHE", "off")
    with hub_folder(path) as folder:
        assert open_tensors(folder)
    assert not folder.exists() and not home.exists()
    opened(path)
    assert len(converted) == 2


def test_a_model_outlives_its_temporary_folder(path, home, monkeypatch):
    monkeypatch.setenv("KAMERA_CACHE", "off")
    vlm = load(path)
    assert vlm.spec.dtype == "float32" and np.isfinite(np.asarray(kj.query(vlm, kj.Window.empty(vlm, 64), "hi"))).all()
    assert load(path, dtype="bf16").spec.dtype == "bfloat16"


def test_a_cache_that_cannot_be_written_is_done_without(path, home):
    home.parent.mkdir(parents=True)
    home.touch()
    with hub_folder(path) as folder:
        assert open_tensors(folder)
    assert not folder.exists()


def test_processes_that_start_at_once_convert_it_once(path, home):
    code = (
        "import sys, models.hub.gguf.convert as m\n"
        "convert = m.convert\n"
        "m.convert = lambda *given: print('converted') or convert(*given)\n"
        "with m.hub_folder(sys.argv[1]) as folder: print(m._whole(folder))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    lines = [process.communicate(timeout=300)[0].split() for process in running]
    assert sorted(line for each in lines for line in each) == ["True"] * 2 + ["converted"]


def test_a_model_without_a_chat_template(tmp_path, home):
    path = write(tmp_path / "base.gguf", template=None)
    with pytest.raises(GgufTokenizerError, match="chat_template.jinja"):
        opened(path)
    folder = module.convert(path, tmp_path / "hub")
    assert not home.exists() and np.isfinite(open_tensors(folder)["model.norm.weight"]).all()
