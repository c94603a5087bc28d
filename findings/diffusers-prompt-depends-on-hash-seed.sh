#!/usr/bin/env bash
# Two words of several vectors, one name inside the other: my-cat and my-cat-2. diffusers spells out their vectors by
# iterating over a *set* of tokens, and Python orders a set of strings differently in each process. The same prompt
# therefore reaches the model in one of two forms, and one seed draws two different pictures. Neither form is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0
cat > "$folder/prompt.py" <<'PYTHON'
import string

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
pipe.load_textual_inversion({"my-cat": torch.randn(2, 16)})
pipe.load_textual_inversion({"my-cat-2": torch.randn(2, 16)})
print(pipe.maybe_convert_prompt("my-cat and my-cat-2", tokenizer))
PYTHON
export TRANSFORMERS_VERBOSITY=error
"$folder/venv/bin/python" -m pip list 2>/dev/null | grep -E "^(torch|diffusers|transformers) "
for seed in 0 1 2 3 4 5; do
    PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/prompt.py" 2>/dev/null | sed "s/^/PYTHONHASHSEED=$seed: /"
done | tee "$folder/seen"
forms=$(cut -d: -f2- "$folder/seen" | sort -u | wc -l)
right=$(grep -c "my-cat my-cat_1 and my-cat-2 my-cat-2_1$" "$folder/seen" || true)
echo "$forms forms of one prompt, $right of 6 runs right"
test "$(wc -l < "$folder/seen")" -eq 6 && test "$forms" -eq 2 && test "$right" -eq 0
echo "as described: what is drawn depends on the process, and is never what was written"
