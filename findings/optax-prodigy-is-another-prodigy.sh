#!/usr/bin/env bash
# Prodigy finds its own learning rate, so optax.contrib.prodigy and the authors' prodigyopt should behave alike with their
# default settings. But optax always applies Adam's bias correction and cannot turn it off; prodigyopt applies it only on
# request. On the same problem their estimates d, on which the whole run rests, are up to thousands of times apart in the
# first dozens of steps, and settle at different values. With use_bias_correction=True they agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 prodigyopt==1.1.2 \
    optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from prodigyopt import Prodigy

rng = np.random.default_rng(0)
start, target = rng.normal(0, 0.02, (4, 16)).astype("f4"), rng.normal(0, 1, (4, 16)).astype("f4")
curvature = np.exp(rng.normal(0, 1, (4, 16))).astype("f4")


def loss(rows, curvature, target):
    return (curvature * (rows - target) ** 2).mean()


def with_prodigyopt(steps, **options):
    rows = torch.nn.Parameter(torch.tensor(start))
    optimizer = Prodigy([rows], lr=1.0, **options)
    d = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(rows, torch.tensor(curvature), torch.tensor(target)).backward()
        optimizer.step()
        d.append(optimizer.param_groups[0]["d"])
    return d


def with_optax(steps):
    optimizer = optax.contrib.prodigy(1.0)
    rows = jnp.array(start)
    state = optimizer.init(rows)
    d = []
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(rows, curvature, target), state, rows)
        rows = optax.apply_updates(rows, updates)
        d.append(float(state.estim_lr))
    return d


print(*(f"{name} {version(name)}" for name in ("torch", "prodigyopt", "jax", "optax")), sep=", ")
ours, plain, corrected = with_optax(60), with_prodigyopt(60), with_prodigyopt(60, use_bias_correction=True)
print("step  optax      prodigyopt  prodigyopt, use_bias_correction=True")
for step in (1, 5, 10, 15, 20, 30, 40, 60):
    print(f"{step:4}  {ours[step - 1]:.3e}  {plain[step - 1]:.3e}   {corrected[step - 1]:.3e}")
apart = max(np.array(plain) / np.array(ours))
print(f"prodigyopt's d is up to {apart:.0f} times optax's; asked to correct, it is within", end=" ")
near = np.abs(np.array(corrected) / np.array(ours) - 1).max()
print(f"{near:.1e}")
assert apart > 100 and near < 1e-3, (apart, near)
print("as described: two Prodigies, told apart by a switch that only one of them has")
PYTHON
