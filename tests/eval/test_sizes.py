"""How large a patch is, as it is written: one grammar for `kamera ask` and `kamera eval`."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval.methods import names, parse
from eval.methods.sizes import PatchSize, PatchSizeError, patch_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", PatchSize()),
        ("12", PatchSize(rank=12)),
        ("10%", PatchSize(share=0.1)),
        ("0.5%", PatchSize(share=0.005)),
        ("100%", PatchSize(share=1.0)),
        ("energy=0.9", PatchSize(energy=0.9)),
        ("energy=1", PatchSize(energy=1.0)),
        ("bytes=0.25", PatchSize(even_share=0.25)),
        ("64KiB", PatchSize(max_bytes=65536)),
        ("64kib", PatchSize(max_bytes=65536)),
        ("1.5MiB", PatchSize(max_bytes=1572864)),
        ("64kB", PatchSize(max_bytes=64000)),
        ("4096B", PatchSize(max_bytes=4096)),
    ],
)
def test_a_size_is_read(text, size):
    assert patch_size(text) == size
    parse(f"patch:{text}".rstrip(":"))


BAD = ["0", "-1", "1.5", "x", "0%", "101%", "nan%", "%", "energy=0", "energy=2", "energy=", "bytes=x", "0KiB", "64XB"]


@pytest.mark.parametrize("text", [*BAD, "64 KiB", "energy", "\u0663", "9" * 5000, "inf%", "rank=3", "1e400KiB"])
def test_what_is_no_size_is_refused_alike(text):
    with pytest.raises(PatchSizeError) as refused:
        patch_size(text)
    with pytest.raises(ValueError) as of_eval:
        parse(f"patch:{text}")
    assert str(refused.value) == str(of_eval.value) and "as in patch:" in str(refused.value)


def test_sizes_are_read_without_jax():
    code = "import sys; import eval.methods.sizes; from eval.commands.command_line import parser; parser(); "
    code += "print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_example_of_bytes_is_a_method():
    assert names.EXAMPLES["patch:SIZE"] == "patch:64KiB"
