"""A run ends the same however often it is stopped, and its folder takes nothing that is not its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.commands.main import main
from eval.report import evaluation as evaluation_report
from eval.run import runner
from eval.run.folder import CONTEXTS, RESULTS, SAMPLES, TIMING, OtherRunError, RunFolder
from models import load
from tests.xla_flags import FLAGS

ROOT = Path(__file__).parents[3]
MODEL = "kamera-tiny-gqa"
RUN = runner.Run("binding", MODEL, ("patch:2", "cacheblend:0.25"), seeds=(5, 6, 7), limit=1, batch=1)
LASTING = (RESULTS, CONTEXTS, SAMPLES)
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": FLAGS,
}


@pytest.fixture(scope="module")
def vlm():
    return load(MODEL)


@pytest.fixture(scope="module")
def unbroken(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    runner.evaluate(vlm, RUN, folder)
    return folder


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of a finished run, for a test to damage."""
    return Path(shutil.copytree(unbroken, tmp_path / "copied"))


def content(folder):
    return {name: (folder / name).read_bytes() for name in LASTING}


def test_two_runs_with_the_same_seeds_are_identical(vlm, unbroken, tmp_path):
    reports = []
    runner.evaluate(vlm, RUN, tmp_path / "again", lambda *progress: reports.append(progress))
    assert content(tmp_path / "again") == content(unbroken)
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_a_killed_run_resumes_and_ends_as_an_unbroken_one(vlm, unbroken, tmp_path):
    folder = tmp_path / "killed"
    code = (
        "import os, signal; from pathlib import Path; from eval.run import runner; from models import load; "
        f"runner.evaluate(load({MODEL!r}), runner.{RUN!r}, Path({str(folder)!r}), "
        "lambda *done: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=ROOT).returncode == -signal.SIGKILL
    assert 1 <= len((folder / SAMPLES).read_text().splitlines()) < len((unbroken / SAMPLES).read_text().splitlines())
    runner.evaluate(vlm, RUN, folder)
    assert content(folder) == content(unbroken)


@pytest.mark.parametrize("cut", [1, 40, 0.3, 0.5, 0.9])
def test_wherever_a_run_breaks_off_whole_groups_are_kept(copied, unbroken, cut):
    """A line cut in the middle, and a context without its samples, are no group."""
    groups = [[json.loads(line)["id"]] for line in (unbroken / CONTEXTS).read_text().splitlines()]
    whole = (unbroken / SAMPLES).read_bytes()
    left = whole[: cut if isinstance(cut, int) else int(cut * len(whole))]
    (copied / SAMPLES).write_bytes(left)
    identity = {"config": json.loads((unbroken / RESULTS).read_text())["config"]}
    each = len(json.loads((unbroken / CONTEXTS).read_text().splitlines()[0])["samples"])
    done = RunFolder(copied, identity).resume(groups)
    assert done == left.count(b"\n") // each
    assert (copied / SAMPLES).read_bytes() == b"".join(whole.splitlines(keepends=True)[: done * each])
    kept = (unbroken / CONTEXTS).read_bytes().splitlines(keepends=True)[:done]
    assert (copied / CONTEXTS).read_bytes() == b"".join(kept)


def test_samples_say_what_was_measured(unbroken):
    samples = [json.loads(line) for line in (unbroken / SAMPLES).read_text().splitlines()]
    contexts = [json.loads(line) for line in (unbroken / CONTEXTS).read_text().splitlines()]
    assert [sample["id"] for sample in samples] == [name for context in contexts for name in context["samples"]]
    assert {sample["seed"] for sample in samples} == set(RUN.seeds)
    for sample in samples:
        assert sample["methods"].keys() == {"full", "blind", "patch:2", "cacheblend:0.25"}
        assert sample["methods"]["full"]["kl"] == 0
    for context in contexts:
        costs = context["methods"]
        assert costs["full"]["computed_tokens"] == context["tokens"] and costs["blind"]["computed_tokens"] == 0
        assert costs["patch:2"]["bytes"] > 0 == costs["cacheblend:0.25"]["bytes"]
        assert costs["full"]["kv_error"] == [0] * 5 and max(costs["blind"]["kv_error"][1:]) > 0.05
        curves = [np.array(context["absorbed"][name]) for name in ("components", "tokens")]
        assert all((np.diff(curve) >= -1e-5).all() and np.allclose(curve[1:, -1], 1, atol=1e-4) for curve in curves)
        assert (curves[0][1:] >= curves[1][1:] - 1e-4).all()  # no basis holds more than the best one
    right = [sample["methods"]["full"]["said"] in sample["answers"] for sample in samples if sample["learned"]]
    assert np.mean(right) >= 0.9
    timing = json.loads((unbroken / TIMING).read_text())
    assert len(timing) == 3
    assert all(min(group["ttft_s"].values()) > 0 for group in timing.values())


def test_it_is_the_windows_that_are_waited_for_and_not_their_dispatch(monkeypatch):
    """On a clock of its own: what is built is there 2 s after its dispatch at the first time, and then after 1 s."""
    now = [0.0]
    left = [2.0, 1.0, 1.0, 1.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])

    class Late:
        def block_until_ready(self):
            now[0] += left.pop(0)

    built, seconds = runner._timed(lambda: {"window": Late()}, lambda result: result["window"])
    assert seconds == 1.0 and set(built) == {"window"}


