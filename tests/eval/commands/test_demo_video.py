"""The demo on video: what the window of a session answers while it slides, and that nothing is encoded twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import video, video_page
from eval.commands import demo, demo_video
from eval.commands.main import main
from eval.report import demo_video as report
from eval.tiny.episodes import SEGMENTS
from models import load

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs/results"


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-video")


@pytest.fixture(scope="module")
def stream(vlm):
    return demo_video.run(vlm, segments=12, seed=7)


def test_a_sliding_window_answers_as_the_history_does_and_blind_reuse_does_not(stream):
    asked = stream["asked"]
    assert all(asked[kind]["questions"] >= 5 for kind in asked)
    for kind, rows in asked.items():
        assert rows["history"]["accuracy"] >= 0.9 and rows["patch"]["accuracy"] >= rows["history"]["accuracy"] - 0.02
        assert rows["patch"]["kl"] <= 0.02, kind
    assert asked["one hop"]["blind"]["accuracy"] >= 0.95
    assert asked["two hops"]["blind"]["accuracy"] <= 0.6 and asked["two hops, evicted"]["blind"]["accuracy"] <= 0.6
    assert asked["two hops, evicted"]["present"]["accuracy"] <= 0.6
    assert max(stream["survivors_kl"]) <= 0.02 and stream["patch_share"] <= 0.1


def test_each_segment_goes_through_the_tower_once_and_a_look_back_runs_none(vlm, monkeypatch):
    prepared = []
    own = type(vlm).prepare

    def counted(self, item):
        prepared.append(type(item).__name__)
        return own(self, item)

    monkeypatch.setattr(type(vlm), "prepare", counted)
    result = demo_video.run(vlm, segments=8, seed=8)
    # One more tells how long a segment is; the rest are texts.
    assert prepared.count("Video") == 8 + 1
    assert result["encoded"] == result["encoded_after_looks_back"] == 8
    assert len(result["looks_back"]["segments"]) == 3 >= result["looks_back"]["questions"]


def test_a_video_that_is_no_longer_than_the_window_is_refused(vlm):
    with pytest.raises(ValueError, match="slide over more than 5"):
        demo_video.run(vlm, segments=5)


def test_episodes_of_segments(vlm):
    result = demo.run(vlm, episodes=12, ranks=(4,), recipe=SEGMENTS)
    rows = {row["name"]: row for row in result["methods"]}
    full, blind, patch = (rows[name] for name in ("full", "blind", "patch"))
    assert full["two_hop"] >= 0.97 and blind["one_hop"] >= 0.95 * full["one_hop"]
    assert blind["two_hop"] <= 0.6 * full["two_hop"]
    assert patch["patch_share"] <= 0.1 and patch["two_hop"] >= 0.97 * full["two_hop"]


def test_table_figure_and_animation(stream, tmp_path):
    console = Console(width=200, record=True, emoji=False)
    report.print_stream(stream, console)
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any(line.startswith("session, with patches") for line in lines)
    report.plot_stream(stream, tmp_path / "video.png")
    with Image.open(tmp_path / "video.png") as figure:
        assert figure.width > 700 and np.asarray(figure).std() > 1
    report.animate(demo_video.cells_shown(7)[:4], 3, tmp_path / "video.gif")
    with Image.open(tmp_path / "video.gif") as film:
        shown = 0
        for frame in range(film.n_frames):  # equal frames are one that is shown for longer
            film.seek(frame)
            shown += film.info["duration"]
        assert shown == 4 * SEGMENTS.moments * report.WAIT
        assert np.asarray(film.convert("RGB")).std() > 1


def test_options_that_need_each_other(capsys, tmp_path):
    assert main(["demo", "--animate", str(tmp_path / "a.gif")]) == 1
    assert "give --video too" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo", "--video", "--attention", "mla"])


def test_caches_over_sliding_images():
    """What they run is counted: of five images a turn one is new, and the text is run once."""
    result = video.sliding(load("kamera-tiny-gqa"), users=1, progress=lambda _: None)["caches"]
    full, prefix, encoder, session = (result[name] for name in video.CACHES)
    turns = video.TURNS
    new = video.WINDOW + turns - 1
    assert full["images"] == prefix["images"] == turns * video.WINDOW and encoder["images"] == session["images"] == new
    image = 62
    text = (full["tokens"] - prefix["tokens"]) // (turns - 1)
    assert full["tokens"] == turns * (text + video.WINDOW * image)
    assert encoder["tokens"] == prefix["tokens"] == text + turns * video.WINDOW * image
    assert new * image + text <= session["tokens"] <= 2 * new * image + text
    assert session["flops"] < encoder["flops"] == prefix["flops"] < full["flops"]
    assert encoder["kl"] <= 1e-6 and session["kl"] <= 0.05


def test_the_page_says_what_was_measured():
    results = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("demo-video", "video")]
    assert (ROOT / "docs/video.md").read_text(encoding="utf-8") == video_page.page_of(*results)
    demo_result, measured = results
    assert demo_result["episodes"] >= 100 and demo_result["stream"]["slides"] >= 45
    assert max(demo_result["stream"]["survivors_kl"]) <= 0.02
    assert measured["memory"]["frames"] >= 2000
    resident = [row["resident"] for row in measured["memory"]["rows"]]
    assert resident[-1] <= 1.02 * resident[1]
