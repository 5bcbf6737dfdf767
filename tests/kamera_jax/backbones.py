"""Backbones for tests: the least there is, and a use of all that one is for."""

import pytest

import kamera_jax as kj
from kamera_jax.backbone import BackboneBase
from kamera_jax.errors import BackboneError
from tests.kamera_jax import toy
from tests.kamera_jax.toy import Toy, forward


def use(vlm):
    """All that a backbone is for."""
    a = kj.encode(vlm, "a red star")
    b = kj.encode(vlm, "a blue cell")
    patch = kj.form_patch(vlm, b, antecedents=[a], rank=2)
    window = kj.append(kj.append(kj.Window.empty(vlm, 128), a), b, patch)
    answer = kj.generate(vlm, window, "which ?", max_new_tokens=2)
    return kj.query(vlm, answer.window, "and now ?")


class Bare:
    """The toy with the required members alone."""

    forward = staticmethod(forward)
    eos = (toy.VOCABULARY,)
    segment = Toy.segment
    prepare = Toy.prepare
    tail = Toy.tail
    decode = Toy.decode
    __init__ = Toy.__init__


class Inherits(Bare, BackboneBase):
    """The same, with what may be left out."""


def refused(vlm, match, work=use):
    with pytest.raises(BackboneError, match=match) as caught:
        work(vlm)
    assert isinstance(caught.value, ValueError)


def sketched(vlm):
    chunk = kj.encode(vlm, "a red star")
    return kj.form_patch(vlm, chunk, antecedents=[], rank=1, sketch=kj.SketchSpec((0,)))
