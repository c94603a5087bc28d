#!/usr/bin/env bash
# diffusers loads a learned word and unloads it again. The text encoder's table has its old size, and you might expect the
# pipeline to be as it was. But its configuration still counts the word, so a folder saved now cannot be opened: it
# promises one row more than it holds. And unloading a three-vector word by its name removes only the first vector: the
# other two stay, and the word cannot be loaded again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder/saved" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import string
import sys
from importlib.metadata import version

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

letters = string.ascii_lowercase + string.digits + "<>-_"
pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
torch.manual_seed(0)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
special = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(pieces), **shape, **special))
rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
pipe = StableDiffusionPipeline(text_encoder=encoder, tokenizer=tokenizer, vae=None, unet=None, scheduler=None, **rest)


def opens(folder):
    pipe.save_pretrained(folder)
    try:
        CLIPTextModel.from_pretrained(f"{folder}/text_encoder")
    except RuntimeError as error:
        return type(error).__name__
    return "opens"


def sizes():
    return len(tokenizer), encoder.get_input_embeddings().num_embeddings, encoder.config.vocab_size


print(*(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers")), sep=", ")
seen = {}
for when in ("at first", "with the word", "unloaded"):
    if when == "with the word":
        pipe.load_textual_inversion({"<cat>": torch.randn(16)})
    elif when == "unloaded":
        pipe.unload_textual_inversion("<cat>")
    seen[when] = (*sizes(), opens(f"{sys.argv[1]}-{when.replace(' ', '-')}"))
    print("{:14} tokenizer {}, table {}, configuration {}; the saved folder: {}".format(when, *seen[when]))
n = len(pieces)
assert seen["at first"] == (n, n, n, "opens") and seen["with the word"] == (n + 1, n + 1, n + 1, "opens"), seen
assert seen["unloaded"] == (n, n, n + 1, "RuntimeError"), seen

pipe.load_textual_inversion({"<dog>": torch.randn(3, 16)})
pipe.unload_textual_inversion("<dog>")
left = [word for word in tokenizer.get_added_vocab() if word.startswith("<dog>")]
try:
    pipe.load_textual_inversion({"<dog>": torch.randn(3, 16)})
    again = "works"
except ValueError as error:
    again = str(error).split(".")[0]
print(f"<dog>, three vectors, unloaded by name: {left} stay; loading it again: {again}")
assert left == ["<dog>_1", "<dog>_2"] and "already in tokenizer vocabulary" in again, (left, again)
print("as described: unloading leaves traces")
PYTHON
