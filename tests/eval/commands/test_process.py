"""`kamera` as a process: pipes that close, streams that are closed, and Ctrl-C at any time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
WHERE = {"env": ENVIRONMENT, "cwd": ROOT}
KAMERA = (sys.executable, "-m", "eval.commands.main")


def test_a_reader_that_leaves_early_is_no_error():
    command = " ".join(KAMERA)
    for line in (f"{command} --print-completion bash | head -n 1", f"{command} --help | true"):
        done = subprocess.run(
            ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
            env=ENVIRONMENT,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["bash", "-c", f"{command} library ls nowhere 2>&1 >&- | true; exit ${{PIPESTATUS[0]}}"],
        **WHERE,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")  # the error, which nobody read


def test_a_full_disk_behind_standard_output_is_named():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*KAMERA, "--help"], **WHERE, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "kamera: standard output cannot be written: No space left on device\n"


LATER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
sys.argv[0] = "kamera"
import eval.commands.main as command
class Finder:
    def find_spec(name, *_):
        if name == {module!r}:
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = ["library", "ls", "nowhere"]
sys.exit(command.main())
"""


@pytest.mark.parametrize("module", ["eval.commands.command_line", "jax", "kamera_jax", "eval.commands.library"])
def test_an_interrupt_while_importing_says_one_line(module):
    code = LATER.format(module=module)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        **WHERE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
