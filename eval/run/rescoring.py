"""The scores of a run from its lines alone."""

from pathlib import Path

from eval.run import scores
from eval.run.folder import (
    CONTEXTS,
    RESULTS,
    SAMPLES,
    Record,
    RunFolder,
    alone,
    expected,
    failures,
    read_json,
    read_lines,
)
from eval.tasks import Task, get


def rescore(output: Path, name: str | None = None) -> Record:
    """The scores of a run from its lines: no model is run.

    Args:
        output: the run's folder.
        name: the run's task, if the caller names one.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: the folder has no run, one of another task or of another version of it, one that was stopped, that
            is damaged, or that another process runs now; or the task cannot be found.
    """
    read_json(output / RESULTS)  # a folder that has no run is not locked
    with alone(output):
        return rescored(output, name)


def rescored(output: Path, name: str | None = None, task: Task | None = None) -> Record:
    """As `rescore`, where the caller has the folder's lock already, or the task that cannot be found by its name."""
    results = read_json(output / RESULTS)
    with expected(output / RESULTS):
        identity = {name: value for name, value in results.items() if name not in ("complete", "scores")}
        config = results["config"]
        if name is not None and name != config["task"]:
            raise ValueError(f"{output} has a run of {config['task']}, not of {name}; name the task that was run")
        task = get(config["task"]) if task is None else task
        if task.version != config["task_version"]:
            raise ValueError(
                f"{output} has a run of version {config['task_version']} of {config['task']}, which is now version "
                f"{task.version}: its questions have changed; run kamera eval again into an empty folder"
            )
        total = config.get("contexts") or len(task.outline(config["seeds"], config["limit"]))
    contexts = read_lines(output / CONTEXTS)
    samples = read_lines(output / SAMPLES)
    with expected(output / SAMPLES):
        if len(contexts) != total or sum(len(record["samples"]) for record in contexts) != len(samples):
            raise ValueError(
                f"{output} has a run that was stopped, with {len(contexts)} of {total} contexts and {len(samples)} "
                "samples; run kamera eval with the same arguments to finish it"
            )
        failed = failures(contexts)
        made = scores.score(task, [each for each in config["methods"] if each not in failed], contexts, samples)
        made |= {"failed": failed} if failed else {}
    RunFolder(output, identity).finish(made)
    return read_json(output / RESULTS)
