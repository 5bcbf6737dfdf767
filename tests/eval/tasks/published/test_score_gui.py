"""Points and actions on a screen, against values worked out by hand from what the official scripts define."""

import json
from math import exp, isclose, sqrt

import pytest

from eval.tasks.published.score_gui import actions_of, agentnet, agentnet_best, screenspot

BOX = (0.2, 0.4, 0.6, 0.5)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("(0.3, 0.45)", 1),
        ("(0.2, 0.4)", 1),  # a corner is in it
        ("(0.6, 0.5)", 1),
        ("(0.61, 0.45)", 0),
        ("(0.45, 0.3)", 0),
        ("0.3 0.45", 1),
        ("x=0.3, y=0.45", 1),
        ("[0.2, 0.4, 0.4, 0.5]", 1),  # the middle of a box
        ("[0.0, 0.0, 0.4, 0.5]", 0),
        ("(0.3)", 0),  # neither two numbers nor four
        ("(0.3, 0.45, 1)", 0),
        ("1. (0.3, 0.45)", 0),  # three numbers
        ("", 0),
        ("in the middle", 0),
        ("<box>(200,400),(400,500)</box>", 1),
        ("<box>(0,0),(400,500)</box>", 0),
        ("<box>(200, 400),(400, 500)</box>", 0),  # a space is not of its format
        ("the box at (0.3, 0.45)", 0),  # the word says that a box follows
        ("(300, 450)", 0),
        ("(-0.3, 0.45)", 0),
        ("(.3, .45)", 0),  # digits alone: 3 and 45
        ("(0.3,0.45)", 1),
    ],
)
def test_screenspot_is_pred_2_point(said, expected):
    assert screenspot(said, BOX) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("pyautogui.click(x=0.5, y=0.3)", [("click", (0.5, 0.3))]),
        ("pyautogui.click(0.5, 0.3)", [("click", (0.5, 0.3))]),
        ("```python\npyautogui.doubleClick(x=1, y=0)\n```", [("doubleclick", (1, 0))]),
        ("pyautogui.write(message='a (b')", [("write", "a (b")]),
        ("pyautogui.write('it\\'s')\npyautogui.press('enter')", [("write", "it's"), ("press", ["enter"])]),
        ("pyautogui.press(keys=['down', 'down'])", [("press", ["down", "down"])]),
        ("pyautogui.hotkey('ctrl', 'c')", [("hotkey", ["ctrl", "c"])]),
        ("pyautogui.hotkey(['ctrl', 'c'])", [("hotkey", ["ctrl", "c"])]),
        ("pyautogui.scroll(-3)", [("scroll", -3)]),
        ("computer.terminate(status='success')", [("terminate", "success")]),
        ("computer.tripleClick(x=0.1, y=0.1)", [("tripleclick", (0.1, 0.1))]),
        (
            "pyautogui.moveTo(0.1, 0.2) then pyautogui.dragTo(0.3, 0.4)",
            [("moveto", (0.1, 0.2)), ("dragto", (0.3, 0.4))],
        ),
        ("pyautogui.click()", [("click", None)]),
        ("pyautogui.click('a', 'b')", [("click", None)]),
        ("pyautogui.click(", [("click", None)]),
        ("pyautogui.click(x=f(1), y=2)", []),  # no literals
        ("pyautogui.click(__import__('os').system('x'), 1)", []),
        ("os.system('rm')", []),
        ("click at 0.5, 0.3", []),
        ("", []),
        ("pyautogui.write()", [("write", "")]),
    ],
)
def test_actions_are_read_and_not_run(said, expected):
    assert actions_of(said) == expected


def action(kind, **params):
    return {"type": kind, "params": params}


def click(x, y, *boxes):
    return {**action("click", position={"x": x, "y": y}), "metadata": {"bboxes": [{"rel_bbox": box} for box in boxes]}}


NEAR = 0.01 * sqrt(2)
WRITE = action("write", text="hello world")
ENTER = action("press", keys=["enter"])


@pytest.mark.parametrize(
    ("done", "right", "expected"),
    [
        ([("click", (0.5, 0.5))], [click(0.5, 0.5)], 1),
        ([("click", (0.51, 0.51))], [click(0.5, 0.5)], 1),
        ([("click", (0.5 + NEAR + 0.01, 0.5))], [click(0.5, 0.5)], exp(-1.2)),
        ([("click", (0.9, 0.9))], [click(0.5, 0.5, [0.8, 0.8, 0.1, 0.1])], 1),  # the box's corner
        ([("click", (0.91, 0.91))], [click(0.5, 0.5, [0.8, 0.8, 0.1, 0.1])], exp(-120 * (0.41 * sqrt(2) - NEAR))),
        ([("rightclick", (0.5, 0.5))], [click(0.5, 0.5)], 0),
        ([("click", None)], [click(0.5, 0.5)], 0),
        ([], [click(0.5, 0.5)], 0),
        ([("click", (0.5, 0.5)), ("write", "x")], [click(0.5, 0.5)], 0.5),  # more than is right
        ([("click", (0.5, 0.5))], [click(0.5, 0.5), WRITE], 0.5),  # the mean over types
        ([("click", (0.5, 0.5))], [click(0.5, 0.5), click(0.1, 0.1)], 0.5),
        ([("write", "hello world")], [click(0.5, 0.5), WRITE], 0),  # of a type that is right, at another's place
        ([("write", "Hello World ")], [WRITE], 1),
        ([("write", "hello w")], [WRITE], (7 / 11) / 0.8),
        ([("write", "hello wor")], [WRITE], 1),  # 9 of 11 is above 0.8
        ([("write", "")], [WRITE], 0),
        ([("write", "hello world"), ("press", ["enter"])], [WRITE, ENTER], 1),  # one action with its enter key
        ([("write", "hello world")], [WRITE, ENTER], 1),  # and without: the line break is stripped
        ([("write", "hello world"), ("press", ["enter"])], [WRITE], 1),
        ([("write", "hello world"), ("hotkey", ["enter"])], [WRITE], 0.5),
        ([("press", ["Enter"])], [ENTER], 1),
        ([("press", ["tab"])], [ENTER], 0),
        ([("press", ["down"])], [action("press", keys=["down", "down"])], 0),
        ([("hotkey", ["v", "ctrl"])], [action("hotkey", keys=["ctrl", "v"])], 0),  # in order
        ([("scroll", -3)], [action("scroll", amount=-6)], 0.5),
        ([("scroll", 3)], [action("scroll", amount=-3)], 0),
        ([("scroll", -3)], [action("scroll", direction="down")], 1),
        ([("scroll", 0)], [action("scroll", amount=0)], 1),
        ([("terminate", "success")], [action("terminate", status="success")], 1),
        ([("terminate", "failure")], [action("terminate", status="success")], 0),
        ([("terminate", "success"), ("press", ["a"])], [action("terminate", status="success")], 0.5),
    ],
)
def test_agentnet_is_evaluate_action(done, right, expected):
    assert isclose(agentnet(done, right), expected, abs_tol=1e-12)


def test_the_best_of_the_alternatives_counts():
    options = json.dumps([[click(0.5, 0.5)], [ENTER]])
    assert agentnet_best("pyautogui.press('enter')", options) == 1
    assert agentnet_best("pyautogui.click(x=0.5, y=0.5)", options) == 1
    assert agentnet_best("pyautogui.scroll(1)", options) == agentnet_best("", options) == 0
