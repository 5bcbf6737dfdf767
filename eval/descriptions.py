"""What the built-in tasks, their settings and the methods are, in a line each.

The one source of what ``kamera eval --help``, ``kamera eval --list`` and the pages of reports say. Nothing here imports
JAX, so that --help is quick.
"""

import textwrap
from dataclasses import dataclass
from typing import NamedTuple

WIDTH = 79
"""Columns of a terminal that text is wrapped to."""


@dataclass(frozen=True)
class MethodText:
    """How a method is written, and what it is.

    Attributes:
        form: with letters for its numbers, as in ``patch:M``.
        example: with numbers.
        what: what it does to fill a window, in a line.
    """

    form: str
    example: str
    what: str


TASKS: dict[str, str] = {
    "binding": "Pages of glyphs; answers lead through one, two or three of them (for kamera-tiny-gqa, -mla and -mha).",
    "continuation": "Two passages in a row: the 32 tokens that go on behind them.",
    "quotation": "A passage, and the beginning of a copy of it: which tokens does the copy go on with?",
    "page-break": "Four passages with three facts, each cut by a border; the sentence is repeated up to its last word.",
    "needs-context": "Tokens behind two passages that full prefill gets right because of the first passage alone.",
    "induction": 'Headers ("Document B:") and the texts under them, each a chunk; a header is repeated.',
    "orders": "Two or three passages in all their orders: the text goes on behind the last.",
    "slide": "A window of four passages that slides over a text: the tokens that go on at every step.",
    "recall": "A passage that left a sliding window ten steps ago comes back into it.",
    "seen-quotation": "Two pages of text as pictures; the second begins a copy of the first (for kamera-smol-vl).",
    "seen-page-break": "Two pages of text as pictures, and a fact that the page break cuts (for kamera-smol-vl).",
    "mm-niah": "MM-NIAH: needles in long documents (this and those below: official files, --data DIR).",
    "two-page-docqa": "MP-DocVQA, or MMLongBench-Doc (of=): questions about two pages of a document.",
    "milebench-temporal": "MileBench, temporal: frames in a row, and a choice about what happens.",
    "video-mme": "Video-MME: choices about a video, cut into segments.",
    "egoschema": "EgoSchema: a choice about a video of three minutes.",
    "streamingbench": "StreamingBench: choices at moments of a video, about the minute before.",
    "scbench": "SCBench: many questions about one long text.",
    "musique": "MuSiQue: questions over several paragraphs of dense text.",
    "screenspot": "ScreenSpot: where on the last of several screenshots an element is.",
    "agentnetbench": "AgentNetBench: what to do next, behind the screenshots before.",
}
"""The built-in tasks by name."""

SETTINGS: dict[str, str] = {
    "corpus": "the text: pydoc, docstrings, or a folder of .txt and .md files",
    "tokens": "tokens of a passage or page; of continuation several, as in tokens=128+256",
    "ahead": "of needs-context: how many next tokens are looked at",
    "documents": "of induction: how many headers and texts",
    "passages": "of slide: passages of the whole text; of orders: how many in a window, as in passages=3+4",
    "reference": "of slide: present or history, what methods are compared with",
    "form": "of seen-quotation and seen-page-break: pages or text; of the video tasks: video or images (every frame)",
    "data": "of published benchmarks: the folder of the official files, as --data",
    "part": "of mm-niah, milebench-temporal, screenspot (several joined by +) and scbench (one): which of its tasks",
    "split": "of mm-niah: val or test",
    "of": "of two-page-docqa: mp-docvqa or mmlongbench",
    "dpi": "of two-page-docqa: at which PDF pages are rendered",
    "frames": "of the video tasks: frames of each video, or stretch of one",
    "segments": "of the video tasks: into how many chunks they are cut",
    "seconds": "of streamingbench: of the video before the question",
    "mode": "of scbench: scdq, each turn alone, or multi-turn, behind those before it and their right answers",
    "chunks": "of scbench: into how many parts the text is cut",
    "before": "of screenspot, agentnetbench: screenshots before the one that is asked about",
}
"""The settings of built-in tasks by name; they are written behind the task, as in ``slide:tokens=64,passages=8``."""

