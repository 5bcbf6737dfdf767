"""Questions about a PDF file, one after another: every page is encoded once, however many there are.

python examples/pdf_questions.py                                   # pages of the embedded model, made here
python examples/pdf_questions.py report.pdf --model FOLDER --question "what does page 3 say of the table on page 1?"
"""

import argparse
import tempfile
import time
from pathlib import Path

from PIL import Image

import kamera_jax as kj
from models import load
from models.media.pdf import DPI, pdf_pages

PAGES = Path(__file__).parent / "pages"
QUESTIONS = ("what colour is the star?", "what colour is the flower?", "what colour is the cup?")


def sample_pdf(folder: Path) -> Path:
    """The example pages as a PDF file."""
    first, *rest = (Image.open(PAGES / f"{name}.png").convert("RGB") for name in ("first", "second", "third"))
    first.save(folder / "pages.pdf", save_all=True, append_images=rest, resolution=72)
    return folder / "pages.pdf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pdf", nargs="?", type=Path, help="a PDF file (default: the embedded model's own pages)")
    parser.add_argument("--model", default="kamera-tiny-gqa", help="embedded name, folder in hub format, or hub id")
    parser.add_argument("--question", action="append", help="repeat it")
    parser.add_argument("--rank", type=int, default=12, help="components of the patches")
    options = parser.parse_args()

    vlm = load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        path, dpi = (options.pdf, DPI) if options.pdf else (sample_pdf(Path(folder)), 72)
        chunks = [kj.encode(vlm, page) for page in pdf_pages(path, dpi=dpi)]
    room = sum(chunk.length + 16 for chunk in chunks) + 512
    session = kj.Session(vlm, capacity=room, rank=options.rank)
    for number, chunk in enumerate(chunks, start=1):
        session.add(chunk)
        print(f"page {number}: {chunk.length} tokens, {chunk.nbytes / 1024:.0f} KiB of KV")
    for question in options.question or QUESTIONS:
        start = time.perf_counter()
        answer = session.ask(question, keep=False).text
        print(f"{question} {answer}  ({1e3 * (time.perf_counter() - start):.0f} ms, no page encoded again)")


if __name__ == "__main__":
    main()
