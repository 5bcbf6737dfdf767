"""The arguments of `kamera demo`, and running it; what it measures is in `eval.commands.demo`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import ATTENTIONS, EMBEDDED, add_json, positive


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "demo",
        help="full prefill, blind reuse and patches on an embedded model: a minute on gqa, two or three on mla and mha",
        description="Held-out episodes on an embedded model: full prefill, blind reuse and patches side by side, "
        "then reorder, slide and recall.",
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=ATTENTIONS[0],
        help="grouped-query (Qwen2.5-VL), multi-head latent (Kimi-VL) or multi-head attention (DeepSeek-VL) "
        f"(default: {ATTENTIONS[0]})",
    )
    command.add_argument("--episodes", type=positive, default=200, help="held-out episodes (default: 200)")
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy against patch bytes")
    command.add_argument(
        "--pages", type=Path, metavar="DIR", help="also write the first episode's pages and questions to this folder"
    )
    which.add_argument("--model", help="another model that reads the tiny pages")
    add_json(command)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
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
