"""The calibration that lies beside a model's weights."""

from pathlib import Path

from kamera_jax.guard.calibration import Calibration
from models.hub.fields import ConfigError
from models.hub.files import parsed, read_text

CALIBRATION = "calibration.json"
"""Beside the weights: a `kamera_jax.Calibration`."""


def read_calibration(folder: Path, fingerprint: str) -> Calibration | None:
    """The calibration in a model's folder, if it was measured with this model; else None.

    Raises:
        ConfigError: the file is no calibration.
    """
    if not (folder / CALIBRATION).exists():
        return None
    text = read_text(folder / CALIBRATION)
    parsed(text, folder / CALIBRATION)  # named, if it is no JSON
    try:
        calibration = Calibration.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / CALIBRATION} is no calibration ({error!r:.200}); leave it out") from error
    return calibration if calibration.model == fingerprint else None
