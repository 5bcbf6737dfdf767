"""Devices and shardings: what does not divide, and models that are loaded onto a device or moved."""

import os
import subprocess
import sys


def on_four_devices(program, *arguments):
    """Run a program in a process of its own, where the host has four devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ".",
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sharding_that_does_not_divide_is_no_corruption(tmp_path):
    """The pack is in order, and nothing says to delete it: along any axis, of any rank, stored exactly or in int8."""
    on_four_devices(
        """
import sys
from pathlib import Path
import jax, pytest
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import kamera_jax as kj
from kamera_jax.errors import LibraryCorruptError
from tests.kamera_jax.library.made import chunk

mesh = jax.make_mesh((4,), ("x",))
for storage in ("exact", "int8"):
    lib = kj.ChunkLibrary.open(Path(sys.argv[1]) / storage, mode="a")
    lib.put_many([chunk(i, tokens=10) for i in range(3)], storage=storage)
    (pack,) = lib.packs()
    N, L, T, F = lib.restore(pack)[0].arrays["kv.rot"].shape
    bad = [spec for spec, size in ((P("x"), N), (P(None, "x"), L), (P(None, None, "x"), T),
                                   (P(None, None, None, "x"), F)) if size % 4]
    assert bad
    for spec in [*bad, P(None, None, None, None, "x")]:
        with pytest.raises(ValueError, match="sharding is .*the pack is in order") as refused:
            lib.restore(pack, sharding=NamedSharding(mesh, spec))
        assert not isinstance(refused.value, LibraryCorruptError) and "delete" not in str(refused.value)
    for other in (jax.devices()[1], mesh, "x"):
        with pytest.raises(ValueError, match="expected a jax.sharding.Sharding"):
            lib.restore(pack, sharding=other)
    assert lib.verify().ok
    there = jax.sharding.SingleDeviceSharding(jax.devices()[2])
    for ours, theirs in zip(lib.restore(pack, sharding=there), lib.restore(pack), strict=True):
        assert ours.arrays["kv.rot"].devices() == {jax.devices()[2]}
        np.testing.assert_array_equal(np.asarray(ours.arrays["kv.rot"]), np.asarray(theirs.arrays["kv.rot"]))
""",
        tmp_path,
    )
