"""The arguments of `kamera ask`; what it does is in `eval.commands.ask`. Nothing here imports JAX."""

import argparse
from typing import Any

from eval.commands.arguments import add_dtype, add_json, add_model, add_pages, positive, read_from
from eval.methods.sizes import FORMS, PatchSizeError, patch_size


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "ask",
        help="ask a question about images and text files",
        description="Answer a question about the items, put into the window in this order by the chosen method.",
        epilog="examples:\n  kamera ask 'what colour is the star?' --item examples/pages/first.png\n"
        "  kamera ask 'what is the total?' --item report.pdf --model FOLDER\n"
        "  kamera ask 'what is it about?' --item a.md --model smollm2 --method full\n"
        "  kamera ask 'what colour is the star?' --library library/ --top 4",
    )
    command.add_argument("question", type=_question, help="what is asked about all items together")
    command.add_argument(
        "--item",
        dest="items",
        action="append",
        default=[],
        metavar="PATH|KEY",
        help="an image, .txt, .md, .pdf, video or sound file, a folder of them, or the key of a chunk in the library; "
        "repeat it",
    )
    add_pages(command)
    command.add_argument(
        "--library",
        type=read_from,
        metavar="DIR|URL",
        help="the library whose chunks are named by their keys; or that is searched, where there is no --item",
    )
    command.add_argument(
        "--top", type=positive, default=4, metavar="N", help="chunks that are found in the library (default: 4)"
    )
    command.add_argument(
        "--linked", action="store_true", help="what the patches of those were formed behind comes into the window too"
    )
    add_model(command)
    add_dtype(command)
    command.add_argument(
        "--weights",
        choices=("int8",),
        help="store the language model's matrices as int8, in half the memory of bf16 (default: in the model's dtype)",
    )
    command.add_argument(
        "--method",
        type=_method,
        default="patch",
        help="full: the model runs over all items together, each time; blind: items as they were encoded, each alone, "
        "which runs nothing more and is the cheapest; patch: as blind, with a small patch for what each item would "
        "have read in those before it, formed by one forward, once. Its size: patch:10%% (of the item's bytes), "
        "patch:64KiB, patch:energy=0.9 (share of the change), patch:bytes=0.25 (share of the bytes, alike in all "
        "layers) or patch:12, a rank (default: patch)",
    )
    command.add_argument(
        "--max-new-tokens", type=positive, default=16, metavar="N", help="longest answer (default: 16)"
    )
    command.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="draw tokens; 0 is the likeliest (default: 0)"
    )
    command.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    command.add_argument("--top-p", type=float, metavar="P", help="draw from those whose probabilities add up to P")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    command.add_argument(
        "--capacity", type=positive, metavar="N", help="slots of the window (default: what items and answer take)"
    )
    add_json(command)
    return command


def _question(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the question is empty")
    return text


def _method(text: str) -> str:
    if text in ("full", "blind", "patch"):
        return text
    name, _, size = text.partition(":")
    try:
        if name != "patch" or not size:
            raise PatchSizeError(f"got {text}")
        patch_size(size)
    except PatchSizeError as error:
        raise argparse.ArgumentTypeError(f"{error}; expected full, blind, patch, {FORMS}") from None
    return text


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import ask

    return ask.run(options)
