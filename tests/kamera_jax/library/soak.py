"""The library's soak tests as numbers: python -m tests.kamera_jax.library.soak docs/results/library-soak.json."""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.kamera_jax.library.crashes import kills
from tests.kamera_jax.library.crowd import crowd
from tests.kamera_jax.library.flips import flips

KILLS = 200
FLIPS = 1000
PROCESSES = 4
THREADS = 4
SECONDS = 60


def measure(folder, parts=("kills", "flips", "crowd")):
    """Every part in a library of its own."""
    work = {
        "kills": lambda: kills(folder / "kills", KILLS),
        "flips": lambda: flips(folder / "flips", FLIPS),
        "crowd": lambda: crowd(folder / "crowd", PROCESSES, THREADS, SECONDS),
    }
    result = {}
    for part in parts:
        result[part] = work[part]()
        print(part, result[part], flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--part", choices=("kills", "flips", "crowd"), nargs="+", default=["kills", "flips", "crowd"])
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        result |= measure(Path(folder), arguments.part)
    result["versions"] = {name: version(name) for name in ("jax", "orbax-checkpoint", "numpy")}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
