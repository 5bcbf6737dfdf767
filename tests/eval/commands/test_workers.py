"""`kamera encode` in several processes: the same library as by one, whoever is killed, and nothing twice."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import kamera_jax as kj
from eval.commands import workers
from eval.commands.encoding import Encoded
from eval.commands.items import NoItemsError, Source, part_of, pieces, run_length, sources
from eval.commands.main import main
from eval.commands.worker import cores_of
from eval.tiny import pages
from tests.eval.commands import dying
from tests.kamera_jax.library.made import bits
from tests.xla_flags import FLAGS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images, and a PDF file of three pages, one of which is an image again."""
    folder = tmp_path_factory.mktemp("shared")
    rng = np.random.default_rng(21)
    drawn = [pages.render(rng.integers(0, pages.N_CELLS, (2, 3))) for _ in range(9)]
    for i in range(7):
        drawn[i].save(folder / f"{i}.png")
    drawn[7].save(folder / "report.pdf", save_all=True, append_images=[drawn[8], drawn[7]], resolution=72)
    return folder


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The library that one process makes."""
    library = tmp_path_factory.mktemp("alone") / "lib"
    assert main(["encode", *arguments(folder, library)]) == 0
    return library


def arguments(folder, library, *more):
    return [str(folder), "--library", str(library), "--dpi", "72", "--json", str(library.with_suffix(".json")), *more]


def told(library):
    return json.loads(library.with_suffix(".json").read_text())


def check_same(library, alone):
    """The same keys with the same bytes, each once."""
    found = kj.ChunkLibrary.open(library)
    wanted = kj.ChunkLibrary.open(alone)
    assert sorted(found.keys()) == sorted(wanted.keys())
    assert all(bits(found.get(key)) == bits(wanted.get(key)) for key in wanted.keys())
    assert all(len(found._index.packs_of(key)) == 1 for key in found.keys()), "twice"
    assert found.verify().ok and not list((library / "staging").iterdir())


def test_a_worker_that_dies_is_named_and_the_next_run_does_what_is_missing(
    folder, alone, tmp_path, monkeypatch, capsys
):
    library = tmp_path / "lib"
    monkeypatch.setattr(workers, "work", dying.work)
    assert main(["encode", *arguments(folder, library, "--workers", "2")]) == 1
    output = capsys.readouterr()
    result = told(library)
    assert (result["encoded"], result["known"], result["failed"]) == (7, 1, 2), output.err
    lost = [item for item in result["items"] if item["status"] == "failed"]
    assert [died] == result["workers_died"] if (died := lost[0]["error"].removesuffix(" before it was stored")) else 0
    assert died.startswith("worker 2 (process ") and died.endswith("was killed by SIGKILL")
    assert f"kamera: {died}; 8 of 10 items are in {library}, and the same command" in output.err
    assert all(f"failed: {item['name']}: {died}" in output.out.replace("\n", " ") for item in lost)
    stored = {item["key"] for item in result["items"] if item["key"]}
    assert stored == set(kj.ChunkLibrary.open(library).keys())
    assert main(["encode", *arguments(folder, library)]) == 0
    again = told(library)
    assert [item["name"] for item in again["items"]] == [item["name"] for item in result["items"]]
    assert {item["name"] for item in again["items"] if item["status"] == "encoded"} == {each["name"] for each in lost}
    check_same(library, alone)


def test_shares_of_several_hosts_make_up_all(folder, alone, tmp_path, capsys):
    library = tmp_path / "lib"
    names = []
    for share, more in (("1/3", ["--lock", "lease"]), ("2/3", []), ("3/3", [])):
        assert main(["encode", *arguments(folder, library, "--share", share, *more)]) == 0
        names.append([item["name"] for item in told(library)["items"]])
    assert all(names) and sorted(sum(names, [])) == sorted(
        [*(f"{i}.png" for i in range(7)), *(f"report.pdf, page {i}" for i in (1, 2, 3))]
    )
    check_same(library, alone)
    assert (library / "leases").is_dir() and not (library / "LOCK").exists()
    assert main(["encode", *arguments(folder, library, "--lock", "file")]) == 1
    assert "was made with lock='lease'" in capsys.readouterr().err
    assert main(["encode", *arguments(folder, tmp_path / "no", "--share", "1/11")]) == 1
    assert "10 items or runs of pages cannot be shared by 11 processes" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("option", "wrong", "expected"),
    [
        *(("--workers", wrong, "expected a whole number from 1 to 256") for wrong in ("0", "-1", "two", "1.5", "257")),
        *(
            ("--share", wrong, "expected one of how many shares, as in 2/4")
            for wrong in ("0/4", "5/4", "2", "a/b", "/")
        ),
    ],
)
def test_numbers_that_are_none(folder, tmp_path, capsys, option, wrong, expected):
    with pytest.raises(SystemExit):
        main(["encode", *arguments(folder, tmp_path / "lib", f"{option}={wrong}")])
    assert expected in capsys.readouterr().err and not (tmp_path / "lib").exists()


def test_files_are_cut_into_runs_of_pages(folder):
    files = sources([folder, folder / "report.pdf:2-3"], dpi=72)
    origins = [(origin.file, origin.page) for source in files for origin in source.origins()]
    assert origins == [(part.origin.file, part.origin.page) for source in files for part in source.parts()]
    for most in (1, 2, 3):
        cut = pieces(files, most)
        assert [(o.file, o.page) for source in cut for o in source.origins()] == origins
        assert max(source.count for source in cut) == min(most, 3)
        names = [name for source in cut for name, _ in source.items()]
        assert names == [name for source in files for name, _ in source.items()]
    shares = [part_of(files, i, 3) for i in range(3)]
    assert sorted(o.name for share in shares for source in share for o in source.origins()) == sorted(names)
    assert run_length([Source(Path("a.pdf"), 1000, 72)], 4) == 16 and run_length(files, 2) == 1
    with pytest.raises(NoItemsError, match="cannot be shared by 20"):
        part_of(files, 0, 20)


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([4, 6, 7], 2, [[4], [6, 7]]),
        ([0, 5], 3, [[0], [0], [5]]),
        ([3], 2, [[3], [3]]),
    ],
)
def test_workers_share_the_cores(cores, count, shares):
    found = [cores_of(i, count, cores) for i in range(count)]
    assert all(map(len, found)) and {core for share in found for core in share} == set(cores)
    assert [len(share) for share in found] == [len(share) for share in shares]


def test_what_two_encoded_at_once_is_stored_once(tmp_path):
    """The library keeps the first; the other outcome says that it was there."""
    crew = workers._Crew([Source(tmp_path / "a.png", 1, 72), Source(tmp_path / "b.pdf", 2, 72)], lambda each: None)
    crew._take(1, Encoded("b, 2", "encoded", "key 2", 8, 8, 100, 1.0, origin=kj.Origin("b.pdf", 2)))
    crew._take(1, Encoded("b, 1", "encoded", "key 1", 8, 8, 100, 1.0, origin=kj.Origin("b.pdf", 1)))
    crew._take(0, Encoded("a", "encoded", "key 2", 8, 8, 100, 1.0, origin=kj.Origin("a.png")))
    crew.settle()
    assert [each.name for each in crew.done.items] == ["a", "b, 1", "b, 2"]
    assert [each.status for each in crew.done.items] == ["encoded", "encoded", "known"]
    assert crew.done.items[2].origin.encoded is None


def test_what_a_worker_had_is_named():
    file = Source(Path("b.pdf"), 3, 72, first=4)
    heard = [Encoded("b, 5", "encoded", "key", origin=kj.Origin("b.pdf", 5))]
    assert [name for name, _ in workers._missing(file, heard, True)] == ["b.pdf, page 4", "b.pdf, page 6"]
    clip = Source(Path("clip.mp4"), 1, 72, seconds=4.0)
    assert [name for name, _ in workers._missing(clip, (), False)] == ["clip.mp4"]
    assert workers._missing(clip, [Encoded("clip, 0 s", "encoded", "key")], True) == []


def started(*arguments, flags=""):
    """A process that computes what this one does, to the bit."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{FLAGS} {flags}", "JAX_DEFAULT_MATMUL_PRECISION": "highest"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(folder, library, *thens):
    """A job of as many processes, each of which encodes its share and then does something; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        started("tests.eval.commands.job", index, len(thens), port, folder, library, then)
        for index, then in enumerate(thens)
    ]
    outputs = [list(itertools.takewhile("encoded\n".__ne__, process.stdout)) for process in running]
    errors = [process.communicate(timeout=60)[1] for process in reversed(running)]  # the coordinator last
    return [process.returncode for process in running], outputs, "\n".join(errors)


def test_a_job_encodes_shares_and_restores_all_on_its_mesh(folder, alone, tmp_path):
    library = tmp_path / "lib"
    statuses, outputs, errors = job(folder, library, "restore", "restore")
    assert statuses == [0, 0], errors
    assert [output[-1] for output in outputs] == ["9\n", "9\n"]
    shares = [json.loads((tmp_path / f"{index}.json").read_text())["items"] for index in (0, 1)]
    assert [len(share) for share in shares] == [5, 5] and not {each["name"] for each in shares[0]} & {
        each["name"] for each in shares[1]
    }
    check_same(library, alone)


@pytest.mark.soak
@pytest.mark.parametrize("count", [2, 4])
def test_a_job_of_which_one_is_killed_is_run_again(folder, alone, tmp_path, count):
    library = tmp_path / "lib"
    thens = ["die" if index == count // 2 else "leave" for index in range(count)]
    statuses, _, errors = job(folder, library, *thens)
    assert statuses == [-signal.SIGKILL if then == "die" else 0 for then in thens], errors
    assert set(kj.ChunkLibrary.open(library).keys()) < set(kj.ChunkLibrary.open(alone).keys())
    statuses, _, errors = job(folder, library, *["leave"] * count)
    assert statuses == [0] * count, errors
    check_same(library, alone)
    mesh = started("tests.eval.commands.job", "restored", library, flags="--xla_force_host_platform_device_count=2")
    output, error = mesh.communicate(timeout=120)
    assert output.splitlines()[-1:] == ["9"], error


def command(folder, library, *more):
    return started("eval.commands.main", "encode", *arguments(folder, library, *more))


def finished(folder, library, *more):
    process = command(folder, library, *more)
    output, error = process.communicate(timeout=240)
    assert "Traceback" not in error, output + error
    return process.returncode


@pytest.mark.soak
def test_ctrl_c_stores_what_is_there(folder, alone, tmp_path):
    library = tmp_path / "lib"
    process = command(folder, library, "--workers", "2")
    while not (library / "LIBRARY.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    result = told(library)
    stored = result["encoded"] + result["known"]
    assert process.returncode == 130 and f"interrupted: {stored} of 10 items are in" in error
    assert {item["key"] for item in result["items"]} == set(kj.ChunkLibrary.open(library).keys())
    assert "Traceback" not in error and finished(folder, library, "--workers", "2") == 0
    check_same(library, alone)


@pytest.mark.soak
def test_four_workers_one_of_them_killed_at_any_time(folder, alone, tmp_path):
    library = tmp_path / "lib"
    process = command(folder, library, "--workers", "4")
    spawned = []
    while len(spawned) < 4:
        time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        spawned = [int(each) for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
    time.sleep(random.Random(4).uniform(0, 10))
    os.kill(spawned[1], signal.SIGKILL)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 1 and "was killed by SIGKILL" in error, output + error
    assert finished(folder, library, "--workers", "4") == 0
    check_same(library, alone)


@pytest.mark.soak
def test_a_model_that_cannot_be_loaded_is_named_once(folder, tmp_path, capsys):
    assert main(["encode", *arguments(folder, tmp_path / "lib", "--model", str(tmp_path), "--workers", "2")]) == 1
    error = capsys.readouterr().err
    assert error.count("kamera: ") == 1 and str(tmp_path) in error and not (tmp_path / "lib").exists()
