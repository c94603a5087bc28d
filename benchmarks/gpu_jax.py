"""Train the bundled model in JAX, in a process of its own, for `benchmarks.gpu`.

    python -m benchmarks.gpu_jax PRECISION STEPS

Prints one line of JSON: seconds by stage, how much longer the first ten steps took than the others (compiling, or
reading from the compilation cache), samples per second, and the first losses.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> int:
    """Train and print."""
    precision, steps = sys.argv[1], int(sys.argv[2])
    begun = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from benchmarks.flax import ROOT
    from tiutils import concept
    from tiutils.config import TrainingConfig
    from tiutils.flax import models, token_embedding
    from tiutils.flax.training import make_mesh, prepare, run_steps
    from tiutils.io.pretrained import BUNDLED_MODEL

    imported = time.perf_counter()
    photos, word = ROOT / "data" / "concepts" / "wood-toy", "<wood-toy>"
    config = TrainingConfig(
        str(photos), word, "toy", max_train_steps=steps, mixed_precision=precision
    )
    parts = models.load(
        str(BUNDLED_MODEL), dtype={"no": jnp.float32, "bf16": jnp.bfloat16}[precision]
    )
    placeholder = token_embedding.add_placeholder(parts, word, initializer_token="toy")
    mesh = make_mesh(config.train_batch_size, jax.devices()[:1])
    training = prepare(parts, placeholder, concept.load(photos), config, mesh)
    jax.block_until_ready(training.frozen)
    prepared = time.perf_counter()
    at, losses = [prepared], []
    for step, _, loss in run_steps(training, 0):
        losses.append(float(loss))
        if step % 10 == 9:
            at.append(time.perf_counter())
    # the first two dispatches go to the device together
    each = (at[-1] - at[1]) / (len(losses) - 10)
    found = {
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
        "import_seconds": imported - begun,
        "prepare_seconds": prepared - imported,
        "first_seconds": at[1] - prepared,
        "compile_seconds": at[1] - prepared - 10 * each,
        "ms": 1000 * each,
        "samples_a_second": config.train_batch_size / each,
        "losses": losses[:20],
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
