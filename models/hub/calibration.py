"""What was measured of a model and lies beside its weights: a calibration of reuse, and heads that find chunks."""

from pathlib import Path

from kamera_jax.finder.heads import RetrievalHeads
from kamera_jax.guard.calibration import Calibration
from models.hub.fields import ConfigError
from models.hub.files import parsed, read_text

CALIBRATION = "calibration.json"
"""Beside the weights: a `kamera_jax.Calibration`."""


RETRIEVAL = "retrieval.json"
"""Beside the weights: `kamera_jax.RetrievalHeads`."""


def read_retrieval(folder: Path, fingerprint: str) -> RetrievalHeads | None:
    """The heads in a model's folder, if they were measured with this model; else None.

    Raises:
        ConfigError: the file holds none.
    """
    if not (folder / RETRIEVAL).exists():
        return None
    text = read_text(folder / RETRIEVAL)
    parsed(text, folder / RETRIEVAL)
    try:
        heads = RetrievalHeads.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / RETRIEVAL} holds no heads ({error!r:.200}); leave it out") from error
    return heads if heads.model == fingerprint else None


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
