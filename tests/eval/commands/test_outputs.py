"""Files that commands write: looked at before the work, whole or not at all, and through what is no regular file."""

import json
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from eval.commands import command_line, outputs
from eval.commands.main import main
from eval.commands.outputs import OutputError, UnfinishedError, check, write


@pytest.fixture
def made(monkeypatch):
    """`kamera bench form` with a result and a figure of no work; gives how often it ran."""
    from eval.commands import bench
    from eval.report import console

    runs = []

    def measure(*_, **__):
        runs.append(1)
        print("a table")
        return {"rows": []}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "RandomDecoder", object)
    monkeypatch.setattr(console, "print_form", lambda _: None)
    monkeypatch.setattr(console, "plot_form", lambda _, path: Image.new("RGB", (3, 2)).save(path))
    return runs


RESULT = '{\n  "rows": []\n}\n'


def bench(*arguments):
    return main(["bench", "form", *map(str, arguments)])


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_what_cannot_be_written_is_named_before_the_work(made, tmp_path, capsys, option):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for target, message in (
        (tmp_path, "this is a folder; give a file"),
        (tmp_path / "none" / "a.png", "there is no folder .*none; make it first"),
        (tmp_path / "file" / "a.png", "Not a directory|is no folder"),
        (tmp_path / ("a" * 300), "name.* too long"),
        (tmp_path / "loop", "symbolic links"),
        ("/proc/a.png", "no file can be made in /proc"),
    ):
        assert bench(option, target) == 1
        output = capsys.readouterr()
        assert not made and output.out == ""
        assert pytest.raises(OutputError, check, [(option, Path(target))]).match(message)
        assert output.err.startswith(f"kamera: {option} {target}: ") and output.err.count("\n") == 1


def test_two_results_for_one_file_are_refused(made, tmp_path, capsys):
    (tmp_path / "link").symlink_to("a.png")
    for other in (tmp_path / "a.png", tmp_path / "link"):
        assert bench("--json", tmp_path / "a.png", "--plot", other) == 1
        assert "--json and --plot both write to" in capsys.readouterr().err and not made
    assert bench("--json", "-", "--plot", "-") == 1 and not made


def test_what_is_read_is_not_written(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the page is red")
    (tmp_path / "link.txt").symlink_to("a.txt")
    for command in (["encode", "--library", str(tmp_path / "lib")], ["ask", "what?", "--item"]):
        for target in ("a.txt", "link.txt"):
            assert main([*command, str(tmp_path / "a.txt"), "--json", str(tmp_path / target)]) == 1
            assert f"--json {tmp_path / target}: the command reads this file" in capsys.readouterr().err
    assert (tmp_path / "a.txt").read_text() == "the page is red" and not (tmp_path / "lib").exists()


def test_a_device_without_memory_is_named(monkeypatch, capsys):
    def full(_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore")

    monkeypatch.setattr(command_line.doctor_command, "run", full)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("kamera: the device has not enough memory (RESOURCE_EXHAUSTED: Out of")


def test_a_figure_of_an_unknown_kind_is_refused_before_the_work(made, tmp_path, capsys):
    assert bench("--plot", tmp_path / "a.xyz") == 1
    assert "a figure cannot be written as .xyz; expected .png" in capsys.readouterr().err and not made


def test_a_file_is_replaced_whole_and_a_link_stays_one(made, tmp_path):
    real = tmp_path / "real.json"
    real.write_text("before")
    real.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to("new.json")
    for path, file in ((link, real), (dangling, tmp_path / "new.json"), (tmp_path / "plain.json",) * 2):
        assert bench("--json", path) == 0
        assert file.read_text() == RESULT and not file.is_symlink()
    assert link.is_symlink() and dangling.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.iterdir())) == 5


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("before")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match=r"a\.json cannot be written \(No space left"):
        write(tmp_path / "a.json", "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_pipe_is_written_through(made, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert bench("--json", tmp_path / "pipe") == 0
    reader.join()
    assert read == [RESULT] and not (tmp_path / "pipe").is_file()
    monkeypatch.setattr(outputs, "PATIENCE", 0.1)
    with pytest.raises(OutputError, match="nothing reads the named pipe"):
        write(tmp_path / "pipe", "nobody")


def test_a_device_is_written_through_and_a_full_one_is_named(made, capsys):
    assert bench("--json", "/dev/null") == 0
    assert os.stat("/dev/null").st_rdev == os.makedev(1, 3)
    assert bench("--json", "/dev/full") == 1
    assert "/dev/full cannot be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_has_the_result_alone(made, capsys, name):
    assert bench("--json", name) == 0
    output = capsys.readouterr()
    assert output.out == RESULT and output.err.strip() == "a table"
    assert os.path.islink("/dev/stdout")


def test_a_figure_on_standard_output(made, capfdbinary, tmp_path):
    assert bench("--plot", "-") == 0
    assert capfdbinary.readouterr().out.startswith(b"\x89PNG")
    assert bench("--plot", tmp_path / "no-ending") == 0
    with Image.open(tmp_path / "no-ending") as figure:
        assert figure.size == (3, 2)


def test_a_folder_is_looked_at_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    for command in (
        ["demo", "--pages"],
        ["eval", "report", str(tmp_path), "--figures"],
        ["eval", "binding", "--output"],
        ["encode", str(tmp_path), "--library"],
    ):
        for target in (tmp_path / "file", tmp_path / "file" / "below", "/proc/here"):
            assert main([*command, str(target)]) == 1
            assert f"kamera: {command[-1]} {target}: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_unfinished_is_written_all_the_same(tmp_path, monkeypatch, capsys):
    def unfinished(_):
        raise UnfinishedError("two of three", {"done": 2}, 130)

    monkeypatch.setattr(command_line.doctor_command, "run", unfinished)
    assert main(["doctor", "--json", str(tmp_path / "a.json")]) == 130
    assert json.loads((tmp_path / "a.json").read_text()) == {"done": 2}
    assert capsys.readouterr().err == "two of three\n"


@pytest.mark.parametrize(("error", "status"), [(BrokenPipeError(32, "Broken pipe"), 0), (KeyboardInterrupt(), 130)])
def test_a_closed_pipe_and_an_interrupt_are_no_errors(monkeypatch, capsys, error, status):
    def raises(_):
        raise error

    monkeypatch.setattr(command_line.doctor_command, "run", raises)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == ("interrupted\n" if status else "")
