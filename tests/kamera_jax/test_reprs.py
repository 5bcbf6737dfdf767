"""What a user sees of an object: short, and with what he asks of it first."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.compress.basis import of_model
from kamera_jax.handle import in_bytes
from models import load
from tests.kamera_jax.toy import Toy

LONGEST = 300


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def made(vlm, tmp_path_factory):
    """An object of each public class, by the class's name."""
    a, b = (kj.encode(vlm, text) for text in ("red star green moon", "what colour is the star"))
    patch = kj.form_patch(vlm, b, antecedents=[a], sketch=kj.SketchSpec((0, 1)))
    window = kj.append(kj.append(kj.Window.empty(vlm, 256), a), b, patch)
    session = kj.Session(vlm, 256)
    session.add(a)
    library = kj.ChunkLibrary.open(tmp_path_factory.mktemp("reprs") / "library", mode="a")
    library.put_many([a, b, patch])
    in_place = kj.append(kj.Window.empty(vlm, 256, mode="in_place"), a)
    policy = kj.ReusePolicy(calibration=vlm.calibration)
    text = "a long answer " * 100
    return {
        "Audio": kj.Audio(np.zeros(24000), 16000),
        "KV": a.kv,
        "Calibration": vlm.calibration,
        "Chunk": a,
        "ChunkLibrary": library,
        "ChunkPool": in_place.state.pools[0],
        "CodecBasis": of_model(vlm.spec, vlm.fingerprint),
        "Compressed": kj.compress(vlm, a, "kivi:4"),
        "EmbeddingFinder": kj.EmbeddingFinder(library, {a.key: np.ones(3)}, lambda text: np.ones(3)),
        "Entry": window.entries[1],
        "Factors": patch.factors,
        "Fidelity": kj.verify(vlm, window, ["what colour is the star?"]),
        "Finder": kj.Finder(vlm, library),
        "Generation": dataclasses.replace(session.ask("what colour is the star?", max_new_tokens=1), text=text),
        "Hit": kj.Hit(b.key, 2.5, patch.key, (a.key,)),
        "KVSpec": vlm.spec,
        "Match": kj.Match.EXACT,
        "Patch": patch,
        "Renewed": kj.renew(vlm, a, "red star blue moon"),
        "RetrievalHeads": vlm.retrieval,
        "ReusePolicy": policy,
        "RopeSpec": vlm.spec.rope,
        "Origin": kj.Origin("report.pdf", page=12),
        "Segment": a.source,
        "Session": session,
        "SessionStats": session.stats,
        "Sketch": patch.sketch,
        "SketchSpec": patch.sketch.spec,
        "Staleness": kj.staleness(window, b, patch),
        "Tiers": kj.Tiers(library=library),
        "Verdict": policy.judge(window, b, patch),
        "Video": kj.Video(np.zeros((3, 28, 56, 3), np.uint8), [0.0, 0.5, 1.0]),
        "Window": window,
        "WindowState": window.state,
        "Plan": kj.planning.plan(vlm, window, kj.planning.Recall(a, None, at=0), policy=policy),
        "VisionLanguageModel": vlm,
        "Preprocessor": vlm.preprocess,
    }


