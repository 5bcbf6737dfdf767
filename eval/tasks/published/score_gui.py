"""Scores of what is done on a screen: ScreenSpot's points, AgentNetBench's actions, as their scripts compute them."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from math import exp, hypot
from typing import Any

from eval.tasks.answers import levenshtein

NEAR = 0.01 * 2**0.5
"""AgentNetBench: a click this near, in shares of the screen, is as good as one on the spot."""

FALL = 120
SIMILAR = 0.8
"""AgentNetBench: text this similar is as good as the same."""

_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")
CLICKS = ("click", "doubleclick", "rightclick", "tripleclick", "moveto", "dragto")


def point_of(said: str) -> tuple[float, float] | None:
    """The point that ScreenSpot's script reads from an answer, in shares of the picture; None where it is of no format.

    Two numbers are the point, four a box whose middle it is; ``<box>(1,2),(3,4)</box>`` is one in thousandths.
    """
    if "box" in said:
        found = _BOX.search(said)
        if found is None:
            return None
        left, top, right, bottom = (int(each) / 1000 for each in found.groups())
        return (left + right) / 2, (top + bottom) / 2
    numbers = [float(each) for each in re.findall(r"-?\d+\.?\d*", said)]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    return None


def screenspot(said: str, box: Sequence[float]) -> float:
    """1 where the point lies in the box, its edges included.

    Args:
        said: the answer.
        box: left, top, right and bottom, in shares of the picture.
    """
    point = point_of(said)
    return float(point is not None and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])


Action = tuple[str, Any]
"""What is done, in small letters, and with what: a point, a text, keys, an amount, a status; None for nothing."""

_CALL = re.compile(r"(?:pyautogui|computer)\.(\w+)\(")


def actions_of(said: str) -> list[Action]:
    """The actions in an answer that is code: calls of ``pyautogui`` and ``computer``, in order; nothing is run.

    What is no call of literals is left out.
    """
    found: list[Action] = []
    for call in _CALL.finditer(said):
        end = _closing(said, call.end())
        try:
            node = ast.parse(f"f({said[call.end() : end]})", mode="eval").body
            assert isinstance(node, ast.Call)
            given = [ast.literal_eval(each) for each in node.args]
            named = {each.arg: ast.literal_eval(each.value) for each in node.keywords}
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        found.append((call[1].lower(), _argument(call[1].lower(), given, named)))
    return found


def _closing(text: str, start: int) -> int:
    """Where the parenthesis closes that was opened before ``start``; those in quotes do not count."""
    depth = 1
    quote = ""
    place = start
    while place < len(text):
        letter = text[place]
        if quote:
            place += letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if not depth:
                return place
        place += 1
    return place


def _argument(kind: str, given: Sequence[Any], named: Mapping[str | None, Any]) -> Any:
    if kind in CLICKS:
        point = [named.get("x", given[0] if given else None), named.get("y", given[1] if len(given) > 1 else None)]
        return tuple(point) if all(_is_number(each) for each in point) else None
    if kind == "write":
        return named.get("message", named.get("text", given[0] if given else ""))
    if kind in ("press", "hotkey"):
        keys = named.get("keys", named.get("key", given[0] if len(given) == 1 else list(given)))
        return list(keys) if isinstance(keys, (list, tuple)) else [keys]
    return next(iter([*given, *named.values()]), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def agentnet(actions: Sequence[Action], right: Sequence[Mapping[str, Any]]) -> float:
    """``evaluate_action`` of AgentNetBench: the total of what was done against what is right.

    The first action has to be of a type that is right somewhere. Then each right one is compared with the action at its
    place, by type: a point within a box is 1, else by distance; a text by similarity; keys in order; scrolling by
    direction and amount. The total is the mean over types of their means, times right / done where more was done.

    Args:
        actions: what was done.
        right: the ``ground_truth_actions``.
    """
    right = _entered(right)
    actions = _entered_here(actions)
    if not right or not actions:
        return 0.0
    penalty = min(1.0, len(right) / len(actions))
    if right[0]["type"] == "terminate":
        return penalty * float(actions[0] == ("terminate", right[0]["params"].get("status")))
    if actions[0][0] not in {each["type"].lower() for each in right}:
        return 0.0
    by_type: dict[str, list[float]] = {}
    for place, each in enumerate(right):
        kind = each["type"].lower()
        own = actions[place] if place < len(actions) else ("", None)
        by_type.setdefault(kind, []).append(_action(own[1], each) if own[0] == kind else 0.0)
    return penalty * sum(sum(own) / len(own) for own in by_type.values()) / len(by_type)


def _action(value: Any, right: Mapping[str, Any]) -> float:
    """The score of an action of the right type."""
    kind = right["type"].lower()
    params = right.get("params", {})
    if kind in CLICKS:
        return _point(value, right)
    if kind == "write":
        return _written(str(value), str(params.get("content", "") or params.get("text", "")))
    if kind in ("press", "hotkey"):
        keys = params.get("keys", [])
        if isinstance(keys, list) and isinstance(value, list):
            return float([str(each).lower() for each in value] == [str(each).lower() for each in keys])
        return float(value == keys)
    if kind == "scroll":
        return _scrolled(value, params)
    return 0.0


def _point(value: Any, right: Mapping[str, Any]) -> float:
    if not isinstance(value, tuple):
        return 0.0
    x, y = value
    for each in right.get("metadata", {}).get("bboxes", []):
        left, top, width, height = each["rel_bbox"]
        if left <= x <= left + width and top <= y <= top + height:
            return 1.0
    spot = right["params"]["position"]
    distance = hypot(x - spot["x"], y - spot["y"])
    return 1.0 if distance <= NEAR else exp(-FALL * (distance - NEAR))


def _written(text: str, right: str) -> float:
    """Similarity, in small letters and without white space at the ends: the script's rule on line breaks is void."""
    text = text.lower().strip()
    right = right.lower().strip()
    longest = max(len(text), len(right))
    similarity = 1 - levenshtein(text, right) / longest if longest else 1.0
    return 1.0 if similarity >= SIMILAR else similarity / SIMILAR


