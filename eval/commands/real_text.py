"""`python -m eval.commands.real_text`: measure a language model on real text, and write the page about it."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.commands import compile_cache, outputs
from eval.report import real_text
from eval.run import runner
from eval.run.folder import RESULTS, read_json

CORPORA = ("pydoc", "docstrings")
"""The corpora that come with Python and this project's requirements."""

BATCH = 6
"""Contexts run together: few, for the memory of an everyday machine."""


@dataclass(frozen=True)
class Plan:
    """A task that is measured on corpora.

    Attributes:
        task: with its settings, but for the corpus.
        methods: names.
        limits: contexts of each seed, by corpus.
        seeds: data seeds.
    """

    task: str
    methods: tuple[str, ...]
    limits: Mapping[str, int]
    seeds: tuple[int, ...] = (0, 1, 2)

    def named(self, corpus: str) -> str:
        """The task with its corpus, as `kamera eval` takes it."""
        return f"{self.task}{',' if ':' in self.task else ':'}corpus={corpus}"

    def folder(self, corpus: str) -> str:
        """The name of the run's folder."""
        name = self.task
        for mark in ":=,":
            name = name.replace(mark, "-")
        return f"{name}-{corpus}"


MOVED = ("full", "blind", "patch:10%", "patch:25%")
"""What is compared where patches are used in other windows than those they were formed in."""

PLANS = (
    Plan(
        "quotation",
        ("full", "blind", "patch:1", "patch:2%", "cacheblend:0.15", "epic:8", "oracle-tokens:0.5"),
        {"pydoc": 34, "docstrings": 34},
    ),
    Plan(
        "page-break",
        ("full", "blind", "patch:1", "patch:4", "patch:8", "epic:1"),
        {"pydoc": 12, "docstrings": 12},
    ),
    Plan(
        "continuation:tokens=256",
        ("full", "blind", "patch:5%", "patch:10%", "patch:25%", "cacheblend:0.15", "epic:16"),
        {"pydoc": 34, "docstrings": 34},
    ),
    Plan("orders:tokens=64", MOVED, {"pydoc": 24, "docstrings": 24}, seeds=(0, 1)),
    Plan("slide:tokens=64,passages=13,reference=history", MOVED, {"pydoc": 10, "docstrings": 10}),
    Plan("recall:tokens=64", MOVED, {"pydoc": 8, "docstrings": 8}),
    Plan("needs-context", ("full", "blind", "patch:2%", "patch:5%", "patch:10%"), {"pydoc": 12, "docstrings": 12}),
    Plan("induction", ("full", "blind", "patch:1", "patch:2", "patch:4"), {"pydoc": 12, "docstrings": 12}),
)
"""What is measured, in this order, the most telling first. A case takes some seconds of two cores."""


def measure(model: str, output: Path, corpora: Sequence[str] = CORPORA) -> None:
    """Run what is not there yet, run by run and group by group.

    Args:
        model: name of a language model; see `models.load`.
        output: the folder of the runs' folders.
        corpora: on which the tasks are run.
    """
    from models import load

    vlm: Any = None
    for corpus in corpora:
        for plan, where, folder, done in planned(output):
            if done or where != corpus:
                continue
            vlm = load(model) if vlm is None else vlm
            arguments = runner.Run(
                task=plan.named(corpus),
                model=model,
                methods=plan.methods,
                seeds=plan.seeds,
                limit=plan.limits[corpus],
                batch=BATCH,
                devices=1,
                repeats=0,
            )

            def progress(done: int, total: int, name: str = folder.name) -> None:
                print(f"{name}: {done} of {total} contexts", file=sys.stderr, flush=True)

            runner.evaluate(vlm, arguments, folder, progress)


def planned(output: Path) -> Iterator[tuple[Plan, str, Path, bool]]:
    """Every task on every corpus, with its folder and whether its run is finished, in the order of `PLANS`."""
    for plan in PLANS:
        for corpus in CORPORA:
            folder = output / plan.folder(corpus)
            done = (folder / RESULTS).is_file() and bool(read_json(folder / RESULTS).get("complete"))
            yield plan, corpus, folder, done


def collected(output: Path) -> dict[str, Any]:
    """What the page is made from: summaries of the runs that are finished, and the names of those that are not."""
    runs = list(planned(output))
    return {
        "runs": [real_text.summary(folder) for _, _, folder, done in runs if done],
        "missing": [plan.named(corpus) for plan, corpus, _, done in runs if not done],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what was measured as JSON and as a page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a language model (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the runs; what is there is kept")
    parser.add_argument("--corpora", nargs="*", default=CORPORA, choices=CORPORA, help="none: nothing is run")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--page", type=Path, help="write the page to this file; it is made from --json")
    options = parser.parse_args(arguments)
    files = [(option, path) for option, path in (("--json", options.json), ("--page", options.page)) if path]
    outputs.check(files, [("--output", options.output)])
    compile_cache.enable()
    measure(options.model, options.output, options.corpora)
    if options.json:
        measured = collected(options.output)
        outputs.write(options.json, json.dumps(measured) + "\n")
        if options.page:
            outputs.write(options.page, real_text.page(measured))


if __name__ == "__main__":
    main()