SHOWN = {
    "KV": ["rot=float32[5, "],
    "Calibration": ["1400 drifts", "fe15a9e437b7", "nats", "layers (0, 1)"],
    "Chunk": ["key=", "length=4", "codec='exact'"],
    "ChunkLibrary": ["library", "mode='a'", "2 chunks, 1 patches in 2 packs"],
    "ChunkPool": ["rot=float32[5, "],
    "CodecBasis": ["5 layers", "64 and 64 features"],
    "Compressed": ["key=", "length=4", "codec='kivi:4'"],
    "Entry": ["base=", "slot="],
    "Factors": ["u=int8[5, ", "ranks=int32[5]"],
    "Fidelity": ["ok=", "mean KL", "nats", "1 probes"],
    "Generation": ["'a long answer ", "…", "1 tokens", " s", "2 chunks"],
    "Finder": ["4 heads", "nothing read yet"],
    "EmbeddingFinder": ["1 chunks", "vectors of 3 numbers"],
    "Hit": ["score 2.50", "a patch behind 1 chunks"],
    "Renewed": ["codec='renewed:", "approximate, made from", "1 of 4 tokens were run"],
    "RetrievalHeads": ["1.1, 0.3", "24 questions among 96 chunks"],
    "KVSpec": ["layers=5", "rot_dim=64", "free_dim=64", "heads=2", "float32", "2.5 KiB a token", "8192 positions"],
    "Match": ["EXACT"],
    "Origin": ["'report.pdf'", "page=12"],
    "Patch": ["key=", "length=", "chunk="],
    "ReusePolicy": ["max_kl=0.05", "fallback='patch'", "1400 drifts"],
    "RopeSpec": ["half", "32 of 32 dims", "frequencies 1 to 0.000178", "sections (4, 6, 6) contiguous"],
    "Segment": ["tokens", "advance="],
    "Session": [
        "kamera-tiny-gqa",
        "2 chunks (0 with patches)",
        "of 256 slots",
        "1 turns",
        "max_kl=0.05",
    ],
    "SessionStats": ["seen=1", "evicted_bytes="],
    "Sketch": ["queries="],
    "SketchSpec": ["layers=(0, 1)"],
    "Staleness": ["change=", "'partial'"],
    "Tiers": ["0 B of 256.0 MiB on the device", "1.0 GiB in host memory", "library", "0 look-backs"],
    "Verdict": ["accept=", "estimate_kl=", "reason="],
    "Audio": ["1.50 s", "16000 samples a second"],
    "Video": ["3 frames of 28 x 56", "0 to 1 s"],
    "Window": ["capacity=256", "entries=2", "'materialise'"],
    "WindowState": ["rot=float32[5, 256, 64]"],
    "Plan": ["steps", "FLOPs", "KiB"],
    "VisionLanguageModel": [
        "'kamera-tiny-gqa'",
        "qwen2_5_vl",
        "5 layers",
        "GQA of 4 heads on 2",
        "1,017,792 parameters in float32",
        "3.9 MiB",
        "on cpu:0",
    ],
    "Preprocessor": ["qwen2_5_vl", "text", "images", "videos"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_short_and_has_what_is_asked_first(made, name):
    shown = repr(made[name])
    assert len(shown) < LONGEST
    assert [part for part in SHOWN[name] if part not in shown] == [], shown


def test_every_public_class_is_among_them():
    classes = {name for name in kj.__all__ if inspect.isclass(getattr(kj, name))}
    assert classes <= set(SHOWN)


def test_what_is_nested_stays_short(made):
    for step in made["Plan"].steps:
        assert len(repr(step)) < LONGEST
    window = made["Window"]
    assert len(repr(window.entries)) < LONGEST * 2


@pytest.mark.parametrize(("name", "attention"), [("kamera-tiny-mla", "MLA of"), ("kamera-tiny-mha", "MHA of")])
def test_a_model_names_its_attention_and_dtype(name, attention):
    model = load(name, dtype="bf16")
    assert attention in repr(model) and "bfloat16" in repr(model) and len(repr(model)) < LONGEST
    assert "first" not in repr(model) and "2 layers" in repr(model.leading(2))
    shapes = jax.eval_shape(lambda params: params, model.params)
    described = repr(model.with_params(model.params, revision="x"))
    assert name in described and described != repr(model) and jax.tree.leaves(shapes)


def test_a_session_of_a_user_s_model_names_its_class():
    assert "Session of Toy" in repr(kj.Session(Toy(), 64))


def test_a_repr_costs_nothing_and_changes_nothing(made):
    """A session's own window is not lent by it, and nothing is waited for."""
    session = made["Session"]
    before = len(session._kept.lent._arrays)
    repr(session)
    assert len(session._kept.lent._arrays) == before
    traced = []
    jax.jit(lambda window: traced.append(repr(window)) or jnp.zeros(()))(made["Window"])
    assert len(traced[0]) < LONGEST


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (3 * 2**40, "3.0 TiB")]
)
def test_bytes_are_shown_in_a_unit_that_fits(count, shown):
    assert in_bytes(count) == shown
