"""The old path of `eval.commands.main`, for one version."""

import warnings

from eval.commands.main import main, parser

__all__ = ["main", "parser"]

warnings.warn("eval.cli is now eval.commands.main; the old path goes with the next version", DeprecationWarning, 2)
