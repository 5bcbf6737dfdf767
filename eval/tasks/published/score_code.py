"""RepoQA's score in SCBench, as its ``repo_qa_utils.py`` computes it: which function of the repository an answer is."""

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence

THRESHOLD = 0.8
"""Similarity from which on an answer counts, in what SCBench reports."""

ORDER = 4
"""Tokens of the longest runs that BLEU counts."""

SMOOTHING = 5
"""Chen and Cherry's K for their fourth method (WMT 2014), as nltk has it."""

_BLOCK = re.compile(r"^```(?:\w+)?\s*\n(.*?)(?=^```)```", re.DOTALL | re.MULTILINE)


def function_found(said: str, right: Sequence[str], functions: Sequence[str], language: str) -> float:
    """1 where the repository's function that is most like the answer is the right one, and like it to `THRESHOLD`.

    Args:
        said: the answer.
        right: the function that was described, and others of its name.
        functions: all that are asked about in the repository, in the file's order; of equals the first counts.
        language: of the repository, as the benchmark writes it.
    """
    found = extracted(said, language)
    likeness = [bleu(found, function) for function in functions]
    best = max(likeness, default=0.0)
    return float(best >= THRESHOLD and functions[likeness.index(best)] in right)


def extracted(said: str, language: str) -> str:
    """The first function in the answer's code blocks, else the first block, else the answer.

    The official script finds functions with tree-sitter in six languages; here those of Python are found, where a block
    is valid Python, and of others the block counts as it is.
    """
    said = said.strip()
    blocks = _BLOCK.findall(said)
    functions = (_function(block) for block in blocks) if language == "python" else ()
    return next((each for each in functions if each), blocks[0] if blocks else said)


def _function(block: str) -> str:
    """The first function of Python code, without decorators; empty where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(block)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not functions:
        return ""
    return ast.get_source_segment(block, min(functions, key=lambda node: (node.lineno, node.col_offset))) or ""


def bleu(said: str, right: str) -> float:
    """BLEU-4 (Papineni et al., 2002) of two texts, cut at white space, smoothed by Chen and Cherry's fourth method.

    As nltk's ``sentence_bleu``: orders longer than the answer count as one run that is missed, and of an answer of one
    token, where that method has no logarithm, orders without a hit are left out of the product.
    """
    given, expected = (re.split(r"\s+", text.strip()) for text in (said, right))
    logs = []
    missed = 0
    for order in range(1, ORDER + 1):
        runs, wanted = (Counter(zip(*(tokens[i:] for i in range(order)), strict=False)) for tokens in (given, expected))
        hits = float((runs & wanted).total())
        if order == 1 and not hits:
            return 0.0
        if not hits and len(given) > 1:
            missed += 1
            hits = math.log(len(given)) / (2**missed * SMOOTHING)
        if hits:
            logs.append(math.log(hits / max(1, runs.total())) / ORDER)
    brevity = min(0.0, 1 - len(expected) / len(given))
    return math.exp(brevity + math.fsum(logs))
