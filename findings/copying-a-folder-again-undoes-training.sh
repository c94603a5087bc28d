#!/usr/bin/env bash
# A model is opened from a folder and learns a word. Then the folder's own files are copied into it once more, the very same
# bytes. You might expect a model in memory not to notice. On a CPU its training is undone, in the middle of a run, with no
# message: safetensors hands torch a private mapping of the file (torch.UntypedStorage.from_file with shared=False), and
# transformers and diffusers make it the parameters if the number format need not be converted. A copy first cuts the
# file to nothing, and Linux then throws away all pages of the mapping, also those that training has written to. In the
# same way a word that was loaded "before" becomes the one that is later copied over its file: the two never differ.
# Rows are safe if they have been cloned or converted, or if the file is replaced, as save_file does, and not rewritten.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 \
    transformers==5.23.0 diffusers==0.42.1
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder/models" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import copy
import pathlib
import shutil
import sys
from importlib.metadata import version

import safetensors.numpy
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

torch.manual_seed(0)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
print(*(f"{name} {version(name)}" for name in ("torch", "safetensors", "transformers", "diffusers")), sep=", ")

word, later = folder / "learned_embeds.safetensors", folder / "step-400.safetensors"
early, late = torch.randn(4, 768), torch.randn(4, 768)
save_file({"<cat>": late}, later)
writers = {
    "save_file": lambda: save_file({"<cat>": late}, word),
    "shutil.copy": lambda: shutil.copy(later, word),
    "write_bytes": lambda: word.write_bytes(save({"<cat>": late})),
}
followed = {}
for writer, write in writers.items():
    save_file({"<cat>": early}, word)
    held = {
        "load_file": load_file(word)["<cat>"],
        "its float()": load_file(word)["<cat>"].float(),
        "a Parameter of it": torch.nn.Parameter(load_file(word)["<cat>"]),
        "its clone()": load_file(word)["<cat>"].clone(),
        "its double()": load_file(word)["<cat>"].double(),
        "safetensors.numpy": torch.from_numpy(safetensors.numpy.load_file(word)["<cat>"]),
    }
    write()
    followed[writer] = [way for way, rows in held.items() if torch.equal(rows.float(), late)]
    kept = [way for way, rows in held.items() if torch.equal(rows.float(), early)]
    print(f"a word loaded, its file then written by {writer}: now the new word: {followed[writer]}; as loaded: {kept}")
    assert len(followed[writer]) + len(kept) == len(held)
both = ["load_file", "its float()", "a Parameter of it"]
assert followed == {"save_file": [], "shutil.copy": both, "write_bytes": both}, followed

shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
encoder = CLIPTextModel(CLIPTextConfig(vocab_size=60, bos_token_id=58, eos_token_id=59, **shape))
blocks = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
unet = UNet2DModel(sample_size=8, norm_num_groups=4, layers_per_block=1, add_attention=False, **blocks)
prompt, target = torch.tensor([[58, 3, 7, 59]]), torch.randn(1, 4, 64)


def loss_of_word(model):
    """How far a prompt with the word, token 7, is from what it should be."""
    return (model(input_ids=prompt)[0].float() - target).square().mean()


def loss_of_unet(model):
    return model(torch.ones(1, 3, 8, 8, dtype=model.dtype), 1).sample.float().sub(1).square().mean()


seen = {}
cases = (
    ("text encoder", encoder, CLIPTextModel, loss_of_word, {}, lambda model: model),
    ("its deepcopy", encoder, CLIPTextModel, loss_of_word, {}, copy.deepcopy),
    ("in bfloat16", encoder, CLIPTextModel, loss_of_word, {"dtype": torch.bfloat16}, lambda model: model),
    ("U-Net", unet, UNet2DModel, loss_of_unet, {}, lambda model: model),
)
for case, (name, base, kind, loss_of, options, hold) in enumerate(cases):
    published, work = folder / f"published-{case}", folder / f"work-{case}"
    base.save_pretrained(published)
    shutil.copytree(published, work)
    model = hold(kind.from_pretrained(work, **options))
    if kind is CLIPTextModel:  # only the word's row learns, the rest is frozen
        rows = model.requires_grad_(False).get_input_embeddings().weight.requires_grad_()
        rows.register_hook(lambda grad: grad * (torch.arange(60) == 7)[:, None])
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    losses = [float(loss_of(model))]
    for _ in range(60):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    losses.append(float(loss_of(model)))
    shutil.copytree(published, work, dirs_exist_ok=True)
    losses.append(float(loss_of(model)))
    first, trained, again = losses
    assert trained < 0.9 * first, losses
    seen[name] = "undone" if abs(again - first) < 1e-5 else "kept" if abs(again - trained) < 1e-5 else "other"
    result = "{:.4f} at first, {:.4f} when trained, {:.4f} after the folder was copied again".format(*losses)
    print(f"{name:12} loss {result}: {seen[name]}")
assert seen == {"text encoder": "undone", "its deepcopy": "kept", "in bfloat16": "kept", "U-Net": "undone"}, seen
print("as described: what was learned in memory is gone when the folder is copied again")
PYTHON
