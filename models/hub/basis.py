"""What was measured of a model for codecs: beside its weights, or in the user's cache folder."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from kamera_jax.backbone import Backbone
from kamera_jax.compress.asking import QueryStatistics
from kamera_jax.compress.basis import CodecBasis, hold, offer, subject
from kamera_jax.compress.capsule import ARRAYS, CapsuleBasis
from kamera_jax.errors import BasisError
from models.hub.cache import cache_folder
from models.hub.files import is_regular, read_bytes

BASIS = "codec-basis"
"""Beside the weights: a `kamera_jax.CodecBasis` in the format of safetensors, under a name that no weights have."""

MOST = 2**33
"""Bytes of the file, at most."""

_ARRAYS = tuple(each.name for each in fields(CodecBasis) if each.name not in ("model", "capsule", "queries"))

_CAPSULE = "capsule."
"""Before the names of what was trained for the codec of that name."""

_QUERIES = "queries."
"""Before those of what is known of questions."""


def written(basis: CodecBasis) -> bytes:
    """A basis as bytes."""
    arrays: dict[str, np.ndarray] = {name: getattr(basis, name) for name in _ARRAYS}
    if basis.capsule is not None:
        arrays |= {_CAPSULE + name: array for name, array in basis.capsule.arrays.items()}
    if basis.queries is not None:
        arrays |= {_QUERIES + name: getattr(basis.queries, name) for name in ("mean", "root")}
    arrays["model"] = np.frombuffer(basis.model.encode(), np.uint8)
    return safetensors.numpy.save(arrays)


def read_basis(path: Path) -> CodecBasis:
    """What `written` gave.

    Raises:
        BasisError: the file is no basis. OSError: it cannot be read.
    """
    try:
        arrays: Any = safetensors.numpy.load(read_bytes(path, MOST))
        trained = {name: arrays.pop(_CAPSULE + name) for name in ARRAYS if _CAPSULE + name in arrays}
        asked = {name: arrays.pop(_QUERIES + name) for name in ("mean", "root") if _QUERIES + name in arrays}
        if set(arrays) != {*_ARRAYS, "model"} or len(trained) not in (0, len(ARRAYS)):
            raise BasisError(
                f"it has {', '.join(sorted(arrays))[:200]}, and of what was trained for capsule "
                f"{', '.join(sorted(trained)) or 'nothing'}; expected model, {', '.join(_ARRAYS)}, and of capsule "
                f"nothing or {', '.join(ARRAYS)}"
            )
        model = arrays.pop("model").tobytes().decode()
        capsule = CapsuleBasis(model, **trained) if trained else None
        return CodecBasis(model, **arrays, capsule=capsule, queries=QueryStatistics(model, **asked) if asked else None)
    except (SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BasisError(
            f"{path} is no basis of a codec ({error!r:.300}); leave it out, or measure one anew"
        ) from error


def save_basis(path: str | os.PathLike[str], basis: CodecBasis) -> None:
    """Write a basis as a file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        making.write_bytes(written(basis))
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)


def cached(model: str) -> Path | None:
    """Where the basis of a model lies in the user's cache folder; None where nothing is kept."""
    folder = cache_folder("codecs")
    return None if folder is None else folder / f"{model}.basis"


def keep(vlm: Backbone, basis: CodecBasis) -> Path:
    """Keep a basis in the user's cache folder, where it is found whenever its model is loaded; and use it from now on.

    Raises:
        BasisError: it is another model's, or there is no such folder (``KAMERA_CACHE=off``).
    """
    model = subject(vlm.spec, vlm.fingerprint)
    if basis.model != model:
        raise BasisError(f"{basis!r} is of another model than this one, {vlm.fingerprint[:12]}; measure its own")
    path = cached(model)
    if path is None:
        raise BasisError("nothing is kept in the user's cache folder; use models.hub.basis.save_basis(path, basis)")
    save_basis(path, basis)
    hold(basis)
    return path


def offer_basis(vlm: Backbone, folder: Path) -> None:
    """Let codecs find the basis of a model that is loaded: in the user's cache folder, else beside the weights.

    It is read when one is asked for; of a file of another model nothing is taken.
    """
    model = subject(vlm.spec, vlm.fingerprint)

    def read() -> CodecBasis | None:
        for path in (cached(model), folder / BASIS):
            if path is not None and is_regular(path):
                basis = read_basis(path)
                if basis.model == model:
                    return basis
        return None

    offer(model, read)
