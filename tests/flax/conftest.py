"""One thread: models this small are slower on several, beside other work much slower. What was compiled is kept.

Nearly all the time goes into compiling, a third of it into optimizing machine code that runs once or twice.
"""

import os
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 --xla_backend_optimization_level=0",
)
CACHE = Path(__file__).resolve().parents[2] / "build" / "jax-cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
