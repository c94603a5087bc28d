#!/usr/bin/env bash
# A frozen text encoder is opened in 8 bits to save memory, and a word learns. By transformers' is_trainable (and its source, and
# a list in diffusers) Int8DynamicActivationInt8Weight can be trained with, as Int8WeightOnly can. Its output is as good, about 2%
# off here. You might expect a gradient about as good. But every quantized layer returns its result without one, with no
# message: torchao rounds the layer's input to int8 outside of autograd. All that is left is what goes around the layers, from a
# word's place straight to the same place of the last state: here 1% of the gradient's length, in another direction. Adam makes
# full steps of it all the same, and of the loss 60% is left where a whole gradient leaves nothing. Where only attention brings
# the word, in the pooled vector that SDXL and Flux use, the gradient is zero, and the word never moves.
# Int8WeightOnly, which rounds no inputs, passes the gradient on: the word learns as in the encoder that is not quantized.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 torchao==0.18.0 transformers==5.23.0 \
    accelerate==1.15.0
"$folder/venv/bin/python" - "$folder/model" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import logging
import sys
import warnings
from importlib.metadata import version

import torch
from torch.nn.functional import cosine_similarity
from torchao import quantization
from transformers import CLIPTextConfig, CLIPTextModel, TorchAoConfig

print(*(f"{name} {version(name)}" for name in ("torch", "torchao", "transformers")), sep=", ")
torch.manual_seed(0)
shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIPTextModel(CLIPTextConfig(vocab_size=60, bos_token_id=58, eos_token_id=59, **shape)).save_pretrained(sys.argv[1])
WORD, MEANT = 7, 20
prompts = torch.tensor([[58, 3, WORD, 5, 30, 59], [58, WORD, 11, 4, 9, 59]])
said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())


def opened(name):
    """The frozen encoder in a format, with a table of which one row can learn."""
    options = {"quantization_config": TorchAoConfig(getattr(quantization, f"{name}Config")())} if name else {}
    model = CLIPTextModel.from_pretrained(sys.argv[1], **options).eval().requires_grad_(False)
    rows = model.get_input_embeddings().weight.requires_grad_()
    rows.register_hook(lambda grad: grad * (torch.arange(60) == WORD)[:, None])
    return model, rows


def whole(model):
    return model(input_ids=prompts).last_hidden_state


def pooled(model):
    return model(input_ids=prompts).pooler_output


plain, rows = opened(None)
with torch.no_grad():
    kept = rows[WORD].clone()
    rows[WORD] = rows[MEANT]
    targets = {part: part(plain) for part in (whole, pooled)}  # what the prompts are with the meant word
    rows[WORD] = kept


def loss_of(part, model):
    return (part(model) - targets[part]).square().mean()


def gradient(part, model, rows):
    (grad,) = torch.autograd.grad(loss_of(part, model), rows)
    return grad[WORD]


def learned(part, model, rows):
    """How much of the loss is left, judged by the plain encoder, after the word has learned in this one."""
    optimizer = torch.optim.Adam([rows], lr=5e-3)
    for _ in range(100):
        loss_of(part, model).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        before = float(loss_of(part, plain))
        table = plain.get_input_embeddings().weight
        table[WORD] = rows[WORD]
        after = float(loss_of(part, plain))
        table[WORD] = kept
    return after / before


states = whole(plain).detach()
right = {part: gradient(part, plain, rows) for part in targets}
for logger in (logging.getLogger(), logging.getLogger("transformers"), logging.getLogger("torchao")):
    logger.addHandler(handler)
for name in (None, "Int8WeightOnly", "Int8DynamicActivationInt8Weight"):
    model, rows = opened(name)
    said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        off = float((whole(model).detach() - states).norm() / states.norm())
        layer = model.encoder.layers[0].self_attn.v_proj
        passes = layer(torch.ones(1, 64, requires_grad=True)).requires_grad
        trainable = model.hf_quantizer.is_trainable if name else True
        grads = {part: gradient(part, model, rows) for part in targets}
        left = {}
        for part in targets:
            model, rows = opened(name)
            left[part] = learned(part, model, rows)
    print(f"{name or 'not quantized'}: is_trainable {trainable}, output {off:.1%} off")
    for part in targets:
        size = float(grads[part].norm() / right[part].norm())
        alike = float(cosine_similarity(grads[part], right[part], dim=0))
        result = f"gradient {size:.3f} as long, cosine {alike:.3f}; after training {left[part]:.0%} of the loss is left"
        print(f"  loss on the {part.__name__} output: {result}")
        if name == "Int8DynamicActivationInt8Weight":
            assert size < 0.1 and alike < 0.5 and left[part] > 0.4, (size, alike, left[part])
        else:
            assert abs(size - 1) < 0.1 and alike > 0.98 and left[part] < 0.1, (size, alike, left[part])
    print(f"  a layer's result has a gradient: {passes}; said: {said} {[str(warning.message) for warning in caught]}")
    assert trainable and off < 0.05 and not said and not caught, (trainable, off, said, caught)
    assert passes == (name != "Int8DynamicActivationInt8Weight")
assert not grads[pooled].any() and left[pooled] == 1, left
print("as described: layers that are called trainable stop the gradient, and the word does not learn")
PYTHON
