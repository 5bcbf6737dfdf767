"""The public surface is the design's: names, signatures, fields."""

import dataclasses
import inspect

import pytest

import kamera_jax as kj
import pallas_kernels
from kamera_jax.backbone import Backbone, Output
from models import load

SIGNATURES = {
    kj.encode: "vlm, item, *, preamble='pinned'",
    kj.form_patch: (
        "vlm, chunk, *, antecedents=None, context=None, rank=None, energy=None, max_bytes=None, int8=None, sketch=None"
    ),
    kj.form_patches: "vlm, items, *, capacity=None, rank=None, energy=None, max_bytes=None, int8=None, sketch=None",
    kj.Window.empty: "vlm, capacity, *, mode='materialise'",
    kj.append: "window, chunk, patch=None, *, donate=False",
    kj.reorder: "window, order",
    kj.slide: "window, drop=1",
    kj.recall: "window, chunk, patch, at=None",
    kj.replace: "window, index, chunk, patch=None",
    kj.prefill: "vlm, items, *, capacity=None",
    kj.query: "vlm, window, text",
    kj.verify: "vlm, window, probes, *, reference='present', history=None, max_kl=0.05",
    kj.staleness: "window, chunk, patch, at=None",
    kj.append_checked: "vlm, window, chunk, patch, policy",
    kj.calibrate: "vlm, drifts",
    kj.ReusePolicy.judge: "self, window, chunk, patch, at=None",
    kj.Calibration.estimate: "self, change",
    kj.Calibration.threshold: "self, max_kl, *, failures=0.01",
    kj.generate: (
        "vlm, window, text, *, max_new_tokens=16, temperature=0.0, key=None, stop=(), stream=None, keep=True"
    ),
    kj.planning.plan: "vlm, window, change, *, policy, stored=()",
    kj.planning.execute: "vlm, plan",
    kj.Session: "vlm, capacity, *, mode='materialise', memory_bytes=1073741824, rank=32, policy=None",
    kj.Session.add: "self, item, key=None, *, patch=True, pin=False",
    kj.Session.ask: "self, text, *, max_new_tokens=16, keep=True, **options",
    kj.Session.recall: "self, key, at=None",
    kj.Session.replace: "self, key, item, *, patch=True",
    kj.Session.pin: "self, key, pinned=True",
    kj.Session.save: "self, folder",
    kj.Session.restore: "vlm, folder, *, policy=None",
    kj.ChunkLibrary.open: "path, mode='r', *, verify='always'",
    kj.ChunkLibrary.put: "self, item, *, storage='exact'",
    kj.ChunkLibrary.put_async: "self, item, *, storage='exact'",
    kj.ChunkLibrary.put_many: "self, items, *, storage='exact'",
    kj.ChunkLibrary.get: "self, key",
    kj.ChunkLibrary.get_many: "self, keys",
    kj.ChunkLibrary.get_patch: "self, key",
    kj.ChunkLibrary.get_kv: "self, key, layers=slice(None, None, None)",
    kj.ChunkLibrary.patches: "self, key, antecedents=None",
    kj.ChunkLibrary.has: "self, key",
    kj.ChunkLibrary.keys: "self, kind='chunks'",
    kj.ChunkLibrary.info: "self, key",
    kj.ChunkLibrary.delete: "self, key",
    kj.ChunkLibrary.packs: "self, kind='chunks'",
    kj.ChunkLibrary.restore: "self, pack, *, sharding=None",
    kj.ChunkLibrary.verify: "self",
    kj.ChunkLibrary.gc: "self",
    kj.ChunkLibrary.stats: "self",
    kj.ChunkLibrary.close: "self",
    kj.rope.tables: "spec, positions",
    kj.rope.rotate: "x, positions, spec",
    kj.patch.fit: "conditioned, canonical, length, rank",
    kj.patch.apply: "kv, factors",
    kj.patch.nbytes: "factors, length",
    kj.Patch.match: "self, context",
    pallas_kernels.relocate_patch: (
        "rot, free, cos, sin, u=None, v=None, ranks=None, *, length=None, rotary_dim=None, layout='half', "
        "implementation=None"
    ),
    pallas_kernels.chunk_attention: (
        "q, rot, free, positions, inv_freq, u=None, v=None, ranks=None, *, layer=None, lengths, bases, scale, "
        "rope_scale=1.0, layout='half', implementation=None"
    ),
    pallas_kernels.merge_states: "outs, lses",
    pallas_kernels.relocate_patch_into: (
        "cache_rot, cache_free, place, rot, free, cos, sin, u=None, v=None, ranks=None, *, length=None, "
        "rotary_dim=None, layout='half', implementation=None"
    ),
    load: "name, *, dtype=None, mesh=None, system=None",
    Backbone.prepare: "self, item",
    Backbone.tail: "self, text",
    Backbone.decode: "self, tokens",
    Backbone.forward: "self, params, segment, state, *, logits_at=None, collect=()",
}

