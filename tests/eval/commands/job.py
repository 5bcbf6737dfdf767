"""A process of a job of `jax.distributed` on one machine that encodes its share, and restores what all have encoded.

`python -m tests.eval.commands.job INDEX COUNT PORT FOLDER LIBRARY restore|leave|die`
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kamera_jax as kj


def restored(library, mesh):
    """How many chunks of a library are, on the devices of a mesh, what each is by its key."""
    lib = kj.ChunkLibrary.open(library)
    count = 0
    split = NamedSharding(mesh, PartitionSpec(None, None, None, "features"))
    for pack in sorted(lib.packs()):
        for stacked in lib.restore(pack, sharding=split):
            whole = np.stack([np.asarray(lib.get(key).kv.rot) for key in stacked.keys])
            rot = stacked.arrays["kv.rot"]
            assert rot.sharding == split and rot.shape == whole.shape
            for shard in rot.addressable_shards:
                assert shard.data.shape[-1] == whole.shape[-1] // mesh.size
                assert np.array_equal(np.asarray(shard.data), whole[shard.index])
            count += len(stacked.keys)
    assert count == len(lib.keys()) and lib.verify().ok
    return count


def die_at(number):
    """Kill this process where it encodes its item of a number."""
    from eval.commands import encoding

    real = encoding.encode_segment
    begun = []

    def encode_segment(vlm, segment):
        begun.append(segment)
        if len(begun) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(vlm, segment)

    encoding.encode_segment = encode_segment
    encoding.BATCH = 1


def main(index, count, port, folder, library, then):
    # The first is the job's coordinator: the others end with it, and where another dies it ends them after a while.
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=600)
    from eval.commands.main import main as kamera

    if then == "die":
        die_at(2)
    told = Path(library).with_name(f"{index}.json")
    status = kamera(["encode", folder, "--library", library, "--dpi", "72", "--json", str(told)])
    if then == "restore":
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("all have encoded")
        print(restored(library, Mesh(np.array(jax.devices()), ("features",))), flush=True)
    print("encoded", flush=True)
    sys.stdin.read()
    os._exit(status)  # where one of the job has died, leaving it in order takes minutes


if __name__ == "__main__":
    if sys.argv[1] == "restored":
        print(restored(sys.argv[2], Mesh(np.array(jax.devices()[:2]), ("features",))))
    else:
        main(*map(int, sys.argv[1:4]), *sys.argv[4:])
