"""What the README shows is run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_ten_lines_and_the_session_work(capsys, monkeypatch, tmp_path):
    lines, session = examples()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {}
    for example in (lines, session):
        exec(compile(example, "README.md", "exec"), names)
    asked = re.findall(r"\"(what .*?)\"", lines + session)
    questions = (ROOT / "examples/pages/questions.md").read_text()
    answers = capsys.readouterr().out.splitlines()
    assert len(asked) == 2
    for question, answer in zip(asked, answers, strict=True):
        assert f"- {question} {answer}\n" in questions
    restored = names["kj"].Session.restore(names["vlm"], "session/")
    assert restored.keys == names["session"].keys


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)(.*?)\)", (ROOT / "README.md").read_text()):
        page, _, anchor = target.partition("#")
        assert (ROOT / page).exists(), target
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
