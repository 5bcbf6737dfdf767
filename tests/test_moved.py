"""Old import paths give the same objects, and say where they are now."""

import importlib
import subprocess
import sys

import pytest

import kamera_jax as kj
import models  # noqa: F401  its old paths too
from kamera_jax.moved import Moved

OLD = sorted(name for name, module in sys.modules.items() if isinstance(module, Moved))


def public(module):
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


@pytest.mark.parametrize("old", OLD)
def test_an_old_path_gives_what_the_new_one_does(old):
    new = importlib.import_module(sys.modules[old]._new)
    names = public(new)
    assert names or new.__name__.startswith("models.ports")
    for name in names:
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new.__name__}; the old path goes"):
            assert getattr(sys.modules[old], name) is getattr(new, name)
    with pytest.raises(AttributeError):
        _ = sys.modules[old].there_is_no_such_name


def test_statements_that_users_wrote():
    assert len(OLD) >= 30
    program = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
from kamera_jax.encode import form_patch, run_chunk
from kamera_jax.window import Window, append
from kamera_jax.patch import fit, nbytes
from kamera_jax.session import Session
from kamera_jax.policy import ReusePolicy
from kamera_jax.reuse import attend_in_place
from kamera_jax.lineage import staleness
from models.pdf import pdf_pages
from models.media import to_rgb
from models.decoder import DecoderConfig
from eval.cli import main
from eval.metrics import kl
import kamera_jax as kj
assert kj.form_patch is form_patch and kj.append is append and kj.patch.fit is fit and callable(kj.encode)
assert kj.staleness is staleness and kj.ReusePolicy is ReusePolicy and kj.Session is Session
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_functions_are_not_hidden_by_their_old_modules():
    assert callable(kj.encode) and callable(kj.replace) and callable(kj.patch.fit)
    with pytest.warns(DeprecationWarning, match="is now kamera_jax.window.reuse"):
        assert callable(kj.reuse.attend_in_place)
    assert not hasattr(kj, "there_is_no_such_name")
