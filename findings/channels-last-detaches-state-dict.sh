#!/usr/bin/env bash
# A state_dict taken before `module.to(memory_format=torch.channels_last)` follows the module's later training for
# every parameter but the four-dimensional ones: those get new storage, the others keep theirs. An average of weights
# that holds on to such a dict therefore moves for norms and linear layers and stands still for convolutions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.LazyLinear(4))
net(torch.randn(1, 3, 8, 8))
held = net.state_dict()
net.to(memory_format=torch.channels_last)
net(torch.randn(2, 3, 8, 8)).square().mean().backward()
torch.optim.SGD(net.parameters(), 1.0).step()
now = net.state_dict()
follows = {name: bool(torch.equal(held[name], now[name])) for name in held}
print("torch", torch.__version__)
for name, same in follows.items():
    print(f"{name:10} {tuple(held[name].shape)!s:16} {'follows' if same else 'left behind'}")
assert follows == {name: held[name].ndim != 4 for name in held}, follows
print("as described: only the four-dimensional weight is left behind")
PYTHON
