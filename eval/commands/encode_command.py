"""The arguments of `kamera encode`; what it does is in `eval.commands.encode`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import add_dtype, add_json, add_model, add_pages, share, up_to, up_to_one, written_to

MOST_WORKERS = 256
"""Processes of one command: more than machines have cores for."""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "encode",
        help="encode files into a chunk library",
        description="Encode each image, text and page once, alone, and store it under a key made of its content and "
        "the model. What the library has already is not encoded again, so a run that was stopped goes on where it was.",
        epilog="examples: kamera encode report.pdf screenshots/ --library library/; "
        "kamera encode clip.mp4 --segment 4s --library library/",
    )
    command.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="an image, .txt, .md, .pdf, video or sound file, pages of one as report.pdf:3 or report.pdf:3-5, or a "
        "folder of them",
    )
    add_pages(command)
    command.add_argument(
        "--library",
        type=written_to,
        required=True,
        metavar="DIR",
        help="the library's folder; it is made if it is missing",
    )
    add_model(command)
    add_dtype(command)
    command.add_argument(
        "--storage",
        default="exact",
        metavar="CODEC",
        help="exact: bit for bit (the default); int8: in half the bytes of bf16; kivi:4, kivi:2, saw:4, turbo:4: in so "
        "many bits; kvzip:0.5+kivi:4: half the rows first",
    )
    command.add_argument(
        "--share-frames",
        type=up_to_one("a cosine"),
        metavar="COSINE",
        help="of a video keep one row of KV for tokens at the same place of its frames whose embeddings have at least "
        "this cosine, such as 0.95 (default: a row for each token)",
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="time on this machine what a patch costs and saves, which is else computed; takes longer than encoding",
    )
    command.add_argument(
        "--workers",
        type=up_to(MOST_WORKERS),
        default=1,
        metavar="N",
        help="encode in N processes on this machine, which share its CPU cores and each hold the model (default: 1, "
        "which is for a GPU or TPU)",
    )
    command.add_argument(
        "--share",
        type=share,
        metavar="K/N",
        help="encode the K-th of N shares of the items alone, as 2/4: on each of several hosts another one (default: "
        "all; in a job of jax.distributed the share of this process)",
    )
    command.add_argument(
        "--lock",
        choices=("file", "lease"),
        help="by what those who write to the library take turns, if it is made now: file, a lock of this system's (the "
        "default), or lease, where several hosts write to one folder of a network",
    )
    add_json(command)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import encode

    return encode.run(options)
