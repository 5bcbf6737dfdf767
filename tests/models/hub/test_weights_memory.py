"""What reading a checkpoint takes of the host's memory beside the arrays that it becomes, as the kernel counts it."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models.blocks.params import is_info
from models.hub.tensor_files import INDEX, SINGLE, write_tensors
from models.ports.llama.config import config_from_hf
from models.ports.llama.port import ARCHITECTURES
from tests.eight_devices import on_eight_devices

CONFIG = {
    "model_type": "llama",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "dtype": "bfloat16",
}
FILES = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of 500 MB in bfloat16, in several files, and its bytes and those of its largest group of tensors."""
    folder = tmp_path_factory.mktemp("hub")
    port = next(each for each in ARCHITECTURES if each.name == "llama")
    config = config_from_hf(CONFIG)
    infos = jax.tree.leaves(port.declaration(config), is_leaf=is_info)
    flat, _ = jax.tree_util.tree_flatten_with_path(port.declaration(config), is_leaf=is_info)
    shapes = {"/".join(str(key.key) for key in path): info.shape for path, info in flat}
    tensors = {name: tensor.shape for name, tensor in port.weight_table(config).tensors(shapes).items()}
    names = sorted(tensors)
    row = np.linspace(-0.02, 0.02, 4096, dtype=np.float32).astype(ml_dtypes.bfloat16)
    placed = {}
    for number in range(FILES):
        own = {name: tensors[name] for name in names[number::FILES]}
        write_tensors(folder, "BF16", own, (np.resize(row, shape) for shape in own.values()))
        name = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        (folder / SINGLE).rename(folder / name)
        placed |= dict.fromkeys(own, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    build_tokenizer(folder)
    sizes = [2 * int(np.prod(info.shape)) for info in infos]
    return folder, sum(sizes), max(sizes)


MEASURED = """
import gc
from pathlib import Path

def memory(field):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])

mesh = {mesh}
placed_on = {{}} if mesh is None else {{"mesh": jax.make_mesh(*mesh)}}
load("kamera-tiny-gqa", **placed_on)  # what is loaded once
gc.collect()
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
vlm = load({folder!r}, **placed_on)
peak = memory("VmHWM")
jax.block_until_ready(vlm.params)
leaves = jax.tree.leaves(vlm.params)
device = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
assert {{leaf.dtype.name for leaf in leaves}} == {{"bfloat16"}}
print("MEASURED", peak - before - device, device)
"""


@pytest.mark.parametrize(
    ("mesh", "copies"),
    [(((8,), ("model",)), 1), pytest.param(((2, 4), ("copies", "model")), 2, marks=pytest.mark.soak), (None, 1)],
    ids=["eight", "copies", "one"],
)
def test_no_copy_of_the_whole_lies_on_the_host(checkpoint, mesh, copies):
    folder, whole, largest = checkpoint
    printed = on_eight_devices(MEASURED.format(mesh=mesh, folder=str(folder)))
    beside, device = (int(each) for each in printed.split("MEASURED")[1].split())
    assert whole * copies <= device < 1.01 * whole * copies
    print(f"{beside / largest:.2f} of the largest group, {largest / 2**20:.0f} MiB, beside {device / 2**20:.0f} MiB")
    assert beside <= 1.2 * largest < 0.4 * whole
