"""Models of the Hugging Face hub, and names that are neither such a model nor a folder here."""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from kamera_jax.arguments import short
from models.hub.refusals import UnknownModelError

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is fetched of a model."""

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]*\w", re.ASCII)
"""What can be a hub id; whatever else has a slash is a path."""


def downloaded(name: str, known: Sequence[str]) -> Path:
    """The folder of a model of the hub, fetched if it is not in the hub's cache.

    Args:
        name: an id, ``owner/name``; nothing of that name is here.
        known: names of models that need no hub, for messages.

    Raises:
        UnknownModelError: the name is a path that leads nowhere, or one that no model has; or the hub does not have the
            model, does not give it, or cannot be reached.
    """
    if not _ID.fullmatch(name):
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        # Letters and nothing of a path: the name of a model rather than of a folder.
        nothing = _nothing_here(name) if re.search(r"[/\\~]", name) else f"no model {short(name)}{hint}"
        raise UnknownModelError(
            f"{nothing}: expected one of {', '.join(known)}, a folder in hub format, a GGUF file, or a hub id "
            "owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # one of the hub's own kinds, of its HTTP library's, or of the file system
        raise UnknownModelError(f"{_nothing_here(name)}, and as a hub id it fails: {_refusal(name, error)}") from error


def _nothing_here(name: str) -> str:
    """A message that a path leads nowhere, and where a relative one was looked for."""
    if name.startswith("~"):
        return f"there is no folder or file {short(name)} (a shell alone replaces ~, and not within quotes)"
    return f"there is no folder or file {short(name)}" + ("" if os.path.isabs(name) else f" in {Path.cwd()}")


def _refusal(name: str, error: Exception) -> str:
    """Why the hub gave no model, and what to do."""
    from huggingface_hub import constants, errors

    elsewhere = f"or fetch it where there is a network, hf download {name} --local-dir DIR, and give that folder"
    if isinstance(error, errors.GatedRepoError):
        return f"the hub gives {name} only to those who accepted its terms; do so on its page there, then hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {name}, or it is private; check the id, or log in with hf auth login"
    if isinstance(error, errors.HfHubHTTPError):
        reason = str(error).partition("\n")[0][:200]
        return f"the hub refused it ({reason}); try again later, {elsewhere}"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and the hub's cache does not have {name}; unset it, {elsewhere}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"what the hub gave cannot be stored ({error.strerror}); see to the hub's cache folder, HF_HOME"
    if isinstance(error, errors.HFValidationError):
        return f"{name} is no hub id; expected owner/name"
    reason = f"{type(_cause(error)).__name__}: {str(_cause(error)).partition(chr(10))[0][:200]}"
    return f"the hub cannot be reached ({reason}), and its cache does not have {name}; check the network, {elsewhere}"


def _cause(error: BaseException) -> BaseException:
    """What an error of the hub's cache comes from: that of the network, where there is one."""
    return error.__cause__ or error
