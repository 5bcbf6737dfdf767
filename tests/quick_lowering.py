"""What lowering is spared in tests.

JAX makes an MLIR context for each program, which takes three quarters of the time of lowering a small one: every
dialect is loaded. Programs of one thread share one here, and a new one is made now and then, since a context keeps what
it has made. What is lowered is the same.
"""

import functools
import threading
from importlib.metadata import version

from jax._src.interpreters import mlir

PROGRAMS = 64
"""How many share a context."""


class Shared(threading.local):
    context = None
    left = 0


shared = Shared()


def context():
    if not shared.left:
        shared.context = mlir.make_ir_context()
        shared.left = PROGRAMS
    shared.left -= 1
    return shared.context


def share_contexts():
    # JAX's own, and no part of what it promises: other versions lower as they do.
    if not version("jax").startswith("0.10."):
        return
    made = mlir.ModuleContext.__init__

    @functools.wraps(made)
    def with_shared_context(self, **options):
        if options.get("context") is None:
            options["context"] = context()
        made(self, **options)

    mlir.ModuleContext.__init__ = with_shared_context
