"""Methods whose chunks are stored in few bits: what is served, what it costs, and what is refused."""

import json

import jax
import numpy as np
import pytest

import kamera_jax as kj
from eval import evaluate
from eval.methods import Batch, parse
from eval.report.run_tables import columns, rows
from eval.run.records import kv_error
from kamera_jax.batch.windows import BatchRunner, Stack
from models import load


@pytest.fixture(
    scope="module", params=["gqa", *(pytest.param(name, marks=pytest.mark.soak) for name in ("mla", "mha"))]
)
def batch(request):
    vlm = load(f"kamera-tiny-{request.param}")
    texts = [["the red star stands here", "the blue moon stands there", "what colour has the star"]] * 2
    chunks = [Stack.of([kj.encode(vlm, text) for text in place]) for place in zip(*texts, strict=True)]
    runners = [BatchRunner(model, capacity=256) for model in (vlm, vlm.leading(2))]
    return Batch.of(*runners, chunks)


def filled(batch, name):
    method = parse(name)
    prepared = method.prepare(batch)
    return method.fill(batch, prepared), method.cost(batch, prepared)


def error(batch, name):
    return float(kv_error(batch, filled(batch, name)[0]).max())


@pytest.mark.parametrize("codec", ["int8", "kivi:4", "turbo:2", "pca:0.5+kivi:4", "xkv:2:3", "mixed:0.25:4:2"])
def test_a_window_holds_what_comes_back(batch, codec):
    """Each chunk's rows are those of `kamera_jax.compress`, the first chunk's too."""
    windows, _ = filled(batch, codec)
    vlm = batch.runner.vlm
    for stack, kept in zip(batch.chunks, windows.conditioned, strict=True):
        kv = jax.tree.map(lambda leaf: leaf[0], stack.kv)
        chunk = kj.Chunk(kv, stack.segment.positions[0], stack.length, stack.advance, vlm.fingerprint, spec=vlm.spec)
        back = kj.compress(vlm, chunk, codec).restore()
        np.testing.assert_allclose(kept.rot[0], back.kv.rot, atol=1e-5)
        np.testing.assert_allclose(kept.free[0], back.kv.free, atol=1e-5)
        assert not np.allclose(kept.free[0], kv.free, atol=1e-5)


def test_patches_are_fitted_to_what_is_served(batch):
    assert error(batch, "kivi:2") > error(batch, "blind")
    whole = batch.chunks[2].kv.rot.shape[2]  # full rank
    for codec in ("int8", "kivi:2", "saw:2"):
        assert error(batch, f"{codec}+patch:{whole}") < 1e-4
    again = "kivi:2+patch:2+epic:3"
    assert error(batch, again) < error(batch, "kivi:2+patch:2")


def test_a_copy_is_full_prefills_kv_in_few_bits(batch):
    errors = [error(batch, f"copy:{bits}") for bits in (8, 4, 2, 1)]
    assert errors == sorted(errors) and errors[0] < 0.01 < errors[-1]
    assert all(error(batch, "blind") != each for each in errors)


def test_bytes_are_those_of_what_is_stored(batch):
    vlm = batch.runner.vlm
    for codec in ("int8", "kivi:4", "turbo:1", "pca:0.25+kivi:4", "xkv:2:6"):
        wanted = 0
        for stack in batch.chunks:
            kv = jax.tree.map(lambda leaf: leaf[0], stack.kv)
            chunk = kj.Chunk(
                kv, stack.segment.positions[0], stack.length, stack.advance, vlm.fingerprint, spec=vlm.spec
            )
            wanted += kj.compress(vlm, chunk, codec).nbytes
        _, cost = filled(batch, codec)
        assert cost.kept_bytes == wanted and not np.any(cost.stored_bytes)
        patched = filled(batch, f"{codec}+patch:2")[1]
        assert patched.kept_bytes == wanted and np.all(patched.stored_bytes > 0)
    assert filled(batch, "copy:4")[1].kept_bytes == filled(batch, "kivi:4")[1].kept_bytes
    assert filled(batch, "blind")[1].kept_bytes is None
    layers, widths = vlm.spec.layers, (vlm.spec.rot_dim, vlm.spec.free_dim)
    once = 4 * layers * sum(width * (width // 4 + 1) for width in widths)
    assert filled(batch, "pca:0.25+kivi:4+patch:2")[1].model_bytes == once
    assert filled(batch, "kivi:4")[1].model_bytes == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kivi:4+full", "cannot stand in"),
        ("kivi:4+copy:2", "cannot stand in"),
        ("copy:2+epic:4", "cannot stand in"),
        ("patch:4+kivi:4", "comes first, and once"),
        ("kivi:4+saw:4", "cannot stand behind quantise"),
        ("kivi+patch:4", "kivi needs bits"),
        ("kivi:4:rows+patch:4", "options that kivi does not know"),
        ("copy:9", "bits from 1 to 8"),
        ("copy", "copy is written copy:4"),
        ("turb:4", "did you mean turbo"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_codecs_stand_before_blind_reuse_patches_and_repairs():
    for name in ("kivi:4", "kivi:4+blind", "kivi:4+epic:4", "int8+patch:4+epic:4", "kivi:2:channel+blind-norotate"):
        method = parse(name)
        assert method.name == name and method.codec.name == name.partition("+")[0]
    assert len(parse("kivi:4+epic:4").parts) == len(parse("kivi:4+blind+epic:4").parts) == 2
    assert parse("xkv:1:8+kivi:4+patch:4").codec.name == "xkv:1:8+kivi:4"
    assert parse("patch:4").codec is None


def test_a_report_says_all_that_is_stored(tmp_path):
    run = tmp_path / "run"
    evaluate(
        "binding",
        "kamera-tiny-gqa",
        methods="turbo:4+patch:4,pca:0.5+kivi:4,copy:2",
        limit=1,
        repeats=0,
        seeds=0,
        output=run,
    )
    report = json.loads((run / "results.json").read_text())
    costs = {name: own["cost"] for name, own in report["scores"]["methods"].items()}
    assert costs["blind"]["total_share"] == pytest.approx(2)  # the model's f32, of 16 bits
    assert 0.15 < costs["copy:2"]["total_share"] < 0.25
    assert 0.25 < costs["turbo:4+patch:4"]["total_share"] < 0.6
    shown = {**report, "ttft_s": {}}
    assert "total" in columns(report["scores"])
    assert costs["pca:0.5+kivi:4"]["model_bytes"] == 4 * 5 * 2 * 64 * 33 and "model_bytes" not in costs["copy:2"]
    once = columns(report["scores"]).index("once")
    assert [row[once] for row in rows(shown)] == ["0 KiB", "0 KiB", "0 KiB", "82 KiB", "0 KiB"]
    place = columns(report["scores"]).index("total")
    assert [row[place] for row in rows(shown)][:2] == ["200.0%", "200.0%"]
    plain = json.loads(json.dumps(report["scores"]))
    for name in ("turbo:4+patch:4", "pca:0.5+kivi:4", "copy:2"):
        del plain["methods"][name]
    assert "total" not in columns(plain) and len(rows({"scores": plain, "ttft_s": {}})[0]) == len(columns(plain))
