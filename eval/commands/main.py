"""The `kamera` command."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shtab

from eval.commands import compile_cache, evaluate

EMBEDDED = "kamera-tiny-"
ATTENTIONS = ("gqa", "mla", "mha")
DEFAULT = EMBEDDED + ATTENTIONS[0]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="kamera",
        description="Encode a page, frame or passage once; reuse its KV anywhere in a window, with a low-rank patch "
        "for what it would have absorbed from its neighbours.",
        epilog="Compiled programs are kept in the user's cache folder; KAMERA_CACHE=off in the environment turns that "
        "off, and JAX_COMPILATION_CACHE_DIR names another folder.",
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    shtab.add_argument_to(top, help="print a completion script: kamera --print-completion bash > FILE; source FILE")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="the whole story on an embedded model: a minute on gqa, two or three on mla and mha",
        description="Held-out episodes on an embedded model: full prefill, blind reuse and patches side by side, "
        "then reorder, slide and recall.",
    )
    which = demo.add_mutually_exclusive_group()
    which.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=ATTENTIONS[0],
        help="grouped-query (Qwen2.5-VL), multi-head latent (Kimi-VL) or multi-head attention (DeepSeek-VL) "
        f"(default: {ATTENTIONS[0]})",
    )
    demo.add_argument("--episodes", type=_positive, default=200, help="held-out episodes (default: 200)")
    demo.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy against patch bytes")
    demo.add_argument(
        "--pages", type=Path, metavar="DIR", help="also write the first episode's pages and questions there"
    )
    which.add_argument("--model", help="another model that reads the tiny pages")
    _add_json(demo)

    ask = commands.add_parser(
        "ask",
        help="ask a question about images and text files",
        description="Answer a question about the items, put into the window in this order by the chosen method.",
        epilog="example: kamera ask 'what colour is the star?' --item examples/pages/first.png "
        "--item examples/pages/third.png",
    )
    ask.add_argument("question")
    ask.add_argument(
        "--item",
        dest="items",
        action="append",
        required=True,
        metavar="PATH|KEY",
        help="an image, .txt, .md or .pdf file, a folder of them, or the key of a chunk in the library; repeat it",
    )
    ask.add_argument(
        "--dpi", type=_positive, default=144, help="at which pages of PDF files are rendered (default: 144)"
    )
    _add_frames(ask)
    ask.add_argument("--library", type=Path, metavar="DIR", help="where chunks are found by key")
    ask.add_argument(
        "--model", default=DEFAULT, help=f"embedded name, folder in hub format, or hub id (default: {DEFAULT})"
    )
    ask.add_argument(
        "--method",
        type=_method,
        default="patch:12",
        help="full: prefill all together; blind: reuse as encoded alone; patch:M: reuse with rank-M patches "
        "(default: patch:12)",
    )
    ask.add_argument("--max-new-tokens", type=_positive, default=16, metavar="N", help="longest answer (default: 16)")
    _add_json(ask)

    doctor = commands.add_parser(
        "doctor",
        help="what is installed, what it runs on, and which kernels will run",
        description="Versions, devices, a check of the operator against float64, and for every operation which kernel "
        "serves it here, on a TPU and on a Hopper GPU, and why not a faster one.",
    )
    doctor.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        help="look at this model's calls; repeat it (default: well-known backbones, in bf16)",
    )
    doctor.add_argument("--slots", type=_positive, default=4096, help="of the window (default: 4096)")
    _add_json(doctor)

    encode = commands.add_parser(
        "encode",
        help="encode files into a chunk library",
        description="Encode each image, text and page once, alone, and keep it under a key that its content and the "
        "model give it. What the library has is not encoded again, so a run that was stopped goes on where it was.",
        epilog="example: kamera encode report.pdf screenshots/ --library library/",
    )
    encode.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="an image, .txt, .md or .pdf file, or a folder of them"
    )
    encode.add_argument("--dpi", type=_positive, default=144, help="as of ask (default: 144)")
    _add_frames(encode)
    encode.add_argument("--library", type=Path, required=True, metavar="DIR", help="is made if it is not there")
    encode.add_argument("--model", default=DEFAULT, help=f"as of ask (default: {DEFAULT})")
    encode.add_argument(
        "--storage",
        choices=("exact", "int8"),
        default="exact",
        help="bit for bit, or in half the bytes of bf16 (default: exact)",
    )
    _add_json(encode)

    library = commands.add_parser("library", help="list, show, verify or collect a chunk library")
    actions = library.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text in (
        ("ls", "every chunk and patch"),
        ("info", "one of them"),
        ("verify", "read everything and hold it against its digests"),
        ("gc", "free the room of what was deleted, and put small packs together"),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == "info":
            action.add_argument("key", metavar="KEY", help="of a chunk or a patch, or how it begins")
        action.add_argument("library", type=Path, metavar="DIR", help="the library's folder")
        _add_json(action)

    bench = commands.add_parser("bench", help="what an operation costs on this machine")
    what = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    form = what.add_parser(
        "form",
        help="forming a patch, and the reuses after which it has paid",
        description="Encode, form, apply and re-prefill, taken in turns, on a decoder of random weights: 8 layers of "
        "width 1024, f32. A patch has paid after form / (re-prefill - apply) reuses.",
    )
    form.add_argument(
        "--tokens",
        type=_positive,
        nargs="+",
        default=[256, 512, 1024],
        metavar="N",
        help="tokens of the chunks (default: 256 512 1024)",
    )
    form.add_argument("--rank", type=_positive, help="of the patch (default: 10 %% of the chunk's bytes)")
    form.add_argument("--runs", type=_positive, default=5, help="runs, of which the median counts (default: 5)")
    form.add_argument("--plot", type=Path, metavar="FILE.png", help="draw milliseconds against tokens")
    _add_json(form)

    _add_json(evaluate.add_parser(commands, DEFAULT))
    return top


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result there")


def _add_frames(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--frames",
        choices=("first", "all"),
        default="first",
        help="of an animated GIF, PNG or WebP and of a TIFF of several pages: the first, or all as pages "
        "(default: first)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text}")
    return value


def _method(text: str) -> str:
    name, _, rank = text.partition(":")
    if text in ("full", "blind") or (name == "patch" and rank.isdigit() and int(rank) > 0):
        return text
    raise argparse.ArgumentTypeError(f"expected full, blind or patch:M with a rank M of at least 1; got {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error in what was given, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    commands = {
        "demo": _demo,
        "ask": _ask,
        "bench": _bench,
        "doctor": _doctor,
        "encode": _encode,
        "eval": evaluate.run,
        "library": _library,
    }
    compile_cache.enable()
    try:
        result = commands[options.command](options)
        if options.json:
            _write_json(options.json, result, indent=None if options.command == "eval" else 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"kamera: {error}", file=sys.stderr)
        return 1
    return 0


def _write_json(path: Path, result: Any, indent: int | None) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=indent) + "\n", encoding="utf-8")
    partial.replace(path)


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from rich.progress import Progress

    from eval.commands import demo
    from eval.report import console as report
    from models import load

    name = options.model or EMBEDDED + options.attention
    vlm = load(name)
    if options.pages:
        demo.write_pages(options.pages)
    with Progress(transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            kind = "encoding pages" if name == "encoding pages" else "windows"
            if kind not in tasks:
                tasks[kind] = bar.add_task(name, total=total)
            bar.update(tasks[kind], completed=done, description=name)

        result = demo.run(vlm, episodes=options.episodes, progress=progress)
    result["model"] = {"name": name, "architecture": vlm.architecture.name, "fingerprint": vlm.fingerprint}
    report.print_demo(result)
    if options.plot:
        report.plot_demo([result], options.plot)
    return result


def _bench(options: argparse.Namespace) -> dict[str, Any]:
    from rich.progress import Progress

    from eval.commands import bench as forming
    from eval.report import console as report

    with Progress(transient=True) as bar:
        task = bar.add_task("chunks", total=len(options.tokens))

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=name)

        result = forming.measure(
            forming.RandomDecoder(), lengths=options.tokens, rank=options.rank, runs=options.runs, progress=progress
        )
    report.print_form(result)
    if options.plot:
        report.plot_form(result, options.plot)
    return result


def _ask(options: argparse.Namespace) -> dict[str, Any]:
    import kamera_jax as kj
    from eval.commands.library import named
    from models import load

    lib = None if options.library is None else kj.ChunkLibrary.open(options.library)
    items = [item for text in options.items for item in named(text, lib, dpi=options.dpi, frames=options.frames)]
    vlm = load(options.model)
    if options.model.startswith(EMBEDDED):
        print(
            "The embedded model knows only its own pages of coloured glyphs: it was trained on nothing else.",
            file=sys.stderr,
        )
    if options.method == "full":
        window = kj.prefill(vlm, items)
    else:
        chunks = [item if isinstance(item, kj.Chunk) else kj.encode(vlm, item) for item in items]
        slots = 16 * len(chunks) + sum(chunk.length for chunk in chunks) + vlm.preamble.positions.shape[-1]
        window = kj.Window.empty(vlm, capacity=slots + 256 + options.max_new_tokens)
        rank = int(options.method.partition(":")[2] or 0)
        for i, chunk in enumerate(chunks):
            patch = kj.form_patch(vlm, chunk, antecedents=chunks[:i], rank=rank) if rank and i else None
            window = kj.append(window, chunk, patch)
    answer = kj.generate(vlm, window, options.question, max_new_tokens=options.max_new_tokens)
    print(answer.text)
    return {
        "question": options.question,
        "answer": answer.text,
        "method": options.method,
        "items": options.items,
        "ttft_s": answer.ttft_s,
        "kv_bytes": sum(entry.chunk.nbytes for entry in window.entries),
        "patch_bytes": sum(entry.patch.nbytes for entry in window.entries if entry.patch is not None),
    }


def _doctor(options: argparse.Namespace) -> dict[str, Any]:
    from eval.commands import doctor

    result = doctor.examine(options.models, options.slots)
    doctor.show(result)
    return result


def _encode(options: argparse.Namespace) -> dict[str, Any]:
    from eval.commands import encode

    return encode.run(options)


def _library(options: argparse.Namespace) -> dict[str, Any]:
    from eval.commands import library

    return library.run(options)


if __name__ == "__main__":
    sys.exit(main())
