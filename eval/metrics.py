"""The old path of `eval.run.metrics`, for one version."""

import warnings

from eval.run.metrics import accuracy, binomial_tail, clopper_pearson, eta, kl, mean_and_error

__all__ = ["accuracy", "binomial_tail", "clopper_pearson", "eta", "kl", "mean_and_error"]

warnings.warn("eval.metrics is now eval.run.metrics; the old path goes with the next version", DeprecationWarning, 2)
