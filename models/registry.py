"""Loading a model by name: an embedded one, a local folder, or a hub id."""

from pathlib import Path
from typing import Any

import jax

from models.fields import read_json
from models.qwen2_5_vl.model import Qwen25VL

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EMBEDDED = ("kamera-tiny-gqa",)
ARCHITECTURES = {"qwen2_5_vl": Qwen25VL}


class UnknownModelError(ValueError):
    """Neither an embedded model, a folder, nor something the hub has."""


def load(
    name: str | Path, *, dtype: Any = None, mesh: jax.sharding.Mesh | None = None, system: str | None = None
) -> Qwen25VL:
    """A model, ready to encode, prefill and answer.

    Args:
        name: ``"kamera-tiny-gqa"`` (embedded), a local folder in hub format, or a hub id.
        dtype: of parameters and KV; the checkpoint's by default.
        mesh: devices to replicate the parameters over.
        system: system text of the preamble; the chat template's own by default.

    Raises:
        UnknownModelError: there is no such model.
        ValueError: a subclass named for what is missing, truncated, unknown or unsupported in it.
    """
    folder = _folder(name)
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ARCHITECTURES:
        raise UnknownModelError(f"{name} is a {kind!r} model; this version serves {', '.join(sorted(ARCHITECTURES))}")
    model = ARCHITECTURES[kind].load(folder, dtype=dtype, system=system)
    if mesh is not None:
        model.params = jax.device_put(model.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return model


def _folder(name: str | Path) -> Path:
    if str(name) in EMBEDDED:
        return CHECKPOINTS / str(name)
    if str(name) and Path(name).is_dir():
        return Path(name)
    if str(name).count("/") != 1 or Path(name).exists():
        raise UnknownModelError(
            f"no model {str(name)!r}: expected one of {', '.join(EMBEDDED)}, a folder in hub format, or a hub id "
            "owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnknownModelError(
            f"the hub gave no model {str(name)!r} ({type(error).__name__}): check the id and the network"
        ) from error
