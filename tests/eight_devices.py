"""Programs that run in a process of their own, where the host has several devices: eight, if nothing is said."""

import os
import subprocess
import sys

from tests.xla_flags import FLAGS

COMMON = """
import warnings
import numpy as np, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import kamera_jax as kj
from models import load
jax.config.update("jax_default_matmul_precision", "highest")
warnings.simplefilter("error")

def close(given, wanted):
    given = np.asarray(given, np.float64)
    wanted = np.asarray(wanted, np.float64)
    assert np.linalg.norm(given - wanted) <= 1e-5 * np.linalg.norm(wanted), np.linalg.norm(given - wanted)

def same(given, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), given, wanted)

def placed(tree, placement):
    '''Whether all arrays lie where the placement says, or are small and not committed to a device.'''
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(placement.shardings(tree)), strict=True
    ):
        if isinstance(leaf, jax.Array) and leaf.ndim and (leaf.committed or leaf.size > 4096):
            where = f"{jax.tree_util.keystr(path)} lies as {leaf.sharding}, not {wanted}"
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), where
"""


def on_eight_devices(program, flags="", compiled=FLAGS):
    """Run `COMMON` and a program where the host has eight devices, with more flags of XLA; see `on_devices`."""
    return on_devices(8, COMMON + program, flags=flags, compiled=compiled)


def on_devices(count, program, *arguments, flags="", compiled=FLAGS):
    """Run a program where the host has so many devices, compiled as here, and give back what it prints."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {compiled} {flags}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ".",
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
