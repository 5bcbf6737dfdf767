"""Every class of faults, counted: `python -m tests.hardening.measure docs/results/reliability.json`."""

import argparse
import importlib
import json
from importlib.metadata import version
from pathlib import Path

from benchmarks.reliability_page import page
from tests.hardening import faults

CLASSES = {
    "hostile_libraries": 150,
    "odd_items": 250,
    "disk_errors": 220,
    "crash_points": 400,
    "damaged_files": 560,
    "kills": 160,
    "interrupts": 1000,
    "hostile_sessions": 120,
    "hostile_models": 190,
    "configs": 200,
    "media": 4000,
    "eval_folders": 150,
}
"""The module of each class of faults in this folder, and how many of them are tried."""


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
        module = f"tests.hardening.{name}"
        count = max(1, round(CLASSES[name] * arguments.share))
        classes[name] = {"what": importlib.import_module(module).WHAT, **faults.run(module, count).record()}
        print(name, classes[name], flush=True)
        result["versions"] = {each: version(each) for each in ("jax", "orbax-checkpoint", "numpy")}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.page:
        arguments.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
