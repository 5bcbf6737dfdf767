"""What the tests' programs are compiled with: importing this before anything is compiled sets it.

What is tested is the program, and not how fast XLA makes it. LLVM's lowest level takes two thirds of the time, and
without its fusion emitters XLA takes half of that.
"""

import os
from importlib.metadata import version

from jaxlib import xla_client

EMITTERS = " --xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else ""
given = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")
FLAGS = given + EMITTERS
"""For a process that has to compute what this one does, to the bit."""

# Other versions do not know the flag and end the process for it, and libtpu is one: it is taken back once it is read.
os.environ["XLA_FLAGS"] = FLAGS
xla_client.CompileOptions()
os.environ["XLA_FLAGS"] = given
