"""The demo's claims, on the shipped weights and fewer episodes than the demo itself runs."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eval.commands import demo
from eval.commands.main import ATTENTIONS, main
from eval.report import console as report
from eval.report import readme, style
from eval.tiny import assess
from eval.tiny.backbones import BACKBONES
from models import load

ROOT = Path(__file__).parents[3]


FAMILIES = ["gqa", *(pytest.param(name, marks=pytest.mark.soak) for name in ATTENTIONS if name != "gqa")]


@pytest.fixture(scope="module", params=FAMILIES)
def shipped(request, tmp_path_factory):
    """The output of the command on an embedded model: its attention, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ["--json", str(folder / "demo.json"), "--pages", str(folder / "pages")]
    assert main(["demo", "--attention", request.param, "--episodes", "48", *arguments]) == 0
    return request.param, folder


@pytest.fixture(scope="module")
def result(shipped):
    return json.loads((shipped[1] / "demo.json").read_text())


def by_name(result):
    return {row["name"]: row for row in result["methods"]}


def test_blind_reuse_loses_the_second_hop_and_a_patch_gives_it_back(result):
    rows = by_name(result)
    full = rows["full"]
    blind = rows["blind"]
    assert full["one_hop"] >= 0.97 and full["two_hop"] >= 0.97
    assert blind["one_hop"] >= 0.95 and blind["two_hop"] <= 0.6 * full["two_hop"]
    assert any(
        row["patch_share"] <= 0.25 and row["two_hop"] >= 0.97 * full["two_hop"] and row["eta"] >= 0.95
        for name, row in rows.items()
        if name.startswith("patch")
    )


def test_a_patch_of_the_default_size_gives_it_back_with_a_tenth_of_the_bytes(result):
    rows = by_name(result)
    assert rows["patch"]["patch_share"] <= 0.1 < rows["patch:8"]["patch_share"]
    assert rows["patch"]["two_hop"] >= 0.97 * rows["full"]["two_hop"] and rows["patch"]["eta"] >= 0.98


def test_more_rank_is_closer_to_full_prefill(result):
    kl = [row["kl"] for row in result["methods"] if row["name"].startswith("patch:")]
    assert kl == sorted(kl, reverse=True)
    assert by_name(result)["full"]["kl"] <= 1e-6


def test_every_order_with_antecedents_first_is_served_by_the_orbit_patches(result):
    assert [row["antecedents_first"] for row in result["reorder"]] == [True] * 2 + [False] * 4
    assert {tuple(row["order"]) for row in result["reorder"]} == set(
        itertools.permutations(("first", "second", "third"))
    )
    for row in result["reorder"][:2]:
        assert abs(row["two_hop"] - row["two_hop_full"]) <= 0.03


def test_survivors_of_a_slide_keep_what_they_absorbed(result):
    slide = result["slide"]
    assert slide["survivors"] >= 0.95 * slide["history"]
    assert slide["present"] <= 0.3


def test_recall_needs_the_patch(result):
    recall = result["recall"]
    assert recall["blind"] <= 0.6 * recall["full"] and recall["patch"] >= 0.95 * recall["full"]


def test_tables_fit_eighty_columns(result):
    console = Console(width=200, record=True, emoji=False)
    report.print_demo(result, console)
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any(line.startswith("patch ") for line in lines) and any(line.startswith("patch:12") for line in lines)


def test_the_figure_is_drawn(result, tmp_path):
    for count in (1, 3):
        report.plot_demo([result] * count, tmp_path / "demo.png")
        with Image.open(tmp_path / "demo.png") as figure:
            assert figure.width == style.WIDTH * style.DPI and np.asarray(figure).std() > 1


def test_the_command_writes_what_it_found_and_the_pages(shipped, result):
    attention, folder = shipped
    assert {"methods", "reorder", "slide", "recall", "model", "versions"} <= result.keys()
    assert result["model"]["name"] == f"kamera-tiny-{attention}"
    assert result["model"]["architecture"] == BACKBONES[attention].architecture.name
    assert {"name", "one_hop", "two_hop", "kl", "eta", "kv_bytes", "patch_bytes"} <= result["methods"][0].keys()
    assert {"order", "two_hop", "two_hop_full", "eta"} <= result["reorder"][0].keys()
    assert result["slide"].keys() == {"survivors", "history", "present", "kl_history"}
    assert result["recall"].keys() == {"blind", "patch", "full"}
    assert {path.name for path in (folder / "pages").iterdir()} == {
        "first.png",
        "second.png",
        "third.png",
        "other.png",
        "questions.md",
    }


def test_the_readme_says_what_was_measured():
    results = ROOT / "docs/results"
    demos = [json.loads((results / f"demo-{attention}.json").read_text()) for attention in ATTENTIONS]
    parity = json.loads((results / "parity.json").read_text())
    page = (ROOT / "README.md").read_text()
    assert readme.put(page, "demo", readme.markdown_demo(demos)) == page
    assert readme.put(page, "models", readme.markdown_models(parity)) == page
    assert all(each["episodes"] >= 200 for each in demos)
    assert all(max(each["logits"], each["kv"]) <= 1e-5 for each in parity.values())


def test_the_example_pages_are_the_first_episode(tmp_path):
    demo.write_pages(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "examples/pages" / path.name).read_bytes()


def test_the_models_page_says_what_was_measured():
    rows = json.loads((ROOT / "docs/results/embedded-models.json").read_text())
    assert assess.page(rows) == (ROOT / "docs/embedded-models.md").read_text()


@pytest.mark.parametrize("attention", FAMILIES)
def test_the_model_binds_inside_the_chunk(attention):
    backbone = BACKBONES[attention]
    measured = assess.assess(load(backbone.name), backbone, episodes=6)
    rows = {(row["hops"], row["fact"], row["antecedents"]): row for row in measured}
    assert rows[1, "page", "in view"]["accuracy"] >= 0.97
    assert rows[2, "page", "in view"]["accuracy"] >= 0.97 and rows[2, "page", "evicted"]["accuracy"] >= 0.97
