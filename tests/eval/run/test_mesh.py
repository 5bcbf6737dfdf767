"""An evaluation of a model on a mesh, by the command line, gives the samples of one device."""

from tests.eight_devices import on_eight_devices


def test_samples_are_those_of_one_device(tmp_path):
    on_eight_devices(f"""
import json
from pathlib import Path
from eval.commands.main import main
from eval.run import runner

def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]

def alike(given, wanted, path=""):
    assert type(given) is type(wanted), path
    if isinstance(given, dict):
        assert given.keys() == wanted.keys(), path
        [alike(given[name], wanted[name], path + "/" + name) for name in given]
    elif isinstance(given, list):
        assert len(given) == len(wanted), path
        [alike(mine, theirs, path + "[]") for mine, theirs in zip(given, wanted)]
    elif isinstance(given, float):
        np.testing.assert_allclose(given, wanted, rtol=2e-3, atol=2e-5, err_msg=path)
    else:
        assert given == wanted, (path, given, wanted)

folder = Path({str(tmp_path)!r})
run = runner.Run("binding", "kamera-tiny-gqa", ("patch:2", "cacheblend:0.25"), seeds=(5,), limit=1, batch=1, devices=1)
results = {{"one": runner.evaluate(load("kamera-tiny-gqa"), run, folder / "one")}}
options = "--seeds 5 --limit 1 --batch 1 --methods patch:2,cacheblend:0.25 --mesh model=2,fsdp=4"
assert main(["eval", "binding", *options.split(), "--output", str(folder / "many")]) == 0
results["many"] = json.loads((folder / "many" / "results.json").read_text())
mesh = jax.make_mesh((4, 2), ("data", "model"))
results["data"] = runner.evaluate(load("kamera-tiny-gqa", mesh=mesh), run, folder / "data")
for file in ("samples.jsonl", "contexts.jsonl"):
    for name in ("many", "data"):
        alike(lines(folder / name / file), lines(folder / "one" / file), file)
assert results["many"]["config"]["mesh"] == "model=2,fsdp=4" and "mesh" not in results["one"]["config"]
assert results["many"]["config"]["devices"] == 8 and results["one"]["config"]["devices"] == 1
assert not results["many"].get("failed")
""")
