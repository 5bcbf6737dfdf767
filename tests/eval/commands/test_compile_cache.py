"""The command keeps what it compiles, says the same with it to the bit, and never fails for it."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import kamera_jax as kj
from eval.commands import compile_cache
from models import load

ROOT = Path(__file__).parents[3]
CODE = """
import json, sys
import jax
compiled, found = [], []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name) if name.endswith("cache_hits") else None)
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
)
from eval.commands.main import main
status = main(sys.argv[1:])
print(json.dumps({"status": status, "compiled": len(compiled), "found": len(found)}))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A cache folder of its own, and a JAX without a configured one."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KAMERA_CACHE", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    yield tmp_path / "cache" / "kamera-jax" / "xla"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def entries(folder):
    return sorted(path for path in folder.rglob("*-cache") if path.is_file())


def compiled_anew(number):
    """Something that no one else compiles."""
    jax.clear_caches()
    return float(jax.jit(lambda x: x * 3 + number)(1.0))


def doctor(cache, out):
    """The command in a process of its own; returns what it counted, wrote and printed."""
    names = ("KAMERA_CACHE", "JAX_COMPILATION_CACHE_DIR")
    inherited = {name: value for name, value in os.environ.items() if name not in names and "PERSISTENT" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", CODE, "doctor", "--json", str(out)],
        env={**inherited, "XDG_CACHE_HOME": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown, _, counted = done.stdout.strip().rpartition("\n")
    return json.loads(counted), (shown, done.stderr, out.read_bytes())


def test_a_second_run_compiles_nothing_and_says_the_same(tmp_path):
    cache = tmp_path / "cache"
    cold, output = doctor(cache, tmp_path / "cold.json")
    warm, again = doctor(cache, tmp_path / "warm.json")
    assert cold["found"] < cold["compiled"] == warm["compiled"] == warm["found"]
    assert again == output and "cache entry" not in output[1] and "machine" not in output[1]

    # Whatever happened to its entries, it is a cold run, and no word about it.
    for number, path in enumerate(entries(cache)):
        content = path.read_bytes()
        path.write_bytes((b"", content[: len(content) // 2], b"nonsense" * 9, content[:-1])[number % 4])
    broken, third = doctor(cache, tmp_path / "broken.json")
    assert broken["compiled"] == cold["compiled"] and broken["found"] == 0 and third == output


def test_what_a_model_computes_is_the_same_to_the_bit(own):
    assert compile_cache.enable()
    vlm = load("kamera-tiny-gqa")
    results = []
    for _ in ("cold", "warm"):
        jax.clear_caches()
        chunk = kj.encode(vlm, "a red star.")
        logits = kj.query(vlm, kj.append(kj.Window.empty(vlm, 64), chunk), "what colour is the star?")
        results.append([np.asarray(array).tobytes() for array in (chunk.kv.rot, chunk.kv.free, logits)])
    assert results[0] == results[1] and len(entries(own)) >= 6  # preamble, chunk, question, and what writes windows


def test_a_users_own_folder_is_left_as_it_is(own, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert compile_cache.enable() == tmp_path / "mine" and not own.exists()
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 7.0


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_it_can_be_turned_off(own, monkeypatch, value):
    monkeypatch.setenv("KAMERA_CACHE", value)
    assert compile_cache.enable() is None and not own.exists()
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_where_no_folder_can_be_made_everything_is_compiled(own, tmp_path):
    (tmp_path / "cache").write_text("a file stands there")
    assert compile_cache.enable() is None
    assert compiled_anew(1) == 4


def test_a_folder_that_goes_away_is_no_error(own):
    folder = compile_cache.enable()
    assert compiled_anew(2) == 5 and len(entries(own)) == 1
    folder.rename(folder.with_name("elsewhere"))
    with warnings.catch_warnings():  # as the command has it
        warnings.simplefilter("error")
        assert compile_cache.enable() is not None and compiled_anew(3) == 6


def test_a_relative_cache_home_is_none(own, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert compile_cache.enable().is_relative_to(tmp_path / "home" / ".cache") and not (tmp_path / "relative").exists()


def test_what_was_used_longest_ago_makes_room(own):
    folder = compile_cache.enable()
    other = folder.with_name("another-machine")
    other.mkdir()
    for place, age in ((folder / "a-cache", 30), (other / "b-cache", 40), (folder / "c-cache", 10)):
        place.write_bytes(b"." * 100)
        os.utime(place, (1e9 - age, 1e9 - age))
    os.utime(folder / "a-cache", (2e9, 1e9 - 30))  # read since
    compile_cache._prune(own, 300)
    assert len(entries(own)) == 3
    compile_cache._prune(own, 299)
    assert [path.name for path in entries(own)] == ["a-cache", "c-cache"]
    compile_cache._prune(own, 150)
    assert [path.name for path in entries(own)] == ["a-cache"]
