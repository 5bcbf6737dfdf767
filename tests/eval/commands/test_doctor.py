"""`kamera doctor` says what serves a call, and why nothing better does."""

import json

import jax.numpy as jnp
import pytest

from eval.commands import doctor
from eval.commands.main import main
from pallas_kernels import dispatch
from pallas_kernels.relocate_patch.shapes import SHAPES


def test_it_says_what_runs_here_and_why(capsys, tmp_path):
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert {row["model"] for row in found["kernels"]} == set(doctor.BACKBONES)
    assert all(row["here"] == "xla" for row in found["kernels"])
    assert "default backend is a cpu" in found["unavailable"]["pallas_tpu"]
    assert found["versions"]["kamera-jax"] and found["devices"][0]["platform"] == "cpu"
    assert found["error"] < 1e-6


def test_a_models_own_calls_are_looked_at(capsys):
    assert main(["doctor", "--model", "kamera-tiny-gqa", "--slots", "100"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "kamera-tiny-gqa relocate_patch_into xla xla [1]" in shown
    assert "[1] it needs a head dim D in" in shown and "not 32" in shown


@pytest.mark.parametrize(("slots", "refused"), [(4096, False), (100, True)])
def test_a_window_no_kernel_can_write_to_is_named(slots, refused):
    into, attention, _ = doctor.choices("kimi-vl", SHAPES["kimi-vl"], jnp.bfloat16, slots)
    reason = into.refusals["pallas_tpu"]
    assert (reason is not None and "multiple of" in reason and str(slots) in reason) if refused else reason is None
    assert attention.refusals["pallas_tpu"] is None and "built for heads of" in attention.refusals["mosaic_gpu"]


def test_on_a_tpu_the_kernels_run(monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    assert [choice.here for choice in doctor.choices("m", SHAPES["qwen2.5-vl-7b"], jnp.bfloat16, 4096)] == [
        "pallas_tpu",
        "pallas_tpu",
        "pallas_tpu",
    ]


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "kimi-vl"])
def test_what_serves_prefill_is_said_for_every_platform(name):
    choice = doctor.choices(name, SHAPES[name], jnp.bfloat16, 4096)[-1]
    assert (choice.operation, choice.here) == ("attention", "xla")
    assert choice.refusals["pallas_tpu"] is None and "log-sum-exp" in (choice.refusals["mosaic_gpu"] or "")
    half = doctor.choices(name, SHAPES[name], jnp.float16, 4096)[-1]
    assert "not float16" in (half.refusals["pallas_tpu"] or "")


def test_completion_scripts_are_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "bash"])
    assert stop.value.code == 0 and "doctor" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_named(capsys):
    assert main(["doctor", "--model", "no-such-model"]) == 1
    message = capsys.readouterr().err
    assert "no-such-model" in message and "Traceback" not in message
