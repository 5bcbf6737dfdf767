"""Strict JAX for every test, and the torch oracle only where it is asked for."""

import gc
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

import tests.xla_flags  # noqa: F401
from eval.commands import compile_cache
from tests import quick_lowering

quick_lowering.share_contexts()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# As the command does, so that the next run finds what this one compiled; and for the processes that tests start.
if folder := compile_cache.enable():
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# The first example compiles, so a deadline says nothing; the same examples every time, so a failure is the change's.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


# Tracing makes objects by the hundred thousand and leaves few in circles: looking for those took a tenth of all time.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish():
    # What is imported stays, and is not looked through again.
    gc.collect()
    gc.freeze()


MAPPED = 25_000
"""Memory maps of a process, well below the 65,530 that Linux allows: LLVM aborts where there are no more."""

PROGRAMS = 250
"""Compiled or read between two looks at the maps: a look takes milliseconds, and a program brings a few maps."""

programs = 0


def count_programs(event, seconds, **_):
    global programs
    programs += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(count_programs)


def pytest_runtest_teardown(item, nextitem):
    # Every compiled program takes a few, and a worker compiles thousands; one that is asked for again is made again.
    global programs
    maps = Path("/proc/self/maps")
    if programs >= PROGRAMS and maps.exists():
        programs = 0
        if maps.read_bytes().count(b"\n") > MAPPED:
            jax.clear_caches()


LONGEST = (
    "test_mesh_windows.py",
    "test_programs.py",
    "test_howtos.py",
    "test_strict.py",
    "test_demo_video.py",
    "test_demo_text.py",
    "test_mesh_ports.py",
    "test_platforms.py",
    "test_readme.py",
    "test_in_place.py",
    "test_demo.py",
    "test_tpu_compile.py",
    "test_chunk_attention_tpu.py",
    "test_chunk_attention.py",
    "test_relocate_patch_tpu.py",
    "test_runner.py",
    "test_relocate_patch.py",
    "test_train.py",
    "test_window_machine.py",
    "test_methods.py",
    "test_vlm.py",
    "test_session.py",
    "test_towers.py",
)
"""Files that begin a run, so that no worker is left with one of them at the end."""


def without_parity(config):
    return config.option.markexpr in ("soak", "site") or "not parity" in config.option.markexpr


def pytest_configure(config):
    if without_parity(config):
        # Where torch is installed all the same: whoever needs it fails as where it is not.
        sys.meta_path[:] = [WithoutTorch if finder is WithOperators else finder for finder in sys.meta_path]


class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname in ("torch", "torchvision") else super().find_spec(fullname, path, target)


class WithOperators(PathFinder):
    """Declares two operators of torchvision where its own library does not load: beside a torch for CPUs alone.

    What transformers' video processors call of it is Python, and works without that library.
    """

    operators = None
    looked = False

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = super().find_spec(fullname, path, target)
        if fullname == "torchvision" and spec is not None and not cls.looked:
            import torch

            cls.looked = True
            try:
                torch.ops.load_library(str(next(Path(spec.origin).parent.glob("_C.*"))))
            except OSError:
                cls.operators = torch.library.Library("torchvision", "DEF")
                for name in ("nms", "qnms"):
                    cls.operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return spec


# Before the first module of tests/parity is imported, which may be before pytest is configured.
sys.meta_path[:] = [WithOperators if finder is PathFinder else finder for finder in sys.meta_path]


def pytest_ignore_collect(collection_path, config):
    # Modules in tests/parity import torch at the top; a run without them must not need it, not even to deselect them.
    if without_parity(config) and collection_path == config.rootpath / "tests" / "parity":
        return True
    return None


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.is_relative_to(config.rootpath / "tests" / "parity"):
            item.add_marker(pytest.mark.parity)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_make_parametrize_id(val, argname):
    return f"{{{val}}}" if argname in ("pair", "far_pair") else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.option.dist != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        """What shares models and compiled programs goes to one worker: a pair of models, or else a file."""

        def _split_scope(self, nodeid):
            pair = re.search(r"\{.*\}", nodeid)
            return pair.group() if pair else nodeid.partition("::")[0]

    return Scheduling(config, log)


def pytest_runtest_setup(item):
    if item.get_closest_marker("parity"):
        # A missing oracle is a failure, never a skip.
        import torch  # noqa: F401
