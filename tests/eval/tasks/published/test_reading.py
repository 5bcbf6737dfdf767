"""What the tasks on published benchmarks read from official files, and which files they refuse."""

import json
import os
import re

import numpy as np
import pytest

from eval.tasks import TASKS, get
from eval.tasks.published.base import Published, lettered, passages, pieces
from eval.tasks.published.files import DataError
from eval.tasks.published.videos import segments
from eval.tasks.settings import SettingError
from kamera_jax.items import Video
from tests.eval.tasks.published import fixtures
from tests.models.media.clips import numbers

PUBLISHED = [name for name, task in TASKS.items() if isinstance(task, Published)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The files of every task, each in a folder of its own."""
    root = tmp_path_factory.mktemp("published")
    made = {}

    def of(name):
        if name not in made:
            folder = root / str(len(made))
            write = next(
                each for key, each in fixtures.TASKS.items() if key.partition(":")[0] == name.partition(":")[0]
            )
            write = fixtures.mmlongbench if "mmlongbench" in name else write
            folder.mkdir()
            made[name] = get(f"{name}{',' if ':' in name else ':'}data={write(folder)}")
        return made[name]

    return of


def drawn(task):
    return [task.draw(outline) for outline in task.outline((0,), 100)]


def shapes(context):
    return [type(item).__name__ for item in context.items]


def test_needles_stand_among_texts_and_images(data):
    task = data("mm-niah")
    first, counted, reasoned = drawn(task)
    assert shapes(first) == ["str", "PosixPath", "str", "PosixPath", "str"]
    assert first.items[0] == fixtures.facts(1, 2)
    (question,) = first.questions
    assert question.text.endswith("\nAnswer the question using a single word or phrase.")
    assert question.condition == "retrieval-text" and question.depth == 0.6
    assert counted.questions[0].answers == ("[1, 2]",) and counted.questions[0].depth == pytest.approx(0.55)
    assert shapes(reasoned)[5:] == ["str", "PosixPath"] * 2 and reasoned.items[5] == "A."
    assert task.score(counted.questions[0], "[1, 3]") == {"score": 0.5, "hard": 1.0}


def test_the_report_of_mm_niah_is_by_length_and_depth():
    """Two depths of five at 1k: (1 + (0.5 + 0) / 2) / 5; what is shorter than 1k is in no bin."""
    cells = [(1500, 0.6, 1.0), (1999, 1.0, 0.5), (1000, 0.99, 0.0), (999, 0.5, 1.0)]
    samples = [
        {"condition": "retrieval-image", "length": n, "depth": depth, "score": score} for n, depth, score in cells
    ]
    assert TASKS["mm-niah"].summary(samples) == {"retrieval-image 1k": 0.25}
    parts = [f"{kind}-{needle}" for kind in ("retrieval", "counting", "reasoning") for needle in ("text", "image")]
    whole = [
        {"condition": part, "length": 2000, "depth": i / 5 + 0.1, "score": 1.0} for part in parts for i in range(5)
    ]
    assert TASKS["mm-niah"].summary(whole)["overall 2k"] == 1
    # 0.6 / 0.2 is below 3, as the script computes it: 0.4 and 0.6 share a bin.
    shared = [{**samples[0], "depth": depth, "score": score} for depth, score in ((0.4, 1.0), (0.6, 0.0))]
    assert TASKS["mm-niah"].summary(shared) == {"retrieval-image 1k": 0.1}


def test_two_pages_are_the_one_with_the_answer_and_a_neighbour(data):
    first, second = drawn(data("two-page-docqa"))
    assert [path.name for path in first.items] == ["a_p0.jpg", "a_p1.jpg"] and len(first.questions) == 2
    assert [question.depth for question in first.questions] == [1, 1]
    assert [path.name for path in second.items] == ["b_p0.jpg", "b_p1.png"] and second.questions[0].depth == 0
    outer, inner = drawn(data("two-page-docqa:of=mmlongbench,dpi=72"))
    brightness = [[int(np.asarray(page).mean()) for page in context.items] for context in (outer, inner)]
    assert brightness == [[255, 0], [128, 0]]
    assert [question.condition for question in outer.questions] == ["Int", "List"]
    assert outer.questions[0].text.startswith("what colour")


def test_frames_stand_behind_the_instruction_and_before_the_question(data):
    context = drawn(data("milebench-temporal"))[0]
    assert shapes(context) == ["str", "PosixPath", "str", "PosixPath"] and context.items[2] == "then"
    assert re.fullmatch(
        r"what colour .*\?\nChoice list: \nA\. .*\nB\. .*\nC\. .*\nYour answer is: ", context.questions[0].text
    )
    task = data("milebench-temporal")
    found = task.summary(
        [{"condition": name, "accuracy": score} for name, score in (("a", 1.0), ("a", 0.0), ("b", 1.0))]
    )
    assert found == {"a": 0.5, "b": 1.0, "mean of data sets": 0.75}


def test_videos_are_cut_into_segments(data, tmp_path):
    context = drawn(data("video-mme:frames=8,segments=2"))[0]
    assert [numbers(item) for item in context.items] == [[0, 2, 4, 6], [8, 10, 12, 14]] and len(context.questions) == 2
    both = drawn(data("egoschema:frames=8,segments=2"))
    assert [context.questions[0].answers for context in both] == [("D",), ("A",)]
    early, late = drawn(data("streamingbench:frames=8,segments=2"))
    assert [number for item in early.items for number in numbers(item)] == list(range(8))
    assert [number for item in late.items for number in numbers(item)] == list(range(0, 16, 2))
    clip = fixtures._clip(tmp_path / "clip.mp4")
    last = segments(clip, 2, 4, begin=2, end=3, still=False)
    assert [numbers(item) for item in last] == [[8, 9], [10, 11]] and isinstance(last[0], Video)
    assert [frame.shape for frame in segments(clip, 2, 4, still=True)] == [(*fixtures.SIZE, 3)] * 4
    assert [numbers(item) for item in segments(clip, 3, 2, begin=3.6, end=9, still=False)] == [[14], [15]]


def test_unanswered_questions_are_left_out_of_what_is_reported():
    task = TASKS["video-mme"]
    kinds = [("short", 1.0, 1.0), ("short", 0.0, 0.0), ("long", 0.0, 1.0), ("medium", 0.0, 0.0)]
    samples = [{"condition": kind, "accuracy": right, "answered": given} for kind, right, given in kinds]
    assert task.summary(samples) == {"long": 0.0, "medium": 0.0, "overall": 0.5, "short": 1.0}


def test_texts_and_screens(data):
    context = drawn(data("scbench:chunks=4"))[0]
    assert len(context.items) == 4 and len(context.questions) == 2 and context.items[0].startswith("Extract the value")
    assert get("scbench:part=mf").max_new_tokens == 5 and data("scbench:chunks=4").max_new_tokens == 150
    hops = [context.questions[0] for context in drawn(data("musique"))]
    assert [(question.hops, len(question.answers)) for question in hops] == [(2, 2), (3, 2)]
    first, second = drawn(data("screenspot"))
    assert [path.name for path in first.items] == ["pc_1.png", "pc_0.png"] and len(first.questions) == 2
    left, top, right, bottom = json.loads(second.questions[0].answers[0])
    assert (left * 84, top * 56, right * 84, bottom * 56) == pytest.approx((10, 20, 40, 30))
    steps = {context.items[-1].name: context for context in drawn(data("agentnetbench"))}
    assert shapes(steps["0.png"]) == ["str", "PosixPath"]
    assert shapes(steps["2.png"]) == ["str", "PosixPath", "str", "PosixPath", "str", "PosixPath"]
    task = data("agentnetbench")
    assert task.score(steps["2.png"].questions[0], "computer.terminate(status='success')") == {"score": 1.0}


def test_turns_stand_behind_those_before_them(tmp_path):
    """With their right answers, as the official prompt is without a chat template."""

    def texts(part, turns, **settings):
        fixtures.write_lines(tmp_path / f"scbench_{part}.jsonl", [{"context": "one two", "multi_turns": turns}])
        named = "".join(f",{name}={value}" for name, value in settings.items())
        (context,) = drawn(get(f"scbench:part={part},data={tmp_path}{named}"))
        return context.items, [question.text for question in context.questions]

    keys = [{"input": f"{name}: ", "answer": value} for name, value in (("a", "1"), ("b", "2"), ("c", "3"))]
    assert texts("kv", keys)[1] == ["a:", "b:", "c:"]
    assert texts("kv", keys, mode="multi-turn")[1] == ["a:", "a: 1\n\nb:", "a: 1\n\nb: 2\n\nc:"]
    assert texts("passkey", keys[:2], mode="multi-turn")[1][1] == "a: 1.\n\nb:"
    book = [{"input": "who?", "answer": each, "options": ["x", "y"]} for each in ("A", "B")]
    one = "Question: who?\nA. x\nB. y\n\n"
    right = "The the correct answer is"
    assert texts("choice_eng", book)[1] == [one + right] * 2
    both = f"{one}{right}A\n\n{one}The letter of the correct answer is"
    assert texts("choice_eng", book, mode="multi-turn")[1] == [one + right, both]
    asks = [{"input": "who?", "answer": each} for each in (["x", "y"], "z")]
    assert texts("qa_eng", asks, mode="multi-turn")[1][1] == (
        "Question: who?\nAnswer:['x', 'y']\n\nQuestion: who?\nAnswer:"
    )
    sums = [{"input": f"The {each} number of the list is", "answer": 7} for each in ("Largest", "second")]
    first, second = (f"What is the {each} number of the list?" for each in ("largest", "second"))
    given = [turn["input"] for turn in sums]
    items, asked = texts("mf", sums, chunks=2)
    assert items[0] == f"{given[0]}\n\none" and asked == [f"{first}\n\n{given[0]}", f"{second}\n\n{given[1]}"]
    items, asked = texts("mf", sums, chunks=2, mode="multi-turn")
    assert items[0] == f"{first}\n\none" and asked == [given[0], f"{given[0]}7\n\n{second}\n\n{given[1]}"]


def test_functions_of_a_repository_are_told_apart(tmp_path):
    task = get(f"scbench:part=repoqa,chunks=2,data={fixtures.repoqa(tmp_path)}")
    one, other = drawn(task)
    assert [len(context.questions) for context in (one, other)] == [2, 1] and task.max_new_tokens == 1024
    star, moon = one.questions
    assert star.choices == moon.choices == other.questions[0].choices and len(star.choices) == 3
    assert len(star.answers) == 2 and len(moon.answers) == 1  # two functions have one name
    assert task.score(star, f"```python\n{star.answers[0]}\n```") == {"score": 1.0}
    assert task.score(moon, f"```python\n{star.answers[0]}\n```") == {"score": 0.0}
    record = task.score(moon.from_record({"id": "x", **moon.record()}), moon.answers[0])
    assert record == {"score": 1.0}
    changed(tmp_path / "scbench_repoqa.jsonl", lambda text: text.replace('"name"', '"named"'))
    with pytest.raises(DataError, match="line 1 of .* has no field 'name'"):
        get(f"scbench:part=repoqa,data={tmp_path}").outline((0,), 1)


def test_seeds_take_contexts_in_orders_of_their_own_and_none_twice(data):
    task = data("mm-niah")
    assert [outline.context for outline in task.outline((0,), 2)] == ["retrieval-text/7", "counting-image/7"]
    every = task.outline((0, 1, 2), 100)
    assert len(every) == task.contexts == 3
    drawn_twice = [task.outline((0, 3), 1) for _ in range(2)]
    assert drawn_twice[0] == drawn_twice[1] and len({outline.context for outline in drawn_twice[0]}) == 2


def test_texts_are_cut_at_borders():
    assert passages("one two\n\nthree four", 12) == ["one two", "three four"]
    assert passages("one two\nthree", 9) == ["one two", "three"]
    assert passages("one two three", 8) == ["one two", "three"]
    assert passages("onetwothree", 4) == ["onet", "woth", "ree"]
    assert passages(" \n ", 4) == []
    assert "".join(pieces("abcdef ghijkl mnopqr stu", 3)).replace(" ", "") == "abcdefghijklmnopqrstu"
    assert len(pieces("a b c d e f g h", 3)) in (2, 3)
    assert lettered(["A. red", "blue"]) == "A. red\nB. blue"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrong_folder_is_named_with_what_is_expected(name, tmp_path):
    layout = TASKS[name].LAYOUT.strip().splitlines()[0]
    with pytest.raises(DataError, match=f"kamera eval {name} --data DIR"):
        get(name).outline((0,), 1)
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataError) as caught:
            get(f"{name}:data={folder}").outline((0,), 1)
        assert str(folder) in str(caught.value) and layout in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is no folder"):
        get(f"{name}:data={tmp_path / 'file'}").outline((0,), 1)


def changed(path, change):
    path.write_text(change(path.read_text()))


LINES = "mm_niah_val/annotations/retrieval-text.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{\n", r"line 1 of .*retrieval-text.jsonl is no JSON"),
        (lambda text: text + "[1]\n", r"line 2 of .* is a list; expected an object"),
        (lambda text: text.replace('"question"', '"asked"'), r"line 1 of .* has no field 'question'"),
        (lambda text: text.replace('"placed_depth": 0.6', '"placed_depth": 2'), "placed_depth is 2"),
        (lambda text: text.replace("<image>", "", 1), r"1 <image> in its context and 2 files"),
        (lambda text: text.replace("sub/0.png", "sub/9.png"), r"line 1 of .* names the file 'sub/9.png', which is not"),
        (lambda text: text.replace("sub/0.png", "../../../x.png"), "leads out of"),
        (lambda text: text.replace("sub/0.png", "/etc/passwd"), "leads out of"),
        (lambda text: text.replace('"sub/0.png"', "7"), r"names the file '7', which is not"),
        (lambda text: text.replace('"sub/0.png"', "null"), "images_list has null among its texts"),
        (lambda text: text + text, "'retrieval-text/7' twice"),
        (lambda text: text.replace('"answer": "', '"answer": ["'), "no JSON"),
        (lambda text: "[" * 100_000, "is no JSON"),
        (lambda text: "\n\n", r"mm-niah; expected the folder"),
    ],
)
def test_a_malformed_line_is_named(change, message, tmp_path):
    fixtures.mm_niah(tmp_path)
    changed(tmp_path / LINES, change)
    with pytest.raises(DataError, match=message):
        get(f"mm-niah:data={tmp_path},part=retrieval-text").outline((0,), 10)


def test_no_link_leads_out_of_the_folder(tmp_path):
    fixtures.mm_niah(tmp_path / "data")
    image = tmp_path / "data/mm_niah_val/images/sub/0.png"
    os.rename(image, tmp_path / "outside.png")
    image.symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="leads out of .* --local-dir"):
        get(f"mm-niah:data={tmp_path / 'data'}").outline((0,), 10)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("two-page-docqa", "val.json", '"answer_page_idx": 1', '"answer_page_idx": 5', "answer_page_idx is 5 of 3"),
        ("two-page-docqa", "val.json", '"data"', '"rows"', 'has no "data"'),
        ("two-page-docqa:of=mmlongbench", "samples.json", '"[1, 3]"', '"__import__(1)"', "evidence_pages is"),
        ("two-page-docqa:of=mmlongbench", "samples.json", '"Int"', '"Number"', "answer_format is 'Number'"),
        ("milebench-temporal", "StateChange/StateChange.json", "{image#1}", "", "has no {image#1}"),
        ("milebench-temporal", "StateChange/StateChange.json", '"task_instruction_id": 0', '"task_instruction_id": 4',
         "no instruction 4"),
        ("milebench-temporal", "StateChange/StateChange.json", '"response": "', '"response": "x', "of choice_list"),
        ("video-mme", "video-mme.json", '"answer": "A"', '"answer": "Z"', "the answer is 'Z' of 4 options"),
        ("video-mme", "video-mme.json", '"video_id": "001"', '"video_id": "404"', "'404.mp4', which is not in"),
        ("egoschema", "subset_answers.json", "3", "7", "the answer of aa is 7"),
        ("streamingbench", "questions_real.json", "00:00:02", "2 s", "time_stamp is '2 s'"),
        ("scbench", "scbench_kv.jsonl", '"multi_turns": [', '"multi_turns": [3, ', "a turn that is no object"),
        ("musique", "musique_ans_v1.0_dev.jsonl", '"title"', '"name"', "has no field 'title'"),
        ("screenspot", "screenspot_desktop.json", "[10, 20, 30, 10]", "[10]", "bbox is \\[10\\]"),
        ("agentnetbench", "task.json", '"type": "click"', '"kind": "click"', "are no actions"),
    ],
)  # fmt: skip
def test_what_a_benchmark_cannot_hold_is_named(name, file, old, new, message, tmp_path):
    kind = name.partition(":")[0]
    make = fixtures.mmlongbench if "mmlongbench" in name else fixtures.TASKS.get(
        name, next(each for key, each in fixtures.TASKS.items() if key.startswith(kind)))  # fmt: skip
    make(tmp_path)
    path = tmp_path / file
    assert old in path.read_text()
    changed(path, lambda text: text.replace(old, new))
    task = get(f"{name}{',' if ':' in name else ':'}data={tmp_path}")
    with pytest.raises(DataError, match=message):
        [task.draw(outline) for outline in task.outline((0,), 10)]


def test_a_page_that_a_document_lacks_is_named(tmp_path):
    fixtures.mmlongbench(tmp_path)
    changed(tmp_path / "samples.json", lambda text: text.replace("[1, 3]", "[1, 30]"))
    task = get(f"two-page-docqa:of=mmlongbench,data={tmp_path}")
    with pytest.raises(DataError, match="names page 30 of .*report.pdf, which has 3"):
        [task.draw(outline) for outline in task.outline((0,), 10)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mm-niah:part=finding", "part is one of retrieval-text"),
        ("mm-niah:part=retrieval-text+retrieval-text", "names one twice"),
        ("scbench:part=repo", "part is one of"),
        ("scbench:mode=chat", "mode is one of scdq and multi-turn"),
        ("video-mme:frames=0", "frames needs a whole number"),
        ("musique:part=x", "has no setting"),
    ],
)
def test_settings_that_cannot_be(name, message):
    with pytest.raises(SettingError, match=message):
        get(name)
