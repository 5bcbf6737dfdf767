"""The evaluation: tasks, methods, metrics, reports, the `kamera` command and the trainer of the embedded models.

``from eval import evaluate`` is `kamera eval` in Python; see `eval.commands.evaluate.evaluate`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.commands.evaluate import evaluate
    from eval.report.result import Result

__all__ = ["Result", "evaluate"]


def __getattr__(name: str) -> Any:
    """`evaluate` and `Result`, imported where they are asked for: importing JAX takes seconds."""
    if name == "evaluate":
        from eval.commands.evaluate import evaluate

        return evaluate
    if name == "Result":
        from eval.report.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