METHODS: dict[str, MethodText] = {
    "full": MethodText("full", "full", "prefills everything together: the reference, always run"),
    "blind": MethodText(
        "blind", "blind", "rotates chunks that were encoded alone into place, no more: the baseline, always run"
    ),
    "blind-norotate": MethodText(
        "blind-norotate", "blind-norotate", "the same without rotation: keys stay at the positions they were encoded at"
    ),
    "patch": MethodText(
        "patch:M",
        "patch:12",
        "adds a low-rank patch of M components a layer, formed once behind the same chunks; no forward",
    ),
    "patch:default": MethodText(
        "patch", "patch", "a patch of the size that kamera_jax.form_patch chooses, as patch:10%"
    ),
    "patch:%": MethodText(
        "patch:P%",
        "patch:10%",
        "a patch within P % of the chunk's bytes: the strongest components of all layers, in int8",
    ),
    "patch:SIZE": MethodText(
        "patch:SIZE",
        "patch:64KiB",
        "a patch within so many bytes, as patch:P%",
    ),
    "patch:energy": MethodText(
        "patch:energy=E",
        "patch:energy=0.9",
        "a patch of the fewest components that keep the share E of the change in each layer",
    ),
    "patch:bytes": MethodText(
        "patch:bytes=S",
        "patch:bytes=0.25",
        "a patch within the share S of the bytes: as many components in every layer",
    ),
    "patch:deep": MethodText(
        "patch:deep=M", "patch:deep=12", "a patch of the deep half of the layers alone; patch:deep: every component"
    ),
    "patch:shallow": MethodText(
        "patch:shallow=M", "patch:shallow=12", "a patch of the shallow half alone; patch:shallow: every component"
    ),
    "encoder-cache": MethodText(
        "encoder-cache",
        "encoder-cache",
        "full prefill where a cache keeps media embeddings alone: its answers, and what that costs",
    ),
    "prefix-cache": MethodText(
        "prefix-cache",
        "prefix-cache",
        "full prefill where a cache keeps prefixes: the first chunk is there, all behind it is run",
    ),
    "kvzip": MethodText(
        "kvzip:R",
        "kvzip:0.5",
        "stores the share R of each chunk's rows that a replay of it behind itself reads most (arXiv 2505.23416)",
    ),
    "keydiff": MethodText(
        "keydiff:R", "keydiff:0.5", "stores the share R of rows whose keys differ most from all (arXiv 2504.15364)"
    ),
    "leverage": MethodText(
        "leverage:R", "leverage:0.5", "stores the share R of rows with most leverage on the keys (arXiv 2507.08143)"
    ),
    "knorm": MethodText(
        "knorm:R",
        "knorm:0.5",
        "stores the share R of rows with the largest keys or the smallest, as a replay reads them, or :large, :small",
    ),
    "expected": MethodText(
        "expected:R",
        "expected:0.5",
        "stores the share R of rows that queries like the chunk's own are to read behind it, or, with :measured, like "
        "those of the model's questions (arXiv 2510.00636)",
    ),
    "tri": MethodText(
        "tri:R", "tri:0.5", "stores the share R of rows by the centres of the chunk's own queries (TriAttention)"
    ),
    "lookm": MethodText(
        "lookm:R",
        "lookm:0.5",
        "stores all text, and the share R of media rows that the chunk reads most, merged by pivot (arXiv 2406.18139)",
    ),
    "merge": MethodText(
        "merge:HOW",
        "kvzip:0.5+merge:pivot",
        "behind one of these: rows take in those left out, by average, pivot, weighted or values (arXiv 2406.18139)",
    ),
    "int8": MethodText("int8", "int8", "stores chunks in 8 bits; patches are fitted to what comes back"),
    "kivi": MethodText(
        "kivi:B",
        "kivi:4",
        "stores chunks in B bits, keys by channel, values by token, or :channel (arXiv 2402.02750)",
    ),
    "saw": MethodText("saw:B", "saw:4", "stores chunks in B bits by token and head, behind Hadamard blocks"),
    "turbo": MethodText(
        "turbo:B",
        "turbo:4",
        "stores chunks in B bits by the best codebook of a normal distribution, randomly rotated (arXiv 2504.19874)",
    ),
    "pca": MethodText(
        "pca:S",
        "pca:0.25",
        "stores chunks as coefficients of the share S of components measured once for the model, as in pca:0.25+kivi:4",
    ),
    "xkv": MethodText(
        "xkv:l:r",
        "xkv:1:16",
        "stores chunks as r components of l layers side by side, their own (arXiv 2503.18893); as in xkv:1:16+kivi:4",
    ),
    "capsule": MethodText(
        "capsule:S",
        "capsule:0.4",
        "stores the share S of keys, a network trained for the model making the others, and values as components along "
        "the sequence (arXiv 2605.16439, reconstructed from its abstract); as in capsule:0.4+kivi:4",
    ),
    "mixed": MethodText(
        "mixed:S:H:B",
        "mixed:0.25:4:2",
        "stores the share S of rows, whose keys stand most alone, in H bits, and the others in B (arXiv 2405.14256)",
    ),
    "copy": MethodText(
        "copy:B", "copy:4", "keeps full prefill's KV itself in B bits, for this context alone: what reuse has to beat"
    ),
    "cacheblend": MethodText(
        "cacheblend:R",
        "cacheblend:0.15",
        "runs the share R of tokens whose KV deviates most in the second layer (arXiv 2405.16444)",
    ),
    "epic": MethodText("epic:K", "epic:16", "runs the first K tokens of each chunk (arXiv 2410.15332)"),
    "mpic": MethodText(
        "mpic:K", "mpic:16", "runs the first K tokens of each image, and text passages whole (arXiv 2502.01960)"
    ),
    "vlcache": MethodText(
        "vlcache:R",
        "vlcache:0.05",
        "runs the first tokens of each chunk, fewer in deeper layers, R of them on average (arXiv 2512.12977)",
    ),
    "shift": MethodText(
        "shift:N", "shift:8", "runs N tokens of each chunk, and adds their mean change to all its others (AgentKVShift)"
    ),
    "select": MethodText(
        "select:R", "select:0.5", "asks of the share R of rows that the question itself reads most: knows the question"
    ),
    "prophet": MethodText(
        "prophet:R",
        "prophet:0.15",
        "runs the share R of tokens that the question reads most, times their values (ProphetKV): knows the question",
    ),
    "oracle-tokens": MethodText(
        "oracle-tokens:R",
        "oracle-tokens:0.5",
        "copies the true KV of the share R of tokens that change most: an upper bound of running tokens again",
    ),
}
"""The built-in methods by what they are called in messages."""