def test_rescoring_runs_no_model(copied, unbroken, monkeypatch):
    monkeypatch.setattr("models.load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["eval", "binding", "--output", str(copied), "--rescore"]) == 0
    assert content(copied) == content(unbroken)
    samples = [json.loads(line) for line in (copied / SAMPLES).read_text().splitlines()]
    for sample in samples:
        sample["methods"]["patch:2"]["said"] = sample["answers"][0]
    (copied / SAMPLES).write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    hops = runner.rescore(copied)["scores"]["methods"]["patch:2"]["hops"]
    assert [cell["accuracy"] for cell in hops.values()] == [1, 1]


def test_a_run_that_was_cut_off_is_not_scored_as_if_it_were_whole(copied):
    lines = (copied / SAMPLES).read_bytes().splitlines(keepends=True)
    (copied / SAMPLES).write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ValueError, match="was stopped"):
        runner.rescore(copied)


def test_the_command_goes_on_and_reports(unbroken, tmp_path, capsys):
    arguments = ["--methods", "patch:2,cacheblend:0.25", "--seeds", "5,6,7", "--limit", "1", "--batch", "1"]
    before = content(unbroken)
    out = tmp_path / "run.json"
    assert main(["eval", "binding", "--model", MODEL, *arguments, "--output", str(unbroken), "--json", str(out)]) == 0
    assert content(unbroken) == before and "cacheblend:0.25" in capsys.readouterr().out
    figures = tmp_path / "figures"
    page = tmp_path / "page.md"
    shown = ["eval", "report", str(unbroken), "--figures", str(figures), "--page", str(page)]
    assert main(shown) == 0
    for path in figures.iterdir():
        with Image.open(path) as figure:
            assert figure.width > 500 and np.asarray(figure).std() > 1
        assert f"(figures/{path.name})" in page.read_text()
    assert len(list(figures.iterdir())) == 5
    assert evaluation_report.load(out) == evaluation_report.load(unbroken)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": (5, 6)}, "another run: .*seeds"),
        ({"methods": ("patch:4",)}, "another run: .*methods"),
        ({"task": "bindin"}, "did you mean binding"),
        ({"methods": ("pach:4",)}, "did you mean patch"),
        ({"capacity": 100}, "sample 5/plain/0 takes 208 slots with the preamble, the window has 100"),
        ({"limit": 0}, "at least 1"),
        ({"seeds": (1, 1)}, "different"),
        ({"devices": 99}, "devices here"),
    ],
)
def test_bad_runs_are_refused(vlm, copied, changed, message):
    before = content(copied)
    with pytest.raises(ValueError, match=message):
        runner.evaluate(vlm, replace(RUN, **changed), copied)
    assert content(copied) == before


def test_folders_of_other_things_are_refused(vlm, copied, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(OtherRunError, match="neither an empty folder"):
        runner.evaluate(vlm, RUN, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(OtherRunError, match="has no results.json"):
        evaluation_report.load(tmp_path / "mine")
    lines = [json.loads(line) for line in (copied / SAMPLES).read_text().splitlines()]
    lines[0]["id"] = "another"
    (copied / SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(OtherRunError, match="other samples"):
        runner.evaluate(vlm, RUN, copied)


def test_bad_command_lines_are_refused(tmp_path, capsys):
    for arguments, message in (
        (["bindig", "--output", str(tmp_path / "a")], "did you mean binding"),
        (["binding", "--methods", "epik:4", "--output", str(tmp_path / "a")], "did you mean epic"),
        (["binding", "--rescore"], "--output DIR"),
        (["report"], "give the folders"),
        (["report", str(tmp_path)], "has no results.json"),
    ):
        assert main(["eval", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


DEVICES = """
import jax, numpy as np, kamera_jax as kj
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.batch.devices import mesh_of
from eval.methods import Batch, parse
from eval.run.answering import generated
from eval.tasks import Context, Question
from models import load
vlm = load("kamera-tiny-gqa")
assert len(jax.devices()) == 4
words = ["red star.", "blue moon.", "green tree.", "pink car."]
singles = [[kj.encode(vlm, f"a {w} a {words[i - k]}") for i, w in enumerate(words)] for k in (1, 2)]
chunks = [Stack.of(place) for place in singles]
contexts = [Context(("a", "b"), (Question("what colour is the star?", ("red",)),))] * 4
answers = []
arrays = {}
for mesh in (None, mesh_of()):
    runners = [BatchRunner(model, capacity=48, mesh=mesh) for model in (vlm, vlm.leading(2))]
    batch = Batch.of(*runners, chunks)
    tails = runners[0].tails([["what colour is the star?"]] * 4)
    method = parse("cacheblend:0.5")
    windows = method.fill(batch, method.prepare(batch))
    logits = runners[0].ask(windows, tails)
    answers.append(generated(batch, list(zip(*singles)), windows, contexts, 2))
    for array in (windows.state.rot, logits):
        assert len(array.sharding.device_set) == (1 if mesh is None else 4), array.sharding
        assert mesh is None or array.addressable_shards[0].data.shape[0] == 1
    arrays[mesh] = [np.asarray(leaf) for leaf in (batch.full.state.rot, windows.state.rot, windows.state.free, logits)]
for one, four in zip(*arrays.values()):
    assert np.abs(one - four).max() <= 1e-4
assert answers[0] == answers[1] and answers[0][0] == ["red"], answers
print("spread")
"""


def test_contexts_are_spread_over_devices():
    environment = {**ENVIRONMENT, "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "spread", done.stderr
