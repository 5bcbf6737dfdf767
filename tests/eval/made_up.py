"""The lines of a run that was not run: random answers and costs; and a corpus that is soon tokenized."""

import numpy as np

from eval.tasks.text import corpus

METHODS = ("full", "blind", "patch:2", "cacheblend:0.25", "oracle-tokens:0.25", "patch:deep", "patch:shallow")
COLOURS = ("red", "blue", "green")


def few_docstrings(folder, count=12):
    """The first documents of the corpus of docstrings, in a folder: to tokenize all of them takes many seconds."""
    for number, text in enumerate(corpus.read("docstrings").documents[:count]):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return str(folder)


def make(rng, contexts=12, methods=METHODS):
    """Contexts and samples whose answers are drawn at random, whatever the method."""
    lines = []
    samples = []
    for c in range(contexts):
        ids = [f"{c}/{q}" for q in range(4)]
        own = {
            name: {"bytes": float(rng.integers(1, 9)), "computed_tokens": float(rng.integers(1, 9)), "flops": 2.0}
            | {"kv_error": rng.random(3).tolist()}
            for name in methods
        }
        absorbed = {name: np.sort(rng.random((3, 14)), axis=1).tolist() for name in ("components", "tokens")}
        lines.append(
            {"id": str(c), "samples": ids, "tokens": 50, "reused_tokens": 30, "reused_bytes": 100.0, "methods": own}
            | {"absorbed": absorbed}
        )
        for q, name in enumerate(ids):
            drawn = {each: {"said": str(rng.choice(COLOURS)), "kl": float(rng.random())} for each in methods}
            samples.append(
                {"id": name, "context": str(c), "seed": c % 3, "hops": 1 + q // 2, "learned": q != 3, "depth": q / 3}
                | {
                    "chunks": 3 + c % 2,
                    "condition": "ab"[c % 2],
                    "distance": q,
                    "question": "?",
                    "answers": ["red"],
                    "methods": drawn,
                }
            )
    return lines, samples
