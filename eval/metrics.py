"""The old path of `eval.run.metrics`, for one version."""

import warnings

from eval.run.metrics import *  # noqa: F403

warnings.warn("eval.metrics is now eval.run.metrics; the old path goes with the next version", DeprecationWarning, 2)
