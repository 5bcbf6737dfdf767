"""What a backbone gives: segments that a forward can run, and outputs that are what was asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import kamera_jax as kj
from kamera_jax.backbone import Output
from kamera_jax.errors import BackboneError
from tests.kamera_jax.backbones import Inherits, refused, sketched
from tests.kamera_jax.toy import LAYERS, Toy, forward


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As in production, where no annotation is checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def segment(vlm, **changes):
    good = vlm.segment("good text", "x")
    return kj.Segment(
        **{"inputs": good.inputs, "positions": good.positions, "length": good.length, "advance": 9.0} | changes
    )


SEGMENTS = [
    (lambda good: {"inputs": {"ids": good.inputs["tokens"]}}, r"inputs are \['ids'\]; expected at least \"tokens\""),
    (lambda good: {"inputs": {}}, 'expected at least "tokens"'),
    (lambda good: {"inputs": good.inputs["tokens"]}, 'expected at least "tokens"'),
    (
        lambda good: {"inputs": good.inputs | {"media": jnp.zeros((3, 4))}},
        r"inputs\['media'\] of shape \[3, 4\]; expected T = 16",
    ),
    (lambda good: {"inputs": {"tokens": good.inputs["tokens"].astype(jnp.float32)}}, "tokens float32"),
    (lambda good: {"inputs": {"tokens": [1, 2, 3]}}, r"inputs\['tokens'\] of shape \[\]"),
    (lambda good: {"inputs": {"tokens": good.inputs["tokens"][:, None]}}, r"tokens int32\[16, 1\]; expected i32\[T\]"),
    (lambda good: {"positions": good.positions[:1]}, r"positions \[1, 16\]; expected f32\[3, T\]"),
    (lambda good: {"positions": good.positions[0]}, r"positions \[16\]; expected f32\[3, T\]"),
    (lambda good: {"length": jnp.int32(0)}, "a segment of 0 tokens in 16 rows; expected at least one"),
    (lambda good: {"length": jnp.int32(17)}, "a segment of 17 tokens in 16 rows"),
    (lambda good: {"length": 9}, r"length 9; expected an i32 scalar, such as np.int32\(16\)"),
    (lambda good: {"length": jnp.array([9])}, r"length int32\[1\]; expected an i32 scalar"),
    (lambda good: {"advance": float("nan")}, "advances by nan"),
    (lambda good: {"advance": -1.0}, "advances by -1.0"),
    (lambda good: {"advance": "9"}, "advances by '9'"),
]


@pytest.mark.parametrize("where", ["preamble", "prepare", "tail", "follow_up"])
@pytest.mark.parametrize(("changes", "match"), SEGMENTS)
def test_segments_that_no_forward_can_run(where, changes, match):
    vlm = Toy()
    bad = segment(vlm, **changes(vlm.segment("good text", "x")))
    setattr(vlm, where, bad if where == "preamble" else lambda *_: bad)
    refused(vlm, f"Toy.{where} gives .*{match}")


@pytest.mark.parametrize("where", ["prepare", "tail"])
def test_no_segment_at_all(where):
    vlm = Toy()
    setattr(vlm, where, lambda *_: [1, 2, 3])
    refused(vlm, rf"Toy.{where} gives \[1, 2, 3\]; expected a kamera_jax.Segment")


def changed(**changes):
    """The toy whose forward returns something else."""

    def wrong(params, segment, state, *, logits_at=None, collect=()):
        output = forward(params, segment, state, logits_at=logits_at, collect=collect)
        fields = {"logits": output.logits, "kv": output.kv, "aux": output.aux}
        fields |= {name: change(fields[name]) for name, change in changes.items() if name in fields}
        return changes["whole"](output) if "whole" in changes else Output(**fields)

    vlm = Toy()
    vlm.forward = wrong
    return vlm


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"kv": lambda kv: kj.KV(kv.rot[:1], kv.free[:1])},
            r"kv.rot float32\[1, 16, 16\]; its spec says float32\[2, T, 16\] \(layers=2",
        ),
        ({"kv": lambda kv: kj.KV(kv.rot, kv.free[..., :2])}, r"kv.free float32\[2, 16, 2\]; .*free_dim=6"),
        ({"kv": lambda kv: kj.KV(kv.free, kv.rot)}, r"kv.rot float32\[2, 16, 6\]; .*rot_dim=16"),
        (
            {"kv": lambda kv: jax.tree.map(lambda x: x.astype("bfloat16"), kv)},
            r"kv.rot bfloat16.*its spec says float32",
        ),
        ({"kv": lambda kv: jax.tree.map(lambda x: x[:, :-1], kv)}, r"KV of rot \[2, 15, 16\] .* for 16 rows"),
        ({"kv": lambda kv: jax.tree.map(lambda x: x.reshape(2, 16, 2, -1), kv)}, r"KV of rot \[2, 16, 2, 8\]"),
        ({"kv": lambda kv: (kv.rot, kv.free)}, "kv = .*; expected a kamera_jax.KV"),
        ({"whole": lambda output: (output.logits, output.kv)}, "expected a kamera_jax.backbone.Output"),
        ({"whole": lambda output: output.kv}, "expected a kamera_jax.backbone.Output"),
        ({"aux": lambda aux: None}, "aux = None; expected a dict"),
        (
            {"aux": lambda aux: {}},
            r"aux with nothing where collect=\('attention_mass',\) was asked for; expected aux\['attention_mass'\]",
        ),
        (
            {"aux": lambda aux: {name: mass[:, 1:] for name, mass in aux.items()}},
            r"aux\['attention_mass'\] of shape \[2, \d+\]; expected \[2, \d+\]",
        ),
        (
            {"aux": lambda aux: {name: mass[0] for name, mass in aux.items()}},
            r"aux\['attention_mass'\] of shape \[\d+\]",
        ),
        ({"logits": lambda logits: None}, r"logits None where they were asked for at 1 tokens; expected \[1, V\]"),
        (
            {"logits": lambda logits: None if logits is None else logits[0]},
            r"logits \[64\] where they were asked for at 1",
        ),
        ({"logits": lambda logits: None if logits is None else jnp.tile(logits, (3, 1))}, r"logits \[3, 64\] where"),
    ],
)
def test_outputs_that_are_not_what_was_asked_for(changes, match):
    refused(changed(**changes), match)


def queries(aux, shape=(LAYERS, 16, 2, 8), names=("queries", "attended")):
    return aux | {name: jnp.zeros(shape) for name in names} if aux else aux


def test_a_sketch_takes_queries():
    refused(Toy(), r"expected aux\['queries'\], which goes with 'queries'", sketched)
    refused(
        changed(aux=partial(queries, names=("queries",))),
        r"expected aux\['attended'\], which goes with 'queries'",
        sketched,
    )
    refused(
        changed(aux=partial(queries, shape=(LAYERS, 16, 16))),
        r"aux\['(queries|attended)'\] of shape \[2, 16, 16\]",
        sketched,
    )
    refused(
        changed(aux=partial(queries, shape=(LAYERS, 8, 2, 8))),
        r"of shape \[2, 8, 2, 8\]; expected \[2, 16, ·, ·\]",
        sketched,
    )
    refused(Inherits(), r"Inherits collects \('attention_mass',\); forming a sketch takes queries", sketched)
    nothing = Toy()
    nothing.collects = ()
    refused(nothing, r"Toy collects \(\); forming a patch takes attention_mass: return it in aux")
    with pytest.raises(BackboneError, match="forming a patch takes attention_mass"):
        kj.form_patches(nothing, ["a red star"])
