"""`kamera eval --list`: the tasks and methods that there are, built in and of installed packages."""

import textwrap
from typing import Any

from eval import descriptions, tasks
from eval.methods import names
from eval.tasks.plugins import Group, PluginError

WIDTH = 79
"""Columns that lines are wrapped to."""


def run() -> dict[str, Any]:
    """Print the tasks and methods; returns what ``--json`` writes."""
    listed = {"tasks": _tasks(), "methods": _methods()}
    for title, rows in listed.items():
        print(f"{title.capitalize()}\n")
        for row in rows:
            settings = f" Settings: {', '.join(f'{each}=' for each in row['settings'])}." if row.get("settings") else ""
            source = "" if row["source"] == "built in" else f" ({row['source']})"
            written = f" As in {row['name']}." if row.get("form", row["name"]) != row["name"] else ""
            text = f"{row.get('form', row['name'])}: {row['what']}{settings}{written}{source}"
            print(_wrapped(text))
            if row["problem"]:
                print(_wrapped(f"    {row['name']} cannot be used: {row['problem']}"))
        print()
    print("Settings of built-in tasks, as in continuation:tokens=256,corpus=docstrings\n")
    for name, what in descriptions.SETTINGS.items():
        print(_wrapped(f"{name}=: {what}"))
    print(f"\n{descriptions.filled(descriptions.PARTS)}\n\n{descriptions.filled(descriptions.OUTSIDE)}")
    return listed


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _row(name: str, what: str, source: str = "built in", problem: str = "") -> dict[str, Any]:
    return {"name": name, "source": source, "problem": problem, "what": what}


def _tasks() -> list[dict[str, Any]]:
    built_in = [
        {**_row(name, descriptions.TASKS[name]), "settings": list(getattr(task, "settings", {}))}
        for name, task in tasks.TASKS.items()
        if name in descriptions.TASKS
    ]
    return [*built_in, *_declared(tasks.GROUP)]


def _methods() -> list[dict[str, Any]]:
    built_in = [{**_row(each.example, f"{each.what}."), "form": each.form} for each in descriptions.METHODS.values()]
    return [*built_in, *_declared(names.GROUP)]


def _declared(group: Group) -> list[dict[str, Any]]:
    """What installed packages declare; it is described by the first line of its docstring."""
    rows = []
    for name, points in group.declared().items():
        problem = group.problem(name, points)
        what = ""
        if not problem:
            try:
                what = (getattr(group.find(name), "__doc__", None) or "").strip().partition("\n")[0]
            except PluginError as error:
                problem = str(error)
        rows.append(_row(name, what, ", ".join(point.value for point in points), problem))
    return rows
