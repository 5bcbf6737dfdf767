"""What counts as an error with a name: a ValueError that this project raises itself, which says something."""

import traceback
from pathlib import Path

import kamera_jax
import models

OURS = tuple(str(Path(package.__file__).parent) for package in (kamera_jax, models))


def unnamed(error):
    """What is wrong with an error; empty for one with a name."""
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    if isinstance(error, ValueError) and last is not None and last.filename.startswith(OURS) and len(str(error)) > 10:
        return "" if len(str(error)) < 5000 else f"unnamed: a message of {len(str(error))} characters"
    return "unnamed: " + "".join(traceback.format_exception(error, limit=-4))[-1500:]
