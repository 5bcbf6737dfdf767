"""A step of an agent as one compiled function: which page to look at next, and what it says.

The agent has a question and pages that it has seen before, encoded. In a single call it puts each of them at the
window's end, asks, and keeps the one that makes it surest of its answer. The call is compiled once for so many pages in
view, whatever they show. Chunks and windows are pytrees, so a
batch of chunks is stacked with ``jax.tree.map``, tried with ``jax.vmap``, and the window that comes out goes in again.

    python examples/agent_step.py                          # the embedded model and its own pages
    python examples/agent_step.py --question "what colour is the cup?"
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

import kamera_jax as kj
from models import load

PAGES = Path(__file__).parent / "pages"
QUESTIONS = (
    *("what colour is the sword?", "what colour is the apple?"),
    *("what colour is the star?", "what colour is the sword?"),
)
CAPACITY = 512


def agent_step(vlm):
    """The step, and how often it was compiled.

    It takes ``(params, window, pages, question)`` and gives ``(window, which page, next token, its probability)``.
    """
    compiled = []

    def look(params, window, page, question):
        window = kj.append(window, page)
        last = question.length[None] - 1
        output = vlm.forward(params, question.at(window.next_position), window.state, logits_at=last)
        return window, jax.nn.softmax(output.logits[0])

    @jax.jit
    def step(params, window, pages, question):
        compiled.append(len(window.entries))  # Python runs once a compilation
        window = kj.slide(window, max(0, len(window.entries) - 1))  # one page stays in view
        windows, answers = jax.vmap(look, in_axes=(None, None, 0, None))(params, window, pages, question)
        surest = jnp.argmax(answers.max(axis=-1))
        best, answer = jax.tree.map(lambda leaf: leaf[surest], (windows, answers))
        return best, surest, jnp.argmax(answer), answer.max()

    return step, compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", action="append", help="may be given several times")
    parser.add_argument("--model", default="kamera-tiny-gqa", help="embedded name, folder in hub format, or hub id")
    options = parser.parse_args()

    vlm = load(options.model)
    names = ("first", "second", "third")
    chunks = [kj.encode(vlm, PAGES / f"{name}.png") for name in names]
    pages = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chunks)
    window = kj.Window.empty(vlm, CAPACITY)
    step, compiled = agent_step(vlm)
    for question in options.question or QUESTIONS:
        window, page, token, sure = step(vlm.params, window, pages, vlm.tail(question))
        print(f"{question} {vlm.decode([int(token)])}  ({names[int(page)]}.png, {float(sure):.0%} sure)")
    print(f"compiled {len(compiled)} times, for {compiled} pages in view")
    # A compiled function may return anything, so what comes out has no key; what went in keeps its own.
    print(f"keys of the window that came out: {window.keys}; of the first page: {chunks[0].key[:12]}…")


if __name__ == "__main__":
    main()