PARTS = (
    "Parts of methods are joined by +: patch:4+epic:8 adds the patch, then runs the first 8 tokens of each chunk, and "
    "kivi:4+patch:4 stores chunks in 4 bits."
)

OUTSIDE = (
    "Tasks and methods of your own are written module:Name. The module is looked for on Python's path, then in the "
    "current folder: my_task:MyTask is the class MyTask of my_task.py here. See docs/howto/task.md and "
    "docs/howto/method.md."
)


class Listed(NamedTuple):
    """A line of `listing`."""

    name: str
    what: str


def listing(rows: list[Listed], width: int = WIDTH) -> str:
    """Names and what they are, below each other, wrapped to a terminal's columns.

    Args:
        rows: the lines.
        width: columns.
    """
    column = min(18, max((len(row.name) for row in rows), default=0)) + 2
    lines = []
    for name, what in rows:
        wrapped = textwrap.wrap(what, width - 2 - column) or [""]
        if len(name) > column - 2:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name.ljust(column)}{wrapped.pop(0)}".rstrip())
        lines += [f"  {' ' * column}{line}" for line in wrapped]
    return "\n".join(lines)


def filled(text: str, width: int = WIDTH) -> str:
    """A text wrapped to a terminal's columns."""
    return textwrap.fill(text, width)


def method_of(name: str) -> MethodText | None:
    """The text of a built-in method by its name as it was written, of its last part; None for others."""
    kind, _, number = name.rpartition("+")[2].partition(":")
    if kind not in METHODS:
        return None
    if kind != "patch":
        return METHODS[kind]
    if not number:
        return METHODS["patch:default"]
    variant = "%" if number.endswith("%") else number.partition("=")[0]
    if number[-1:] in ("b", "B"):  # bytes, as in 64KiB
        variant = "SIZE"
    return METHODS.get(f"patch:{variant}", METHODS["patch"])
