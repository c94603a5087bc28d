#!/usr/bin/env bash
# bitsandbytes keeps the state of parameters with fewer than 4096 numbers at 32 bits. With Stable Diffusion 1.5 (768
# numbers a vector), 8-bit Adam therefore changes nothing for words of up to five vectors: their path is AdamW's, up to
# rounding. With a sixth vector, the first one changes course as well, though its own task has not changed. You might expect
# each vector to move on its own, no matter how many there are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 bitsandbytes==0.50.2
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from bitsandbytes.optim import AdamW8bit

noise = torch.Generator().manual_seed(0)
start = 0.02 * torch.randn(8, 768, generator=noise)
target = torch.randn(8, 768, generator=noise)
size = torch.exp(1.5 * torch.randn(768, generator=noise))  # made-up gradients, of very different sizes within a vector
draws = torch.randn(60, 8, 768, generator=noise)


def first_vector(vectors, optimizer):
    """How the first of so many vectors has moved in 60 steps, and what Adam's first moment is kept in."""
    rows = torch.nn.Parameter(start[:vectors].clone())
    optimizer = optimizer([rows], lr=5e-3, weight_decay=0.0)
    for draw in draws:
        rows.grad = 1e-3 * size * (rows.detach() - target[:vectors] + 3 * draw[:vectors])
        optimizer.step()
    state = optimizer.state[rows]
    return rows.detach()[0] - start[0], str(state.get("state1", state.get("exp_avg")).dtype)


print(*(f"{name} {version(name)}" for name in ("torch", "bitsandbytes")), sep=", ")
alike = {}
for vectors in (1, 2, 5, 6, 8):
    plain, _ = first_vector(vectors, torch.optim.AdamW)
    eight, kind = first_vector(vectors, AdamW8bit)
    alike[vectors] = float(torch.cosine_similarity(plain, eight, dim=0))
    apart = float((plain - eight).norm() / plain.norm())
    print(f"{vectors} vectors, {vectors * 768} numbers, moments {kind}: the first vector's path is {apart:.1%} off AdamW's, cosine {alike[vectors]:.4f}")
assert all(cosine > 0.99999 if vectors <= 5 else cosine < 0.97 for vectors, cosine in alike.items()), alike
print("as described: the sixth vector bends the path of the first")
PYTHON
