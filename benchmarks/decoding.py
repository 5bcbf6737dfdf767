"""Decoding of a real language model on this machine's CPU, beside the same weights in transformers on torch.

`make bench-decoding` measures anew: tokens a second of one answer, and of answers of eight windows at once; the time
that Python takes between the blocks of an answer; and a patched chunk of 1,024 tokens put into a window that is given
away, against torch's run of it behind what stands before. Times are medians of calls taken in turns; read the ratios.
In f32, and in each further dtype of ``--dtypes`` with the weights of both in it.
"""

import argparse
import json
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from benchmarks.attention import cores, in_turns
from benchmarks.real_speed import MODEL, add_dtypes, parts_of, transformers_model
from eval.tasks.text.corpus import read
from eval.tasks.text.reader import Reader
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.handle import copied
from kamera_jax.inference.encode import encode_segment
from kamera_jax.inference.turn import Turn
from models import load
from models.hub.gguf.convert import hub_folder
from models.hub.gguf.packaged import packaged

DECODED = 64
BEHIND = 512
"""So many tokens are decoded, behind so many."""

WINDOWS = 8
"""Windows that are asked at once."""

CHUNK = 1024
"""Tokens of the chunk that is appended, and of the one before it."""

COMPONENTS = 32
"""Of a smaller patch than the one that is formed by default."""

QUESTION = "Go on."


def one_answer(vlm: Any, peer: Any, ids: np.ndarray, runs: int) -> dict[str, Any]:
    """Seconds a token beside torch; what both do before the second token is taken off by an answer of one."""
    import torch

    window = kj.append(kj.Window.empty(vlm, BEHIND + 256), encoded(vlm, ids[:BEHIND]))
    prompt = torch.from_numpy(np.asarray(ids[:BEHIND]))[None].long()

    def theirs(count: int) -> Any:
        with torch.no_grad():
            options = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
            return peer.generate(prompt, attention_mask=torch.ones_like(prompt), **options).numpy()

    def ours(count: int) -> Any:
        return np.asarray(kj.generate(vlm, window, QUESTION, max_new_tokens=count, keep=False).tokens)

    made = len(ours(DECODED))
    calls = {
        "torch": partial(theirs, made),
        "torch, one": partial(theirs, 1),
        "ours": partial(ours, made),
        "ours, one": partial(ours, 1),
    }
    seconds = in_turns(calls, runs)["clock"]
    each = {name: (seconds[name] - seconds[f"{name}, one"]) / (made - 1) for name in ("torch", "ours")}
    return {"tokens": made, **each, "ratio": each["torch"] / each["ours"], "python_share": python_share(ours, runs)}


def python_share(ours: Any, runs: int) -> float:
    """The share of an answer behind its first token that is not spent in calls for blocks; the median of runs."""
    real = Turn.next_tokens
    within: list[float] = []
    began: list[float] = []

    def timed(turn: Turn, most: int) -> list[int]:
        started = time.perf_counter()
        tokens = real(turn, most)
        within.append(time.perf_counter() - started)
        began.append(started)
        return tokens

    shares = []
    Turn.next_tokens = timed
    try:
        for _ in range(runs):
            within.clear()
            began.clear()
            ours(DECODED)
            shares.append(1 - sum(within) / (time.perf_counter() - began[0]))
    finally:
        Turn.next_tokens = real
    return float(np.median(shares))


def together(vlm: Any, ids: np.ndarray, runs: int) -> dict[str, Any]:
    """Tokens a second of one answer, and of as many as there are windows; both from the second token on."""
    windows = []
    for number in range(WINDOWS):
        chunk = encoded(vlm, np.roll(ids, -64 * number)[:BEHIND])
        windows.append(kj.append(kj.Window.empty(vlm, BEHIND + 256), chunk))
    ending = _Endless(vlm)

    def answers(count: int, tokens: int) -> Any:
        given = kj.generate_many(ending, windows[:count], [QUESTION] * count, max_new_tokens=tokens)
        return np.asarray([len(each.tokens) for each in given])

    def alone(tokens: int) -> Any:
        return np.asarray(kj.generate(ending, windows[0], QUESTION, max_new_tokens=tokens, keep=False).tokens)

    calls = {
        "one": partial(alone, DECODED),
        "one, one token": partial(alone, 1),
        "all": partial(answers, WINDOWS, DECODED),
        "all, one token": partial(answers, WINDOWS, 1),
    }
    seconds = in_turns(calls, runs)["clock"]
    made = {"one": DECODED - 1, "all": WINDOWS * (DECODED - 1)}
    rates = {name: made[name] / (seconds[name] - seconds[f"{name}, one token"]) for name in made}
    return {"windows": WINDOWS, **rates, "ratio": rates["all"] / rates["one"]}


class _Endless:
    """The model without a token that ends an answer: every answer is of the same length."""

    def __init__(self, vlm: Any) -> None:
        self._vlm = vlm

    eos = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vlm, name)


