#!/usr/bin/env bash
# diffusers tells <cat> and <Cat> apart; the CLIP tokenizer of transformers 5 does not. Both words load, each with its own
# rows, and in a prompt both spellings mean the same one. You might expect the first or the last to win. The winner is random:
# it is chosen anew each time the tokenizer is built or opened, even within one process. The same disagreement loses two
# vectors of a three-vector word wherever a prompt writes it in a different case.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 \
    transformers==5.23.0 tokenizers==0.23.3
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import string
import tempfile
from importlib.metadata import version

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

letters = string.ascii_lowercase + string.digits + "<>-_"
pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
special = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(pieces), **shape, **special))
rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
pipe = StableDiffusionPipeline(text_encoder=encoder, tokenizer=tokenizer, vae=None, unet=None, scheduler=None, **rest)
print(*(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "tokenizers")), sep=", ")

pipe.load_textual_inversion({"<cat>": torch.randn(16)})
pipe.load_textual_inversion({"<Cat>": torch.randn(16)})
words = {tokenizer.get_added_vocab()[word]: word for word in ("<cat>", "<Cat>")}
print("loaded, id by id:", words)
pipe.load_textual_inversion({"<dog>": torch.randn(3, 16)})
vectors = {}
for word in ("<dog>", "<Dog>"):
    vectors[word] = len(tokenizer(pipe.maybe_convert_prompt(word, tokenizer)).input_ids) - 2
    print(f"{word}, a word of 3 vectors, reaches the model with {vectors[word]}")

with tempfile.TemporaryDirectory() as folder:
    tokenizer.save_pretrained(folder)
    opened = [CLIPTokenizer.from_pretrained(folder) for _ in range(40)]
meant = [{words[one(prompt).input_ids[1]] for prompt in ("<cat>", "<Cat>", "<CAT>")} for one in opened]
counts = {word: meant.count({word}) for word in words.values()}
print(f"one folder opened 40 times: both mean <cat> {counts['<cat>']} times, both mean <Cat> {counts['<Cat>']} times")
assert len(words) == 2 and vectors == {"<dog>": 3, "<Dog>": 1}, vectors
assert all(counts.values()) and sum(counts.values()) == 40, counts
print("as described: which of the two words a prompt means is random")
PYTHON
