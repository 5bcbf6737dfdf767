"""What users hand in where something else was meant: a file's name for the file, or no item at all."""

import os
from pathlib import PurePath
from typing import Any

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.window.window import Window
from models.hub.borders import warn_caller
from models.media.pictures import VIDEOS
from models.media.recordings import SUFFIXES as SOUNDS

IMAGES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".psd", ".tif", ".tiff", ".webp")
"""Endings of image files, as users name them."""

_ENDINGS = (*IMAGES, *VIDEOS, *SOUNDS, ".pdf", ".txt", ".md")

_LONGEST = 1024
"""Letters of a path, at most; longer texts are texts."""


class PathAsTextWarning(UserWarning):
    """A text that is encoded as text names a file, or looks as if it did."""


def warn_of_path(text: str) -> None:
    """Warn of a text that is the name of a file there, looks like one of a file that is read, or is a URL of one.

    Such a text may be meant: it is encoded as it stands. Where it is not, nothing else would tell.
    """
    name = text.strip()
    if name[:11] == "data:image/":
        warn_caller(
            f"the text begins with {name[:22]!r}, and is encoded as text; for the image hand in "
            "PIL.Image.open(io.BytesIO(base64.b64decode(text.partition(',')[2])))",
            PathAsTextWarning,
        )
        return
    if not name or len(name) > _LONGEST or "\n" in name or "\0" in name:
        return
    there = os.path.isfile(name)
    words = len(name.split())
    if not there and (words > 1 or PurePath(name).suffix.lower() not in _ENDINGS):
        return
    what = "names a file" if there else "looks like the name of a file"
    remedy = "download it first, and hand in its Path" if "://" in name else f"hand in pathlib.Path({name!r})"
    warn_caller(
        f"the text {name[:60]!r} {what}, and is encoded as text, for a str is one; for the file's content {remedy}. "
        "If the text is meant: warnings.simplefilter('ignore', models.media.mistaken.PathAsTextWarning)",
        PathAsTextWarning,
    )


def instead_of(item: Any) -> str:
    """What to do with something that is no item, for the end of a message; empty where that is not known."""
    if isinstance(item, Chunk):
        return "; this one is encoded already: use the chunk where a chunk is taken, as in append(window, chunk)"
    if isinstance(item, Patch):
        return "; a patch goes with its chunk: append(window, chunk, patch)"
    if isinstance(item, Window):
        return "; a window holds what is encoded already: generate(vlm, window, question) asks it"
    if isinstance(item, bytes | bytearray | memoryview):
        return "; bytes of an image file are opened by PIL.Image.open(io.BytesIO(data)), those of a text by .decode()"
    if isinstance(item, os.PathLike):
        return "; give pathlib.Path(item)"
    if callable(getattr(item, "forward", None)):
        return "; the model stands first, as in encode(vlm, item)"
    return ""
