"""`kamera bench form` on a small random decoder."""

import json

import pytest

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
