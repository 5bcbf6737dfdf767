"""The page of faults: what was tried, and what it cost."""

from collections.abc import Mapping
from typing import Any

KINDS = {
    "lost": "stored data is gone",
    "wrong": "a wrong answer, or a row that nobody put",
    "outside": "a file outside the folder was changed",
    "unnamed": "an error that is not named, or a process that died",
    "slow": "more than ten seconds",
    "large": "more than 2 GiB of memory",
}

PAGE = """# Reliability

What happens to a library, a session, a model folder, a page and a run when processes are killed, disks fail, and files
are damaged or made to do harm. `make soak` tries all of it anew and writes this page; every run of the tests tries a
few of each class.

A fault *fails* where it does one of these:

{kinds}

Each fault is tried in a folder of its own, by a process that is replaced after a hundred; its memory is the highest
that the process has had, everything imported included.

| class | tried | failed | slowest | most memory |
|---|---|---|---|---|
{rows}
{failures}
"""


def page(result: Mapping[str, Any]) -> str:
    """The page, from what `tests.hardening.measure` wrote."""
    rows = []
    failures = []
    for name, found in result["classes"].items():
        failed = found["failed"]
        count = sum(failed.values())
        named = ", ".join(f"{kind}: {failed[kind]}" for kind in KINDS if failed[kind])
        rows.append(
            f"| {found['what']} | {found['tried']:,} | {count}{f' ({named})' if count else ''} | "
            f"{found['seconds']:.1f} s | {found['peak_bytes'] / 2**20:,.0f} MiB |"
        )
        failures += [f"- {name}: `{each.splitlines()[0]}`" for each in found["failures"]]
    return (
        PAGE.format(
            kinds="\n".join(f"- *{kind}*: {what}" for kind, what in KINDS.items()),
            rows="\n".join(rows),
            failures="\n".join(["", "What failed:", "", *failures]) if failures else "",
        ).rstrip()
        + "\n"
    )