FIELDS = {
    kj.KV: "rot free",
    kj.Factors: "u v ranks scale",
    kj.ChunkPool: "rot free positions lengths bases u v ranks",
    kj.WindowState: "rot free positions valid pools",
    kj.Segment: "inputs positions length advance content",
    kj.Chunk: "kv positions length advance key model preamble antecedents inputs turn spec",
    kj.Patch: "factors chunk model antecedents mass residual length sketch",
    kj.Entry: "chunk patch base slot",
    kj.Window: "state entries spec capacity preamble mode shelves",
    kj.RopeSpec: "inv_freq head_dim layout sections section_layout scale",
    kj.KVSpec: "layers rot_dim free_dim heads rope dtype fingerprint identity max_positions",
    kj.Generation: "text tokens ttft_s window",
    kj.Sketch: "queries outputs tokens spec",
    kj.SketchSpec: "layers weights tokens",
    kj.Staleness: "change match deleted inserted mass_then mass_now",
    kj.Calibration: "model sketch changes kls",
    kj.ReusePolicy: "max_kl fallback calibration",
    kj.Verdict: "accept estimate_kl reason",
    kj.Fidelity: "kl probe_kl flips kv_error max_kl reference",
    kj.SessionStats: "seen encoded patched turns evicted recalls forgotten held_bytes",
    Output: "logits kv aux",
}

# What later work brings; the line moves up when it does.
NOT_YET = {
    kj: ("Video", "Audio"),
}


def bare(function):
    """The signature without its annotations."""
    signature = inspect.signature(function)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signature(function):
    assert bare(function) == f"({SIGNATURES[function]})"


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields(kind):
    assert [field.name for field in dataclasses.fields(kind)] == FIELDS[kind].split()
    assert kind.__dataclass_params__.frozen


def test_a_backbone_is_what_the_protocol_says():
    members = {name for name in dir(Backbone) if not name.startswith("_")} | set(Backbone.__annotations__)
    assert members == set("spec params fingerprint preamble eos prepare tail decode forward".split())


def test_whatever_has_the_members_is_a_backbone():
    class Bare:
        spec = params = fingerprint = preamble = eos = None

        def prepare(self, item): ...
        def tail(self, text): ...
        def decode(self, tokens): ...
        def forward(self, params, segment, state, *, logits_at=None, collect=()): ...

    assert isinstance(Bare(), Backbone)
    del Bare.tail
    assert not isinstance(Bare(), Backbone)


def test_every_exported_name_is_there_and_documented():
    for package in (kj, pallas_kernels):
        assert sorted(package.__all__) == sorted(set(package.__all__))
        for name in package.__all__:
            value = getattr(package, name)
            # A dataclass without a docstring is given its signature for one.
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name


def test_exports():
    assert set(kj.__all__) == {
        *(
            "KV",
            "Chunk",
            "ChunkLibrary",
            "ChunkPool",
            "Entry",
            "Factors",
            "Generation",
            "KVSpec",
            "Match",
            "Patch",
            "RopeSpec",
            "Segment",
            "Session",
            "SessionStats",
        ),
        *("Window", "WindowState", "append", "encode", "form_patch", "generate", "patch", "prefill", "query", "recall"),
        *("reorder", "replace", "rope", "slide"),
        *("Calibration", "Fidelity", "ReusePolicy", "Sketch", "SketchSpec", "Staleness", "Verdict"),
        *("append_checked", "calibrate", "form_patches", "planning", "staleness", "verify"),
    }
    assert pallas_kernels.__all__ == ["chunk_attention", "merge_states", "relocate_patch", "relocate_patch_into"]


def test_what_is_not_built_is_not_offered():
    assert not [name for package, names in NOT_YET.items() for name in names if hasattr(package, name)]


def test_match_has_four_values():
    assert [match.name for match in kj.Match] == ["EXACT", "PERMUTED", "PARTIAL", "MISS"]
