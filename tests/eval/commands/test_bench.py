"""`kamera bench` on small models and shapes."""

import json
import sys

import pytest

from benchmarks import device
from eval.commands import bench as forming
from eval.commands import main as cli


@pytest.fixture(scope="module")
def small():
    return forming.RandomDecoder(layers=2, width=64, heads=2, kv_heads=1)


def test_a_row_is_what_its_steps_take(small):
    calls = []
    result = forming.measure(small, lengths=(20, 40), rank=4, runs=1, progress=lambda *about: calls.append(about))
    assert [row["tokens"] for row in result["rows"]] == [20, 40] and calls[-1] == ("chunks", 2, 2)
    for row in result["rows"]:
        assert min(row[f"{step}_ms"] for step in ("encode", "forward", "form", "apply", "reprefill")) > 0
        assert row["break_even"] == pytest.approx(row["form_ms"] / (row["reprefill_ms"] - row["apply_ms"]))
        assert row["form_of_forward"] == pytest.approx(row["form_ms"] / row["forward_ms"])
        # Rank 4 in the second layer; the first layer's KV does not depend on neighbours.
        assert row["patch_share"] == pytest.approx(4 * (row["tokens"] + 64) / (2 * row["tokens"] * 64))
    with pytest.raises(ValueError, match="at least one token; got 0"):
        forming.measure(small, lengths=(0,), rank=4, runs=1)


def test_uneven_ranks_are_timed(small):
    found = forming.apply_ranks(small, 32, {"even": (4, 4), "uneven": (0, 8)}, runs=1)
    assert found.keys() == {"even_ms", "uneven_ms"} and min(found.values()) > 0


def test_the_command_writes_what_it_shows(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forming, "RandomDecoder", lambda: small)
    where = tmp_path / "form.json"
    drawn = tmp_path / "form.png"
    command = ["bench", "form", "--tokens", "16", "32", "--runs", "1", "--json", str(where), "--plot", str(drawn)]
    assert cli.main(command) == 0
    result = json.loads(where.read_text())
    shown = capsys.readouterr().out
    assert [row["tokens"] for row in result["rows"]] == [16, 32] and result["rank"] is None
    for row in result["rows"]:
        assert f"{row['form_ms']:.1f}" in shown and f"{row['break_even']:.2f}" in shown
        assert row["patch_share"] <= 0.1
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_relocation_is_timed_beside_a_copy(tmp_path, capsys):
    where = tmp_path / "relocate.json"
    command = ["bench", "relocate", "--shape", "llava-onevision-0.5b", "--tokens", "32", "64", "--runs", "1"]
    assert cli.main([*command, "--dtype", "bf16", "--json", str(where)]) == 0
    result = json.loads(where.read_text())
    shown = capsys.readouterr().out
    assert [row["tokens"] for row in result["rows"]] == [32, 64] and result["dtype"] == "bfloat16"
    for row in result["rows"]:
        # 24 layers, keys and values of 128, read and written; the patch of rank 16; tables of 64.
        kv = 2 * 2 * 24 * row["tokens"] * 256
        patch = 2 * 24 * 16 * (row["tokens"] + 256) + 4 * 24
        assert row["ideal"] == kv + patch + 2 * 4 * row["tokens"] * 64 + 4
        assert row["gb_s"] == pytest.approx(row["ideal"] / row["ms"] / 1e6) and row["copy_gb_s"] > 0
        assert f"{row['gb_s']:.1f}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_attention_is_timed_in_place_and_of_a_prefill(tmp_path, capsys):
    where = tmp_path / "attention.json"
    command = ["bench", "attention", "--shape", "kimi-vl decode", "--tokens", "16", "--slots", "32", "--runs", "1"]
    assert cli.main([*command, "--json", str(where)]) == 0
    in_place, prefill = json.loads(where.read_text())["rows"]
    shown = capsys.readouterr().out
    assert (in_place["kind"], in_place["queries"], in_place["keys"]) == ("chunks in place", 1, 64 * 512)
    assert (prefill["kind"], prefill["queries"], prefill["keys"]) == ("prefill", 16, 48)
    # Absorbed: 16 heads, keys of 576 and values of 512; a token sees 32 slots and those up to itself.
    assert in_place["flops"] == 2 * 16 * (576 + 512) * 64 * 512
    assert prefill["flops"] == 2 * 16 * (576 + 512) * sum(32 + i for i in range(1, 17))
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_look_back_is_timed_both_ways(tmp_path, capsys):
    where = tmp_path / "e2e.json"
    command = ["bench", "e2e", "--tokens", "24", "40", "--before", "16", "--rank", "2", "--runs", "1"]
    assert cli.main([*command, "--json", str(where)]) == 0
    result = json.loads(where.read_text())
    shown = capsys.readouterr().out
    assert result["model"] == "kamera-tiny-gqa" and [row["before"] for row in result["rows"]] == [16, 16]
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["reprefill_ms"] / row["reuse_ms"]) and 0 < row["patch_share"] < 1
        assert f"{row['ratio']:.2f}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize("what", ["relocate", "attention"])
def test_a_shape_that_is_not_in_the_table_is_named(what, capsys):
    assert cli.main(["bench", what, "--shape", "no-such-shape"]) == 1
    message = capsys.readouterr().err
    assert "no-such-shape" in message and "kimi-vl" in message and "Traceback" not in message


def test_the_script_for_devices_runs_on_a_small_model(tmp_path, monkeypatch, capsys):
    command = ["device", "--output", str(tmp_path), "--only", "look-back", "--tiny"]
    monkeypatch.setattr(sys, "argv", command)
    device.main()
    found = json.loads((tmp_path / "look-back.json").read_text())
    assert json.loads(capsys.readouterr().out)["look-back"] == found
    assert found["reprefill_over_reuse"] == pytest.approx(found["prefill_ms"] / found["reuse_ms"])
    assert found["first_token_by_prefill_ms"] > 0 < found["first_token_by_reuse_ms"]
