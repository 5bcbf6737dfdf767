"""What the README shows is run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_ten_lines_work(capsys, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    asked = re.search(r"generate\(vlm, window, \"(.*?)\"\)", example).group(1)
    questions = (ROOT / "examples/pages/questions.md").read_text()
    assert f"- {asked} {capsys.readouterr().out.strip()}\n" in questions


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)(.*?)\)", (ROOT / "README.md").read_text()):
        page, _, anchor = target.partition("#")
        assert (ROOT / page).exists(), target
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
