"""An agent that looks at the same documents again and again: what of them was reused, and why.

python examples/agent.py                                    # pages drawn for the embedded model
python examples/agent.py notes/ --model smollm2-135m        # the text files of a folder, each as one chunk
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import kamera_jax as kj
from eval.tiny.episodes import question_text
from eval.tiny.pages import render
from eval.tiny.story import sample_story
from models import load


def sample_documents() -> list[tuple[Any, str]]:
    """Twelve pages for the embedded models, each with a question about something it shows."""
    found = []
    for seed in range(6):
        story = sample_story(np.random.default_rng(seed))
        for page in (story.first, story.other):
            found.append((render(page.cells), question_text(next(iter(page.entries)))))
    return found


def read_documents(folder: Path) -> list[tuple[Any, str]]:
    """The text files of a folder, each with the same question."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".md"))
    return [(path.read_text(encoding="utf-8").rstrip(), "What is this about?") for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="with .txt and .md files (default: drawn pages)")
    parser.add_argument("--model", default="kamera-tiny-gqa", help="embedded name, folder in hub format, or hub id")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--capacity", type=int, default=512, help="slots of the window")
    options = parser.parse_args()

    vlm = load(options.model)
    documents = read_documents(options.folder) if options.folder else sample_documents()
    if not documents:
        parser.error(f"{options.folder} has no .txt or .md files")
    shares = 1.0 / np.arange(1, len(documents) + 1)  # some are looked at far more often than others: Zipf's law
    session = kj.Session(vlm, options.capacity)
    names: dict[str, int] = {}
    for number in np.random.default_rng(0).choice(len(documents), options.turns, p=shares / shares.sum()):
        document, question = documents[number]
        names[session.add(document)] = int(number)
        session.ask(question, max_new_tokens=4, keep=False)

    came = [served for served in session.log if served.came]
    counts = Counter("encoded, " + each.action.value if each.encoded else each.action.value for each in came)
    print(f"{options.turns} turns over {len(documents)} documents, a window of {options.capacity} slots\n")
    print("| what a document was served with | times | FLOPs |")
    print("|---|---|---|")
    whole = sum(each.flops for each in session.log)
    for action, count in counts.most_common():
        flops = sum(each.flops for each in came if ("encoded, " * each.encoded + each.action.value) == action)
        print(f"| {action} | {count} | {flops / whole:.0%} |")
    print("\nThe last ten:")
    for served in came[-10:]:
        print(f"  document {names[served.key]:2}: {served.action.value}: {served.reason}")
    print(f"\n{session.stats}")


if __name__ == "__main__":
    main()
