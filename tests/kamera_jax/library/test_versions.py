"""Written under one jax and read under another, and back: `.ci/newest` makes the second environment."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

import kamera_jax as kj
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

ROOT = Path(__file__).resolve().parents[3]
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
VERSION = "from importlib.metadata import version; print(version('jax'))"


def run(python, *arguments):
    environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def other():
    """An interpreter with another jax."""
    for stamp in (".venv/bin/python", ".venv-newest/installed"):
        python = ROOT / stamp.split("/")[0] / "bin" / "python"
        if (ROOT / stamp).exists() and run(str(python), "-c", VERSION) != version("jax"):
            return str(python)
    pytest.skip("there is no second environment with another jax; .ci/newest makes one")


def write(folder, first):
    with kj.ChunkLibrary.open(folder, mode="a") as lib:
        lib.put_many([*(chunk(first + i) for i in range(4)), patch(first)])
        lib.put(chunk(first + 4), storage="int8")
        lib.delete(key_of(first + 3))
        lib.gc()


def check(folder, first):
    lib = kj.ChunkLibrary.open(folder)
    for i in range(3):
        assert bits(lib.get(key_of(first + i))) == bits(chunk(first + i))
    assert [bits(each) for each in lib.patches(key_of(first))] == [bits(patch(first))]
    assert not lib.has(key_of(first + 3)) and lib.has(key_of(first + 4)) and lib.verify().ok
    found = {
        key: bits(each.chunk(row))
        for name in lib.packs()
        for each in lib.restore(name, sharding=HERE)
        for row, key in enumerate(each.keys)
        if key is not None
    }
    assert found == {key: bits(lib.get(key)) for key in lib.keys()}


def test_there_and_back(tmp_path, other):
    write(tmp_path / "here", 0)
    run(other, "-m", "tests.kamera_jax.library.test_versions", "check", str(tmp_path / "here"), "0")
    run(other, "-m", "tests.kamera_jax.library.test_versions", "write", str(tmp_path / "there"), "10")
    check(tmp_path / "there", 10)
    run(other, "-m", "tests.kamera_jax.library.test_versions", "write", str(tmp_path / "here"), "10")
    write(tmp_path / "there", 0)
    for folder in ("here", "there"):
        for first in (0, 10):
            check(tmp_path / folder, first)
            run(other, "-m", "tests.kamera_jax.library.test_versions", "check", str(tmp_path / folder), str(first))


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
