"""`kamera doctor --compile`: a model's programs compiled for chips that are not here, as a table for people."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from eval.ahead.examine import examine


def compile_model(model: str, mesh: str, **sizes: Any) -> dict[str, Any]:
    """Compile a model's programs, and show how far that is; see `eval.ahead.examine.examine`.

    Raises:
        ValueError: a subclass named for what is not known or not installed.
    """
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"compiling {model} for {mesh}", total=None)

        def progress(done: int, steps: int, what: str) -> None:
            bar.update(task, completed=done, total=steps, description=f"compiling {what} of {model} for {mesh}")

        return examine(model, mesh, progress=progress, **sizes)


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the result, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    console.print(f"{result['model']} on {result['mesh']}, {result['dtype']}", style="bold")
    _item(
        console,
        f"on each device, of {result['device_memory'] / 1e9:.0f} GB: weights with towers "
        f"{result['weights'] / 1e9:.2f} GB, KV of {result['window']} slots {result['kv'] / 1e9:.2f} GB; "
        f"{result['layout']}",
    )
    console.print(
        f"\nPrograms, of a chunk of {result['chunk']} tokens and a patch of rank {result['rank']}", style="bold"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("  program", "GFLOPs", "HBM MB", "ideal MB", "temp. MB", "in all GB", "fits", "roofline ms"):
        table.add_column(column, no_wrap=True, justify="left" if "program" in column else "right")
    for row in result["programs"]:
        table.add_row(*_cells(row))
    console.print(table)
    for row in result["programs"]:
        if "error" in row:
            _item(console, f"{row['program']}: {row['error']}")
        if "uncounted" in row:
            _item(console, f"{row['program']}: bytes are the ideal, not counted: {row['uncounted']}")
    if result["reprefill_over_reuse"]:
        _item(
            console,
            f"running the chunk again takes {result['reprefill_over_reuse']:.0f} times as long as reuse, and "
            f"{result['ideal_reprefill_over_reuse']:.0f} times if it moved its ideal bytes",
        )
    _item(console, f"Times: {result['roofline']}. FLOPs are counted from shapes.")
    if result["max_positions"] is not None and result["max_positions"] < result["window"]:
        _item(console, f"The model itself ends at {result['max_positions']} positions.")


def _cells(row: dict[str, Any]) -> list[str]:
    flops = f"{row['flops'] / 1e9:.1f}"
    ideal = f"{row['ideal_bytes'] / 1e6:.1f}"
    fits = {True: "yes", False: "no", None: "-"}[row["fits"]]
    if "error" in row:
        return [f"  {row['program']}", flops, "-", ideal, "-", "-", fits, "-"]
    moved = "-" if row["hbm_bytes"] is None else f"{row['hbm_bytes'] / 1e6:.1f}"
    kept = [f"{row['temporaries'] / 1e6:.1f}", f"{row['in_all'] / 1e9:.2f}"]
    return [f"  {row['program']}", flops, moved, ideal, *kept, fits, f"{1e3 * row['roofline_seconds']:.4g}"]


def _item(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2)))
