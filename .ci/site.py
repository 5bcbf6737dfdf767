"""Hooks of the documentation's build: formulas as MathML, drawings that follow the colour scheme, executed notebooks.

MathML needs no script and no font from elsewhere: the pages fetch nothing.
"""

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "build" / "notebooks"
"""Where `make notebooks` leaves the notebooks with their outputs."""

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
NUMBER = re.compile(r"<td>(?=[^<]*\d)((?:[\d\s.,;:%±–−+×/()<>-]|e-|&lt;|\bto\b|\bof\b){1,18})</td>")
"""A cell with numbers alone, which is not to be broken."""
DRAWING = re.compile(r'<img alt="([^"]*)" src="([^"]*\.svg)"\s*/?>')
SOURCE = "https://github.com/kamera-jax/kamera-jax/blob/main"
TEMPORARY = re.compile(r"(?:/[\w.-]+)*/tmp\w{8}(?![\w.])")
"""The name of a temporary folder, which is another one each time."""
SETUP = "COLAB_RELEASE_TAG"
"""In the cell that prepares a hosted runtime, which is folded away."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for every executed notebook, and the figures that it drew."""
    executed = [EXECUTED / path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    missing = [path.stem for path in executed if not path.is_file()]
    if missing:
        raise PluginError(f"not executed yet: {', '.join(missing)}; run make notebooks")
    for path in executed:
        pictures: dict[str, bytes] = {}
        text = page(nbformat.read(path, as_version=4), path.stem, pictures)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def on_page_content(content: str, *, page: Any, config: Any, files: Files) -> str:
    """Put MathML for formulas and drawings for their pictures, so that they take the page's colours; mark numbers."""
    content = NUMBER.sub(r'<td class="number">\1</td>', content)
    content = FORMULA.sub(lambda found: mathml(found[3], block=found[2] == "["), content)
    return DRAWING.sub(lambda found: _drawing(found, page), content)


def mathml(formula: str, *, block: bool) -> str:
    """A formula in LaTeX, as HTML has it in its text, as MathML."""
    found = latex2mathml.converter.convert(html.unescape(formula).strip(), display="block" if block else "inline")
    return f'<div class="formula">{found}</div>' if block else found


def _drawing(found: re.Match[str], page: Any) -> str:
    path = (Path(page.file.abs_src_path or "").parent / found[2]).resolve()
    if not path.is_file():
        return found[0]
    return path.read_text(encoding="utf-8")


def page(notebook: Any, name: str, pictures: dict[str, bytes]) -> str:
    """An executed notebook as Markdown; the pictures that it refers to are put into `pictures`, by file name."""
    parts = []
    heading = name
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
            badge, _, rest = cell.source.partition("\n\n")
            parts.append(_links(rest if "colab-badge.svg" in badge else cell.source, name))
        elif cell.source.strip():
            code = f"```python\n{cell.source}\n```"
            folded = SETUP in cell.source
            parts.append(f'??? note "Setup"\n\n{_indented(code)}' if folded else code)
            parts += _outputs(cell, name, heading, pictures)
    where = f"[notebooks/{name}.ipynb]({SOURCE}/notebooks/{name}.ipynb)"
    title, _, body = "\n\n".join(parts).partition("\n\n")
    return f"{title}\n\n*This is {where}, as it was executed on a CPU.*\n\n{body}\n"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def _links(text: str, name: str) -> str:
    """Names of documentation pages and notebooks as links."""
    text = re.sub(r"`docs/([\w/-]+)\.md`", r"[`docs/\1.md`](../\1.md)", text)
    return re.sub(r"`(\w+)\.ipynb`", lambda found: f"[`{found[0][1:-1]}`]({found[1]}.md)", text)


def _outputs(cell: Any, name: str, heading: str, pictures: dict[str, bytes]) -> Iterator[str]:
    printed = ""
    for output in cell.outputs:
        if output.output_type == "stream":
            # Progress and warnings, which name folders of the machine, are of no use to a reader.
            printed += output.text if output.name == "stdout" else ""
            continue
        data = output.get("data", {})
        if "image/png" in data:
            if printed:
                yield _printed(printed)
                printed = ""
            file = f"{name}-{len(pictures)}.png"
            pictures[file] = base64.b64decode(data["image/png"])
            yield f"![{html.escape(heading)}]({file})"
        elif "text/plain" in data:
            printed += data["text/plain"] + "\n"
    if printed:
        yield _printed(printed)


def _printed(text: str) -> str:
    text = TEMPORARY.sub("…", re.sub(r"\x1b\[[0-9;]*m", "", text))
    lines = [line.rpartition("\r")[2].rstrip() for line in text.rstrip().splitlines()]
    return "```{ .text .output }\n" + "\n".join(lines) + "\n```"
