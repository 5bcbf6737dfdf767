"""Installs a checkout of kamera-jax into a hosted notebook's environment; run before jax is imported.

The image's own jax is kept where it is new enough; else the one for the accelerator that is there is put in its place.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

NEEDED = (0, 10, 2)
"""The oldest jax that kamera-jax runs on."""


def accelerator() -> str:
    """``"tpu"``, ``"cuda12"`` or ``"cpu"``: what jax would have to be installed for."""
    if "TPU_WORKER_ID" in os.environ or "TPU_ACCELERATOR_TYPE" in os.environ or Path("/dev/accel0").exists():
        return "tpu"
    return "cuda12" if shutil.which("nvidia-smi") else "cpu"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def requirements(installed: str | None, kind: str) -> list[str]:
    """What pip has to install besides the checkout.

    Args:
        installed: jax's version, or None.
        kind: as of `accelerator`.
    """
    if installed is not None and _release(installed) >= NEEDED:
        return []
    extra = "" if kind == "cpu" else f"[{kind}]"
    return [f"jax{extra}>={'.'.join(map(str, NEEDED))}"]


def main() -> None:
    """Install what is missing, and say what was done."""
    if "jax" in sys.modules:
        raise SystemExit("jax is imported already; restart the runtime and run this cell first")
    try:
        installed = metadata.version("jax")
    except metadata.PackageNotFoundError:
        installed = None
    wanted = requirements(installed, accelerator())
    checkout = Path(__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *wanted, "--editable", str(checkout)], check=True
    )
    print(f"installed kamera-jax{''.join(f' and {each}' for each in wanted)}; the image came with jax {installed}")


if __name__ == "__main__":
    main()
