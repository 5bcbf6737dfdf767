"""What a backbone must be and may leave out: what is wrong is named, before anything is run."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.backbone import Backbone, BackboneBase, forward_flops, with_defaults
from kamera_jax.window.window import Window
from tests.kamera_jax.backbones import Bare, Inherits, refused, use
from tests.kamera_jax.toy import Toy, forward


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As in production, where no annotation is checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


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


@pytest.mark.parametrize("kind", [Inherits, Bare])
def test_none_is_left_out(kind):
    vlm = kind()
    vars(vlm).update(closing=None, flops=None, follow_up=None, attends_in_place=None)
    whole = with_defaults(vlm)
    assert whole.closing == () and whole.attends_in_place is False and forward_flops(vlm, 1, 1) > 0
    assert whole.follow_up("which ?").content == vlm.tail("which ?").content


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


class Renewed(Toy):
    @property
    def forward(self):
        return partial(forward)


class Lambdas(Toy):
    forward = property(lambda self: lambda *args, **options: forward(*args, **options))


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
