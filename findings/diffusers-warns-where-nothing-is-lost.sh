#!/usr/bin/env bash
# Some models of diffusers name modules that must stay in float32. One would expect a warning where a cast loses them,
# and none elsewhere. `to(torch.float16)` warns of every model, with an empty list for those that name none, such as
# Stable Diffusion's; `half()` loses them all and says nothing. Only `from_pretrained(torch_dtype=...)` keeps them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import diffusers
import torch
from diffusers import UNet2DConditionModel, WanTransformer3DModel

said = []
logger = diffusers.utils.logging.get_logger("diffusers.models.modeling_utils")
logger.addFilter(lambda record: bool(said.append(record.getMessage())))


def unet():
    return UNet2DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4, cross_attention_dim=8, layers_per_block=1,
    )


def wan():
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True,
    )


def saved_and_loaded(model):
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        return type(model).from_pretrained(name, torch_dtype=torch.float16)


ways = {
    "to(float16)": lambda model: model.to(torch.float16),
    "half()": lambda model: model.half(),
    "from_pretrained(float16)": saved_and_loaded,
}
print("torch", torch.__version__, "diffusers", diffusers.__version__)
found = {}
for make in (unet, wan):
    named = make()._keep_in_fp32_modules or []
    for way, cast in ways.items():
        model = make()
        said.clear()
        model = cast(model)
        warnings = sum("kept in float32" in text for text in said)
        own = [p for n, p in model.named_parameters() if any(module in n for module in named)]
        kept = sum(p.dtype == torch.float32 for p in own)
        found[make.__name__, way] = (warnings, kept, len(own))
        print(f"{make.__name__:5} {way:25} warnings {warnings}, kept in float32: {kept} of {len(own)}")
assert found == {
    ("unet", "to(float16)"): (1, 0, 0), ("unet", "half()"): (0, 0, 0), ("unet", "from_pretrained(float16)"): (0, 0, 0),
    ("wan", "to(float16)"): (1, 0, 8), ("wan", "half()"): (0, 0, 8), ("wan", "from_pretrained(float16)"): (0, 8, 8),
}, found
print("as described: a warning where nothing is lost, and none where half() loses all")
PYTHON
