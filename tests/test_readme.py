"""What the README and the guide show is run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def examples(page="README.md"):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_ten_lines_the_session_and_the_library_work(capsys, monkeypatch, tmp_path):
    lines, session, library = examples()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {}
    for example in (lines, session, library):
        exec(compile(example, "README.md", "exec"), names)
    asked = re.findall(r"\"(what .*?)\"", lines + session)
    questions = (ROOT / "examples/pages/questions.md").read_text()
    answers = capsys.readouterr().out.splitlines()
    assert len(asked) == 2
    for question, answer in zip(asked, answers, strict=True):
        assert f"- {question} {answer}\n" in questions
    restored = names["kj"].Session.restore(names["vlm"], "session/")
    assert restored.keys == names["session"].keys
    assert names["library"].stats().chunks == 3 and names["window"].entries[-1].patch is not None


def test_the_guide_runs_from_top_to_bottom(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {}
    for example in examples("docs/guide.md"):
        exec(compile(example, "docs/guide.md", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    questions = (ROOT / "examples/pages/questions.md").read_text()
    one_hop, two_hops = (
        next(line.split("?")[1].split("|")[0].strip() for line in shown if line.startswith(names[name]))
        for name in ("one_hop", "two_hops")
    )
    assert f"- {names['one_hop']} {one_hop}\n" in questions and f"- {names['two_hops']} {two_hops}\n" in questions
    assert names["verdict"].reason in " ".join(shown)


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)(.*?)\)", (ROOT / "README.md").read_text()):
        page, _, anchor = target.partition("#")
        assert (ROOT / page).exists(), target
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
