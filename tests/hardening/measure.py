"""Every class of faults, counted: `python -m tests.hardening.measure docs/results/reliability.json`."""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

from benchmarks.reliability_page import page
from tests.hardening import faults

CLASSES = {
    "crash_points": (400, "a process that dies at a call to the system, while it puts, deletes or collects"),
    "kills": (160, "a writer killed at a random moment"),
    "disk_errors": (220, "a call to the system that fails: EIO, ENOSPC, EDQUOT, EROFS, EACCES"),
    "damaged_files": (560, "a library's file: flipped, cut, emptied, replaced, swapped, removed"),
    "hostile_libraries": (150, "a library made to mislead: links, pipes, sizes, versions, indexes"),
    "odd_items": (250, "a chunk or patch with fields that no encoder gives, put among others"),
    "interrupts": (1000, "Ctrl-C in a session's operations, at any bytecode and at any time"),
    "hostile_sessions": (120, "a saved session that somebody else wrote"),
    "hostile_models": (190, "a model folder or GGUF file made to mislead"),
    "configs": (200, "a model's configuration with one or two odd values"),
    "media": (4000, "an image, PDF or text file: mutated, bombs, pipes, links"),
    "eval_folders": (150, "a folder of `kamera eval`, damaged or shared"),
}
"""The module of each class of faults in this folder, how many of them are tried, and what they are."""


def main():
    """Try classes of faults, and put what was found in place of what the file says of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--classes", nargs="*", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--page", type=Path, help="write the page about it to this file")
    parser.add_argument("--share", type=float, default=1.0, help="of the faults of each class (default: %(default)s)")
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    classes = result.setdefault("classes", {})
    for name in arguments.classes:
        count, what = CLASSES[name]
        found = faults.run(f"tests.hardening.{name}", max(1, round(count * arguments.share)))
        classes[name] = {"what": what, **found.record()}
        print(name, classes[name], flush=True)
        result["versions"] = {each: version(each) for each in ("jax", "orbax-checkpoint", "numpy")}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.page:
        arguments.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
