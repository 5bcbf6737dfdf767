"""What a backbone must be, may leave out, and is told when something is wrong: by name, before anything is run."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.backbone import Backbone, BackboneBase, Output, forward_flops, with_defaults
from kamera_jax.errors import BackboneError
from kamera_jax.window.window import Window
from tests.kamera_jax import toy
from tests.kamera_jax.toy import LAYERS, Toy, forward


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As in production, where no annotation is checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def use(vlm):
    """All that a backbone is for."""
    a, b = kj.encode(vlm, "a red star"), kj.encode(vlm, "a blue cell")
    patch = kj.form_patch(vlm, b, antecedents=[a], rank=2)
    window = kj.append(kj.append(kj.Window.empty(vlm, 128), a), b, patch)
    answer = kj.generate(vlm, window, "which ?", max_new_tokens=2)
    return kj.query(vlm, answer.window, "and now ?")


class Inherits(BackboneBase):
    """The toy with the required members alone."""

    forward = staticmethod(forward)
    eos = (toy.VOCABULARY,)
    segment = Toy.segment
    prepare = Toy.prepare
    tail = Toy.tail
    decode = Toy.decode
    __init__ = Toy.__init__


class Bare:
    """The same, and it inherits nothing."""

    forward = staticmethod(forward)
    eos = (toy.VOCABULARY,)
    segment = Toy.segment
    prepare = Toy.prepare
    tail = Toy.tail
    decode = Toy.decode
    __init__ = Toy.__init__


@pytest.mark.parametrize("kind", [Inherits, Bare])
def test_what_may_be_left_out_has_defaults(kind):
    vlm = kind()
    assert isinstance(vlm, Backbone)
    whole = with_defaults(vlm)
    assert (whole.closing, whole.attends_in_place, whole.fills_slots) == ((), False, False)
    assert "attention_mass" in whole.collects
    assert whole.follow_up("which ?").content == vlm.tail("which ?").content
    size = sum(leaf.size for leaf in jax.tree.leaves(vlm.params))
    assert whole.flops(3, 7) == forward_flops(vlm, 3, 7) == 6.0 * size
    assert whole.leading(1) is vlm
    with pytest.raises(ValueError, match="does not say attends_in_place = True"):
        Window.empty(vlm, 64, mode="in_place")
    assert np.isfinite(use(vlm)).all()


def test_what_a_backbone_has_stands_before_the_defaults():
    class Flopping(Toy):
        fills_slots = True
        collects = ("attention_mass", "more")

        def flops(self, tokens, slots):
            return tokens + slots

        def leading(self, layers):
            return layers

    whole = with_defaults(Flopping())
    assert forward_flops(Flopping(), 3, 4) == 7 and whole.leading(2) == 2
    assert whole.closing == Toy.closing and whole.attends_in_place and whole.fills_slots
    assert whole.collects == Flopping.collects and whole.follow_up("x").content != whole.tail("x").content


def test_defaults_do_not_keep_a_backbone_alive():
    import gc
    import weakref

    vlm = Bare()
    whole = with_defaults(vlm)
    gone = weakref.ref(vlm)
    del vlm, whole
    gc.collect()
    assert gone() is None


def test_it_is_looked_at_once(monkeypatch):
    seen = []
    monkeypatch.setattr("kamera_jax.backbone.check_members", lambda vlm, protocol: seen.append(vlm))
    monkeypatch.setattr("kamera_jax.forward.check_kv", lambda vlm, kv: seen.append(kv))
    vlm = Toy(seed=5)
    use(vlm)
    use(vlm)
    assert len(seen) == 2


def test_a_method_is_one_forward():
    """Equal at each access, it keys one program, as a function does."""
    runs = []

    class Method(Toy):
        def forward(self, params, segment, state, *, logits_at=None, collect=()):
            runs.append(1)
            return forward(params, segment, state, logits_at=logits_at, collect=collect)

    vlm = Method(seed=6)
    kj.encode(vlm, "a red star")
    before = len(runs)
    kj.encode(vlm, "a new star")
    assert len(runs) == before


def refused(vlm, match, work=use):
    with pytest.raises(BackboneError, match=match) as caught:
        work(vlm)
    assert isinstance(caught.value, ValueError)


MEMBERS = ("spec", "params", "fingerprint", "preamble", "eos", "prepare", "tail", "decode", "forward")


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize(
    "work", [use, lambda vlm: Window.empty(vlm, 64), lambda vlm: kj.encode(vlm, "a", preamble=None)]
)
def test_what_is_missing_is_named(name, work):
    vlm = Bare()
    without = (name, "__dict__", "__weakref__")
    kind = type("Lacking", (), {key: value for key, value in vars(Bare).items() if key not in without})
    lacking = kind.__new__(kind)
    lacking.__dict__.update({key: value for key, value in vars(vlm).items() if key != name})
    refused(lacking, f"Lacking lacks {name}; .*examples/own_backbone.py", work)


def test_all_that_is_missing_is_named():
    class Nothing(BackboneBase):
        spec = None

    refused(Nothing(), "Nothing lacks params, fingerprint, preamble, eos, prepare, tail, decode, forward")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spec": {"layers": 2}}, "spec is {'layers': 2}; expected a KVSpec"),
        ({"fingerprint": ""}, "fingerprint is ''; expected a str that is not empty"),
        ({"fingerprint": b"abc"}, "fingerprint is b'abc'; expected a str"),
        ({"fingerprint": "another"}, "fingerprint is 'another' and its spec.fingerprint"),
        ({"eos": 5}, "eos is 5; expected a tuple of token ids"),
        ({"eos": None}, "eos is None; expected a tuple of token ids"),
        ({"eos": ("<end>",)}, "eos is .*; expected a tuple of token ids"),
        ({"closing": 7}, "closing is 7; expected a tuple of token ids"),
        ({"closing": "<end>"}, "closing is '<end>'; expected a tuple of token ids"),
        ({"collects": "attention_mass"}, "collects is 'attention_mass'; expected a tuple of names"),
        ({"attends_in_place": "yes"}, "attends_in_place is 'yes'; expected True or False"),
        ({"fills_slots": 1}, "fills_slots is 1; expected True or False"),
        ({"prepare": "text"}, "prepare is 'text'; expected a method"),
        ({"decode": None}, "decode is None; expected a method"),
        ({"flops": 1e9}, "flops is 1000000000.0; expected a method"),
        ({"follow_up": ()}, r"follow_up is \(\); expected a method"),
        ({"preamble": "system"}, "preamble gives 'system'; expected a kamera_jax.Segment"),
        ({"preamble": None}, "preamble gives None; expected a kamera_jax.Segment"),
    ],
)
def test_wrong_types(changes, match):
    vlm = Toy()
    vars(vlm).update(changes)
    refused(vlm, match)


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
    (lambda good: {"length": 9}, r"length 9; expected an i32 scalar, such as jnp.int32\(16\)"),
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


@dataclass
class Listed(Toy):
    seed: int = 0

    def __post_init__(self):
        Toy.__init__(self, self.seed)


def test_a_dataclass_is_told_how_to_be_hashed():
    refused(Listed(), r"Listed is not hashable .*@dataclass\(eq=False\), or define __hash__")


def test_a_frozen_dataclass_of_arrays():
    @dataclass(frozen=True)
    class Frozen(BackboneBase):
        params: Any = field(default_factory=dict)

    refused(Frozen(), r"Frozen is not hashable \(.*dict.*\)")


def test_slots_have_no_weak_references():
    class Slotted:
        __slots__ = ("spec",)

    refused(Slotted(), "Slotted cannot be weakly referenced .*__weakref__")


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


def sketched(vlm):
    chunk = kj.encode(vlm, "a red star")
    return kj.form_patch(vlm, chunk, antecedents=[], rank=1, sketch=kj.SketchSpec((0,)))


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


class Renewed(Toy):
    @property
    def forward(self):
        return partial(forward)


class Lambdas(Toy):
    forward = property(lambda self: lambda *args, **options: forward(*args, **options))


class Compiled(Toy):
    forward = property(lambda self: jax.jit(forward, static_argnames="collect"))


class Unhashable(Toy):
    class Call:
        __hash__ = None

        def __call__(self, *args, **options):
            return forward(*args, **options)

    forward = Call()


def test_forwards_that_key_nothing():
    for kind in (Renewed, Lambdas):
        refused(kind(), "forward is a new object at each access")
    refused(Unhashable(), "forward is not hashable")


class Closed(Toy):
    def forward(self, segment, state, *, logits_at=None, collect=()):
        return forward(self.params, segment, state, logits_at=logits_at, collect=collect)


class Built(Toy):
    def forward(self, params, segment, state, *, logits_at=None, collect=()):
        return forward(self.params, segment, state, logits_at=logits_at, collect=collect)


class BuiltAndCompiled(Built):
    def __init__(self):
        super().__init__()
        self.forward = jax.jit(super().forward, static_argnames="collect")


class Partly(Toy):
    def forward(self, params, segment, state, *, logits_at=None, collect=()):
        params = {"rows": self.params["rows"] + 0 * params["rows"], "out": params["out"]}
        return forward(params, segment, state, logits_at=logits_at, collect=collect)


class Positional(Toy):
    def forward(self, params, segment, state, logits_at):
        return forward(params, segment, state, logits_at=logits_at)


def test_parameters_are_an_argument():
    refused(Closed(), r"Closed.forward takes \(segment, state, .*parameters are an argument and never closed over")
    refused(Positional(), r"Positional.forward takes .*; expected \(params, segment, state, \*, logits_at=None")
    for kind in (Built, BuiltAndCompiled, Partly):
        refused(kind(), f"{kind.__name__}.forward does not read the parameters it is given")


def test_a_compiled_forward_is_a_forward():
    class Once(Toy):
        forward = staticmethod(jax.jit(forward, static_argnames="collect"))

    assert np.isfinite(use(Once())).all()


def test_a_spec_whose_heads_do_not_make_its_width():
    vlm = Toy()
    vlm.spec = replace(vlm.spec, heads=3)
    refused(vlm, "rot_dim=16, heads=3 and a RoPE of head_dim=8; expected rot_dim = heads × head_dim")


def test_a_text_that_is_none():
    vlm = Toy()
    vlm.decode = lambda tokens: list(tokens)
    refused(vlm, r"Toy.decode gives \[.*\]; expected a str")
