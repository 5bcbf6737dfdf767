"""Policies that do not look."""

import math

import kamera_jax as kj
from kamera_jax.guard.policy import Verdict


class Trusting(kj.ReusePolicy):
    """Takes every patch behind anything, and none only behind nothing."""

    def judge(self, window, chunk, patch, at=None, *, fresh=()):
        trusted = not window.keys if patch is None else bool(window.keys)
        return Verdict(trusted, 0.0 if trusted else math.inf, "as it is")