def _direction(value: Any) -> int:
    """1 up, −1 down, 0 neither."""
    if isinstance(value, str):
        value = value.strip().lower()
        if value in ("up", "positive", "down", "negative"):
            return 1 if value in ("up", "positive") else -1
        try:
            value = float(value)
        except ValueError:
            return 0
    return (value > 0) - (value < 0) if _is_number(value) else 0


def _scrolled(value: Any, params: Mapping[str, Any]) -> float:
    amount = params.get("amount", params.get("pixels"))
    right = _direction(amount if amount is not None else params.get("direction"))
    if right and right != _direction(value):
        return 0.0
    if _is_number(value) and amount is not None and _is_number(amount):
        own = abs(float(value))
        wanted = abs(float(amount))
        return min(own, wanted) / max(own, wanted) if own and wanted else float(own == wanted)
    return float(right == _direction(value))


def _is_enter(keys: Any) -> bool:
    return isinstance(keys, list) and len(keys) == 1 and str(keys[0]).lower() in ("enter", "return")


def _entered(right: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Right actions, each text that the enter key follows being one with it."""
    kept: list[Mapping[str, Any]] = []
    for each in right:
        before = kept[-1] if kept else {"type": ""}
        joins = before["type"].lower() == "write" and each["type"].lower() in ("press", "hotkey")
        if not (joins and _is_enter(each.get("params", {}).get("keys")) and not before.get("entered")):
            kept.append(each)
            continue
        kept[-1] = {**before, "entered": True}
    return kept


def _entered_here(actions: Sequence[Action]) -> list[Action]:
    """Actions that were done, likewise; here only a key that is pressed counts."""
    kept: list[tuple[str, Any]] = []
    joined = False
    for kind, value in actions:
        if kept and kept[-1][0] == "write" and kind == "press" and _is_enter(value) and not joined:
            joined = True
            continue
        kept.append((kind, value))
        joined = False
    return kept


def agentnet_best(said: str, options: str) -> float:
    """The best `agentnet` of an answer over the right actions and the alternatives to them.

    Args:
        said: the answer, code.
        options: lists of right actions, as JSON.
    """
    actions = actions_of(said)
    return max(agentnet(actions, right) for right in json.loads(options))
