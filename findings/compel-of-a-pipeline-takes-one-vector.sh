#!/usr/bin/env bash
# compel weighs the words of a prompt. Its newer CompelForSD takes the whole diffusers pipeline, so you might expect it to
# find a learned word's vectors there. It silently uses the first of four, unless it also gets a
# DiffusersTextualInversionManager of the same pipeline; then its result equals the pipeline's own bit for bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 compel==2.5.1
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import string
from importlib.metadata import version

import torch
from compel import CompelForSD, DiffusersTextualInversionManager
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

letters = string.ascii_lowercase + string.digits + "<>-_"
pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
torch.manual_seed(0)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
special = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(pieces), **shape, **special)).eval()
rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
pipe = StableDiffusionPipeline(text_encoder=encoder, tokenizer=tokenizer, vae=None, unet=None, scheduler=None, **rest)
pipe.load_textual_inversion({"<cat>": torch.randn(4, 16)})
rows = encoder.get_input_embeddings().weight
learned = [i for word, i in tokenizer.get_added_vocab().items() if word.startswith("<cat>")]


@torch.no_grad()
def used(encode):
    """How many of the learned vectors change the encoded prompt."""
    before, count = encode(), 0
    for i in learned:
        rows[i] *= -1
        count += not torch.equal(before, encode())
        rows[i] *= -1
    return count, before


prompt = "a photo of <cat>"
print(*(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "compel")), sep=", ")
own = used(lambda: pipe.encode_prompt(prompt, "cpu", 1, False)[0])
alone = used(lambda: CompelForSD(pipe)(prompt).embeds)
manager = DiffusersTextualInversionManager(pipe)
helped = used(lambda: CompelForSD(pipe, textual_inversion_manager=manager)(prompt).embeds)
for name, (count, states) in (("the pipeline", own), ("CompelForSD(pipe)", alone), ("… with a manager", helped)):
    print(f"{name:18} uses {count} of {len(learned)} vectors; differs from the pipeline by {(states - own[1]).abs().max():.3f}")
assert (own[0], alone[0], helped[0]) == (4, 1, 4) and torch.equal(helped[1], own[1]) and not torch.equal(alone[1], own[1])
print("as described: three quarters of the word are lost")
PYTHON
