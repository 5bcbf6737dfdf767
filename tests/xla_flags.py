"""What the tests' programs are compiled with: importing this before anything is compiled sets it.

What is tested is the program, and not how fast XLA makes it. LLVM's lowest level takes two thirds of the time, and
without its fusion emitters XLA takes a third of what is left.
"""

import os
from importlib.metadata import version

from jaxlib import xla_client

QUICK = " --xla_cpu_use_fusion_emitters=false"
"""A flag that the version of XLA in jax 0.10 knows."""

given = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")
FLAGS = given + (QUICK if version("jax").startswith("0.10.") else "")
"""For a process that a test starts: it compiles as quickly as this one, and computes the same to the bit."""

# Other versions do not know the flag and end the process for it, and libtpu is one: it is taken back once it is read.
os.environ["XLA_FLAGS"] = FLAGS
xla_client.CompileOptions()
os.environ["XLA_FLAGS"] = given