def appended(vlm: Any, peer: Any, ids: np.ndarray, runs: int) -> dict[str, Any]:
    """Seconds of an append of a patched chunk, with and without its window given away, and of torch's run of it."""
    import torch

    before = encoded(vlm, ids[:CHUNK])
    chunk = encoded(vlm, ids[CHUNK : 2 * CHUNK])
    window = kj.append(kj.Window.empty(vlm, 2 * CHUNK + 64), before)
    patch, small = (kj.form_patch(vlm, chunk, context=window, rank=rank) for rank in (None, COMPONENTS))
    copies = [window.keeping(state=copied(window.state)) for _ in range(2 * runs + 2)]
    jax.block_until_ready([each.state for each in copies])
    first, second = (torch.from_numpy(np.asarray(part))[None].long() for part in (ids[:CHUNK], ids[CHUNK : 2 * CHUNK]))
    with torch.no_grad():
        cache = peer(first, use_cache=True, logits_to_keep=1).past_key_values

    def theirs() -> Any:
        if (more := cache.get_seq_length() - CHUNK) > 0:
            cache.crop(-more)
        with torch.no_grad():
            return peer(second, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.float().numpy()

    calls = {
        "torch": theirs,
        "append": lambda: kj.append(copies.pop(), chunk, patch, donate=True).state,
        "append, small": lambda: kj.append(copies.pop(), chunk, small, donate=True).state,
        "append, kept": lambda: kj.append(window, chunk, patch).state,
    }
    seconds = in_turns(calls, runs)["clock"]
    components = float(np.mean(patch.factors.ranks))
    return {"tokens": CHUNK, "components": components, **seconds, "ratio": seconds["torch"] / seconds["append"]}


def encoded(vlm: Any, ids: np.ndarray) -> kj.Chunk:
    """Tokens as a chunk."""
    return encode_segment(vlm, segment_of(vlm, Tokens.of(ids)))


SECTION = """## Decoding on a CPU, beside torch

`make bench-decoding` measures this: {model} on {cores} cores, {dtypes}, behind {behind} tokens; medians of
calls taken in turns with transformers {transformers} on torch {torch}.

| what | torch, ms | ours, ms | ratio |
|---|---|---|---|
{rows}

{together} Python takes {share:.1%} of an answer behind its first token.
Components a layer of the patch that is formed by default, on average: {components}. Their products are
most of an append's arithmetic.
"""

TOGETHER = """{windows} windows that are asked together give {all:.0f} tokens a second{dtype}, one gives {one:.0f}:
{ratio:.2f} times as many."""


def section(result: dict[str, Any]) -> str:
    """What was measured, for docs/performance.md."""
    parts = parts_of(result)
    rows = []
    together = []
    for name, part in parts.items():
        own = "" if len(parts) == 1 else f", {name}"
        one = part["one"]
        append = part["append"]
        tokens = f"{append['tokens']:,} tokens"
        rows += [
            (f"a token of one answer{own}", one["torch"], one["ours"]),
            (f"a patched chunk of {tokens}{own}: run behind as many; appended", append["torch"], append["append"]),
            (f"the same{own}, with a patch of {COMPONENTS} components", append["torch"], append["append, small"]),
            (f"with the first patch{own}, where the window before is kept", append["torch"], append["append, kept"]),
        ]
        together.append(TOGETHER.format(dtype="" if len(parts) == 1 else f" in {name}", **part["together"]))
    return SECTION.format(
        model=result["model"],
        cores=result["cores"],
        dtypes=" and ".join(parts),
        behind=BEHIND,
        rows="\n".join(f"| {what} | {1e3 * a:,.1f} | {1e3 * b:,.1f} | {a / b:,.2f} |" for what, a, b in rows),
        together=" ".join(together),
        share=result["one"]["python_share"],
        components=" and ".join(f"{part['append']['components']:.0f} in {name}" for name, part in parts.items()),
        **result["versions"],
    )


def measured(dtype: str, runs: int) -> dict[str, Any]:
    """What is measured in a dtype."""
    vlm = load(MODEL, dtype=dtype)
    ids = np.asarray(Reader(vlm, read("pydoc")).whole.ids[: 2 * CHUNK])
    with hub_folder(packaged("smollm2")) as folder:
        peer = transformers_model(folder, dtype)
    return {
        "dtype": dtype,
        "one": one_answer(vlm, peer, ids, runs),
        "together": together(vlm, ids, runs),
        "append": appended(vlm, peer, ids, runs),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure decoding of a real language model beside torch.")
    parser.add_argument("--runs", type=int, default=7, help="of which the median is kept")
    parser.add_argument("--json", type=Path, default=Path("docs/results/decoding.json"))
    add_dtypes(parser)
    arguments = parser.parse_args()
    first, *others = (measured(dtype, arguments.runs) for dtype in arguments.dtypes)
    result = {
        "model": MODEL,
        "cores": cores(),
        **first,
        **dict(zip(arguments.dtypes[1:], others, strict=True)),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
