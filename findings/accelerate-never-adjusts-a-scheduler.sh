#!/usr/bin/env bash
# accelerate's GradientAccumulationPlugin has adjust_scheduler, True by default, for schedules that count batches instead
# of optimizer steps. With accumulation over 4 batches, a cosine over 400 batches should reach zero after 400 batches. It
# ends at 85% of its height, whether the option is True or False: the state takes over only options that differ from
# their defaults, and reads a missing one as False. Even if it read True, it would only count steps and not move the rate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cat > "$folder/run.py" <<'PYTHON'
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch.optim.lr_scheduler import CosineAnnealingLR

options = {} if sys.argv[1] == "default" else {"adjust_scheduler": sys.argv[1] == "True"}
plugin = GradientAccumulationPlugin(num_steps=4, **options)
accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
scheduler = CosineAnnealingLR(optimizer, T_max=400)  # planned for 400 batches
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
for _ in range(400):
    with accelerator.accumulate(model):
        accelerator.backward(model(torch.ones(1, 1)).sum())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
print(
    f"adjust_scheduler {sys.argv[1]:7}: the plugin says {plugin.adjust_scheduler}, the state {accelerator.gradient_state.adjust_scheduler};",
    f"steps of the schedule: {scheduler.scheduler.last_epoch} of 400, rate {scheduler.get_last_lr()[0]:.3f}",
)
PYTHON
"$folder/venv/bin/python" -m pip list 2> "$folder/log" | grep -E "^(torch|accelerate) "
for option in default True False; do
    "$folder/venv/bin/python" "$folder/run.py" "$option" 2> "$folder/log"
done | tee "$folder/seen"
test "$(grep -c "the state False; steps of the schedule: 100 of 400, rate 0.854" "$folder/seen")" -eq 3
test "$(grep -c "the plugin says True" "$folder/seen")" -eq 2
echo "as described: the option has no effect; plan the schedule in steps of the optimizer"
