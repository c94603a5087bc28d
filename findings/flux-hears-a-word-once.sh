#!/usr/bin/env bash
# Flux pipelines have load_textual_inversion, and it works: the word joins CLIP's tokenizer and table. But the sequence
# that Flux draws from is T5's, which spells out the word's name: not one bit of it depends on the learned rows. They
# reach the picture only through CLIP's pooled vector. With `eos_token_id: 2`, as in published CLIP-L text encoders (see
# diffusers issue 10754 for Stable Diffusion 1.5's), that vector is read where the token id is highest: at the learned row
# instead of at the end, so it misses everything that the prompt says after the word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import string

import diffusers
import torch
import transformers
from diffusers import FluxPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

letters = string.ascii_lowercase + "<>-"
pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
end = len(pieces) - 1
t5_pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", "\u2581", *letters)]


def flux(eos_token_id, rows):
    torch.manual_seed(0)
    clip = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(pieces), **shape, eos_token_id=eos_token_id)).eval()
    t5 = T5TokenizerFast(vocab=t5_pieces, extra_ids=0)
    t5_encoder = T5EncoderModel(T5Config(vocab_size=len(t5), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    pipe = FluxPipeline(
        text_encoder=encoder, tokenizer=clip, text_encoder_2=t5_encoder.eval(), tokenizer_2=t5,
        transformer=None, vae=None, scheduler=None,
    )  # fmt: skip
    pipe.load_textual_inversion({"<my-cat>": rows})
    return pipe


@torch.no_grad()
def encoded(pipe, prompt):
    sequence, pooled, _ = pipe.encode_prompt(prompt, None, device="cpu", max_sequence_length=64)
    return sequence, pooled


def apart(one, other):
    return [float((a - b).abs().max()) for a, b in zip(one, other)]


print("diffusers", diffusers.__version__, "transformers", transformers.__version__)
rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
seen = {}
for eos_token_id in (2, end):
    pipe, opposite = flux(eos_token_id, rows), flux(eos_token_id, -rows)
    word = apart(encoded(pipe, "a photo of <my-cat>"), encoded(opposite, "a photo of <my-cat>"))
    rest = apart(encoded(pipe, "<my-cat> on a beach"), encoded(pipe, "<my-cat> in deep snow"))
    print(f"eos_token_id {eos_token_id:2}: another word changes T5's sequence by {word[0]:.3f}, the pooled vector by {word[1]:.3f};")
    print(f"                 other text after the word changes them by {rest[0]:.3f} and {rest[1]:.3f}")
    seen[eos_token_id] = word + rest
print("T5 reads the word as", pipe.tokenizer_2.tokenize("<my-cat>"))
for word_sequence, word_pooled, rest_sequence, _ in seen.values():
    assert word_sequence == 0 and word_pooled > 0.1 and rest_sequence > 0.1, seen
assert seen[2][3] == 0 and seen[end][3] > 0.1, seen
print("as described: one pooled vector carries the word, and with eos_token_id 2 nothing after it")
PYTHON
