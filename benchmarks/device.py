"""What is measured where a GPU or a TPU is at hand, within eight minutes: kernels' tests, their times, a look-back.

    python -m benchmarks.device --output FOLDER

Three parts, each bounded in time and each with a file of its own in the folder, written as soon as it is known:
``tests.txt``, ``kernels.json`` (GPUs alone) and ``look-back.json``: the programs of `eval.ahead.programs` on random
weights of a 7B model behind a window of 32768 slots, and the time to the first answer token by reuse and by running the
chunk again. `--tiny` runs the same on a small model, on any device.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from eval.ahead.chips import CHIPS
from eval.ahead.programs import Shapes
from eval.ahead.published import CONFIGURATIONS, configuration
from eval.commands.bench import side_by_side

TESTS = ("tests/pallas_kernels/test_relocate_patch_gpu.py", "tests/pallas_kernels/test_platforms.py")
LIMITS = {"tests": 150, "kernels": 120}
"""Seconds of the parts that run as processes of their own; all together stay below eight minutes."""

QUESTION = 16
"""Tokens of the question."""


TINY = {**CONFIGURATIONS["smollm2-135m"], "num_hidden_layers": 2, "vocab_size": 512}


def arrays(tree: Any, key: jax.Array) -> Any:
    """Random arrays of these shapes: numbers of the size that trained weights have."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))

    @partial(jax.jit, static_argnums=(1, 2))
    def drawn(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, dtype)

    filled = []
    for leaf, each in zip(leaves, keys, strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            filled.append(drawn(each, leaf.shape, leaf.dtype))
        else:
            filled.append(jnp.ones(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, filled)


def look_back(
    mapping: Mapping[str, Any], *, window: int, chunk: int, rank: int = 32, dtype: str = "bfloat16", runs: int = 5
) -> dict[str, Any]:
    """Milliseconds of a model's programs on random weights on this device, in turns, and to the first answer token.

    Args:
        mapping: the model's config.json.
        window: slots of the window, all in use.
        chunk: tokens of the chunk that comes back; a multiple of 16.
        rank: of its patch.
        dtype: of weights and KV.
        runs: of each, of which the median counts.
    """
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("model",))
    shapes = Shapes.of(mapping, mesh, dtype=dtype, window=window, chunk=chunk, rank=rank)
    key = jax.random.key(0)
    params = arrays(shapes.params, key)
    prefill = shapes.prefill()
    reuse = shapes.reuse()
    asked = replace(shapes, chunk=QUESTION)
    slots = jnp.arange(window, dtype=jnp.float32)
    state = arrays(prefill.arguments[2], key)
    state = replace(state, positions=jnp.broadcast_to(slots, state.positions.shape), valid=jnp.ones(window, bool))
    kept = [state]

    def segment(of: Shapes, length: int) -> Any:
        made = arrays(of.segment(length), key)
        positions = jnp.broadcast_to(window + jnp.arange(length, dtype=jnp.float32), made.positions.shape)
        return replace(made, positions=positions, length=jnp.int32(length))

    own = segment(shapes, chunk)
    question = segment(asked, QUESTION)
    canonical, factors = (arrays(tree, key) for tree in reuse.arguments[1:3])
    numbers = jnp.asarray([(window - chunk) // 16, chunk], jnp.int32)
    run = jax.jit(prefill.function)
    ask = jax.jit(asked.prefill().function)
    write = jax.jit(reuse.function, donate_argnums=0)

    def reused() -> Any:
        kept[0] = write(kept[0], canonical, factors, own.positions, numbers)
        return kept[0]

    def answered(filled: Callable[[], Any]) -> Any:
        filled()
        return ask(params, question, kept[0])[0].argmax()

    def again() -> Any:
        _, kv = run(params, own, kept[0])
        kept[0] = write(kept[0], kv, factors, own.positions, numbers)
        return kept[0]

    seconds = side_by_side(
        {
            "prefill": lambda: run(params, own, kept[0])[1],
            "reuse": reused,
            "first_token_by_reuse": lambda: answered(reused),
            "first_token_by_prefill": lambda: answered(again),
        },
        runs,
    )
    return {
        "window": window,
        "chunk": chunk,
        "rank": rank,
        "dtype": dtype,
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "reprefill_over_reuse": seconds["prefill"] / seconds["reuse"],
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": version("jax")},
    }


def _process(name: str, command: list[str], output: Path) -> dict[str, Any]:
    """Run a part as a process of its own, within its limit; its last lines lie in a file."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMITS[name], check=False)
        status: int | str = done.returncode
        text = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        status = "out of time"
        text = str(late.stdout or "")
    (output / f"{name}.txt").write_text(text[-20000:], encoding="utf-8")
    return {"status": status, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what a device at hand allows, within eight minutes.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", choices=("tests", "kernels", "look-back"), help="one part alone")
    parser.add_argument("--model", default="qwen2.5-vl-7b", help="whose sizes the random weights have")
    parser.add_argument("--tiny", action="store_true", help="a small model and window: to try this script")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = (options.only,) if options.only else ("look-back", "kernels", "tests")
    summary: dict[str, Any] = {"device": jax.devices()[0].device_kind, "peaks": sorted(CHIPS)}
    for part in wanted:
        print(part, file=sys.stderr)
        if part == "look-back":
            sizes = {"window": 256, "chunk": 64, "runs": 1} if options.tiny else {"window": 32768, "chunk": 1024}
            found = look_back(TINY if options.tiny else configuration(options.model), **sizes)
            found["model"] = "tiny" if options.tiny else options.model
            (options.output / "look-back.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            summary[part] = found
        elif part == "tests":
            tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *TESTS]
            summary[part] = _process("tests", tests, options.output)
        elif jax.default_backend() == "gpu":
            files = ["--json", str(options.output / "kernels.json"), "--page", str(options.output / "kernels.md")]
            summary[part] = _process(
                "kernels", [sys.executable, "-m", "benchmarks.kernels", "--only", "gpu", *files], options.output
            )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
