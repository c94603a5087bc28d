#!/usr/bin/env bash
# diffusers' PRX pipeline has load_textual_inversion, but cleans each prompt first. More than three hyphens or underscores
# in a prompt turn all of them into spaces, so <wood-toy> works in one prompt and is gone from the next, where something
# else is black-and-white. PRX also never spells out the vectors of a word: it uses one of three, and users who write all
# three out by hand have enough underscores to lose even that one. There is no message in any of these cases.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 ftfy==6.3.1
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import string

import diffusers
import torch
import transformers
from diffusers import PRXPipeline
from transformers import T5GemmaModuleConfig, T5TokenizerFast
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase, *"<>-_,123")]
tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=96)
torch.manual_seed(0)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
config = T5GemmaModuleConfig(vocab_size=len(tokenizer), **shape, num_key_value_heads=2, dropout_rate=0.0)
pipe = PRXPipeline(text_encoder=T5GemmaEncoder(config).eval(), tokenizer=tokenizer, transformer=None, scheduler=None)
pipe.load_textual_inversion({"<wood-toy>": torch.randn(3, 16)})
rows = pipe.text_encoder.get_input_embeddings().weight
learned = {tokenizer.convert_tokens_to_ids(word): word for word in ("<wood-toy>", "<wood-toy>_1", "<wood-toy>_2")}


@torch.no_grad()
def heard(prompt):
    """The learned vectors that change what the model draws from."""
    before = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
    found = []
    for i, word in learned.items():
        rows[i] *= -1
        after = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
        rows[i] *= -1
        if not torch.equal(before, after):
            found.append(word)
    return found


print("diffusers", diffusers.__version__, "transformers", transformers.__version__)
seen = {
    prompt: heard(prompt)
    for prompt in (
        "a photo of <wood-toy> on a chess board",
        "a photo of <wood-toy> on a black-and-white chess board",
        "a photo of <wood-toy> on a black-and-white chess-board",
        "a photo of <wood-toy> <wood-toy>_1 <wood-toy>_2",
    )
}
for prompt, words in seen.items():
    print(f"{prompt}\n    cleaned: {pipe.text_preprocessor.clean_text(prompt)}\n    vectors heard: {words}")
assert list(seen.values()) == [["<wood-toy>"], ["<wood-toy>"], [], []], seen
print("as described: one vector of three, and with a fourth hyphen none")
PYTHON
