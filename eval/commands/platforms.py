"""Where JAX looks for devices: not for a TPU on a machine that has none, only because libtpu is installed.

There libtpu asks the network what kind of TPU this is, for seconds, and writes several lines of errors.
"""

import os
from glob import glob
from importlib.util import find_spec
from pkgutil import iter_modules

_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""Where a TPU is, if there is one."""

_OWN = ("TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH")
"""What JAX and libtpu set themselves, whether or not there is a TPU."""


def skip_missing_tpu() -> None:
    """Keep JAX from starting libtpu where there is no TPU.

    Everything stays as it is where the user has chosen (``JAX_PLATFORMS``, or JAX's configuration), where there is a
    device or a setting of a TPU, or one that JAX recognises, whose failures are then reported; and where plugins are
    installed of which it is not known what they are for.
    """
    import jax  # it has looked for a TPU itself when this returns

    if jax.config.values.get("jax_platforms") is not None or find_spec("libtpu") is None or _may_have_tpu():
        return
    plugins = _plugins()
    if all(name.startswith("xla_cuda") for name in plugins):
        jax.config.update("jax_platforms", "cuda,cpu" if plugins else "cpu")


def _may_have_tpu() -> bool:
    settings = [name for name in os.environ if name.startswith(("TPU_", "CLOUD_TPU_")) and name not in _OWN]
    return bool(settings or "JAX_FORCE_TPU_INIT" in os.environ or any(map(glob, _DEVICES)))


def _plugins() -> list[str]:
    """JAX's plugins by the names of their modules."""
    spec = find_spec("jax_plugins")
    return [] if spec is None else [each.name for each in iter_modules(spec.submodule_search_locations)]
