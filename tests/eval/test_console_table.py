"""Long tables are written as they are: in time that grows with them, each row once."""

import io

from rich.console import Console

from eval.report.console import PLAIN_ROWS, show


def written(count):
    file = io.StringIO()
    rows = [[f"{i:04d}", "x" * (i % 3), str(i)] for i in range(count)]
    show(Console(file=file, width=80, color_system=None), "a title", ("key", "of", "size"), rows, "a note")
    return file.getvalue().splitlines()


def test_long_tables_look_like_short_ones():
    short = written(PLAIN_ROWS)
    long = written(PLAIN_ROWS + 1)
    assert [line.split() for line in long[:-3]] == [line.split() for line in short[:-2]]
    assert long[:3] == [line.rstrip() for line in short[:3]] and long[-2:] == ["a note", ""]
    assert len(long) == PLAIN_ROWS + 1 + 4
