"""`kamera eval claims`: what the paper claims, measured on a model, and the page of several models."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.commands import outputs

METHODS = (
    *("full", "blind", "patch:1%", "patch:5%", "patch:10%", "patch:25%", "patch:deep", "patch:shallow"),
    *("oracle-tokens:0.15", "oracle-tokens:0.45", "oracle-tokens:0.5"),
    *("cacheblend:0.15", "epic:16", "mpic:16", "vlcache:0.15"),
)
"""What natural text is continued with: methods that recompute tokens beside patches and bounds."""

FEW = ("full", "blind", "patch:10%")
"""What everything else is measured with."""

TEXT_RUNS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("continuation:tokens=128", METHODS, 1),
    ("orders:tokens=64", FEW, 2),
    ("recall:tokens=64", FEW, 1),
    ("slide:tokens=64,passages=8", FEW, 1),
    ("needs-context:tokens=64,ahead=32", FEW, 1),
)
"""On a language model: tasks, methods, and how many contexts for each that is asked for."""


def run(options: argparse.Namespace) -> Any:
    """Run the command; returns what ``--json`` writes: for each model its claims.

    Raises:
        ValueError: neither measurements nor a folder for new ones were given, or both.
    """
    from eval.report import claims_page

    if bool(options.runs) == (options.output is not None):
        raise ValueError(
            "give the folder that the claims are measured into (kamera eval claims --model M --output DIR), or files "
            "and folders that were measured before (kamera eval claims FILE… --page FILE.md), not both"
        )
    paths = list(options.runs)
    if options.output is not None:
        paths = [measure(options.model, options.output, limit=options.limit, batch=options.batch)]
    records = claims_page.load(paths)
    claims_page.print_claims(records)
    if options.page:
        outputs.write(options.page, claims_page.page(records))
    return records


def measure(
    name: str,
    output: Path,
    *,
    limit: int | None = None,
    batch: int = 10,
    load: Callable[[str], Any] | None = None,
) -> Path:
    """Measure a model into a folder: runs of `kamera eval`, and `kamera demo` beside them. What is there is kept.

    Args:
        name: the model's.
        output: the folder.
        limit: contexts of natural text, or of pages for each seed; other tasks take as many or twice that.
        batch: contexts run together.
        load: loads the model; `models.load` by default.

    Returns:
        The folder.
    """
    from rich.progress import Progress

    import models
    from eval.run import runner

    vlm = (load or models.load)(name)
    output.mkdir(parents=True, exist_ok=True)
    text_only = not vlm.architecture.media
    runs: Sequence[tuple[str, tuple[str, ...], int]] = TEXT_RUNS
    if not text_only:
        from eval.commands.eval_command import DEFAULT_METHODS

        runs = [("binding", tuple(DEFAULT_METHODS.split(",")), 1)]
    with Progress(transient=True) as bar:
        for task, methods, times in runs:
            shown = bar.add_task(f"{task}, {name}", total=None)
            arguments = runner.Run(
                task=task,
                model=name,
                methods=methods,
                seeds=(0,),
                limit=(limit or 4) * times,
                batch=min(batch, (limit or 4) * times),
                devices=1,
                repeats=0,
            )
            folder = output / task.partition(":")[0]
            runner.evaluate(
                vlm,
                arguments,
                folder,
                lambda done, total, shown=shown: bar.update(shown, completed=done, total=total),
            )
        _demo(vlm, name, output / "demo.json", limit, text_only, bar)
    return output


def _demo(vlm: Any, name: str, path: Path, limit: int | None, text_only: bool, bar: Any) -> None:
    """The result of the demo for this kind of model, unless it is there."""
    import json

    from eval.commands import demo, demo_text

    if path.is_file():
        return
    shown = bar.add_task(f"kamera demo, {name}", total=None)

    def progress(step: str, done: int, total: int) -> None:
        bar.update(shown, completed=done, total=total, description=step)

    if text_only:
        result = demo_text.run(vlm, cases=(limit or 4) * 3, progress=progress)
    else:
        result = demo.run(vlm, episodes=(limit or 4) * 12, progress=progress)
    result["model"] = {"name": name, "architecture": vlm.architecture.name, "fingerprint": vlm.fingerprint}
    outputs.write(path, json.dumps(result) + "\n")
