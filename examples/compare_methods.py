"""Full prefill, blind reuse and patches side by side on a folder of your own images.

The questions are yours too, one in a line of a text file, best such as need two images to answer. Told are the answers,
and for every method how far the next token's distribution is from full prefill's (KL in nats).

    python examples/compare_methods.py                                  # the embedded model and its own pages
    python examples/compare_methods.py FOLDER --questions FILE.txt --model Qwen/Qwen2.5-VL-3B-Instruct
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import kamera_jax as kj
from eval.run.metrics import kl
from models import load

PAGES = Path(__file__).parent / "pages"
QUESTIONS = ("what colour is the star?", "what colour is the flower?", "what colour is the cup?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="images, taken in the order of their names")
    parser.add_argument("--questions", type=Path, help="a text file, a question in each line")
    parser.add_argument("--model", default="kamera-tiny-gqa", help="embedded name, folder in hub format, or hub id")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 12], help="of the patches")
    options = parser.parse_args()

    vlm = load(options.model)
    images = [PAGES / f"{name}.png" for name in ("first", "second", "third")]
    if options.folder:
        images = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    questions = options.questions.read_text().split("\n") if options.questions else QUESTIONS
    questions = [question for question in questions if question.strip()]
    chunks = [kj.encode(vlm, image) for image in images]
    full = kj.prefill(vlm, chunks)

    def reused(rank: int | None) -> kj.Window:
        window = kj.Window.empty(vlm, capacity=full.capacity)
        for i, chunk in enumerate(chunks):
            patch = kj.form_patch(vlm, chunk, antecedents=chunks[:i], rank=rank) if rank and i else None
            window = kj.append(window, chunk, patch)
        return window

    windows = {"full": full, "blind": reused(None)} | {f"patch:{rank}": reused(rank) for rank in options.ranks}
    table = Table(*windows, "question", box=None)
    losses = {name: [] for name in windows}
    for question in questions:
        reference = kj.query(vlm, full, question)
        for name, window in windows.items():
            losses[name].append(float(kl(reference, kj.query(vlm, window, question))))
        answers = [kj.generate(vlm, window, question, keep=False).text for window in windows.values()]
        table.add_row(*answers, question)
    table.add_row(
        *(f"{np.mean(values):.4f}" for values in losses.values()), "mean KL to full prefill, nats", style="bold"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
