#!/usr/bin/env bash
# PEFT learns words beside a LoRA (trainable_token_indices), and add_weighted_adapter makes one adapter out of several. You
# might expect the words to come along, or an error: the same two adapters with the whole table in modules_to_save are
# refused. But with every way of combining, and even for a single adapter with weight 1, the new adapter has only the LoRA.
# It takes over the first adapter's list of tokens, gives them rows fresh from the base table, and never fills them; the
# second adapter's words are not even listed. It then saves those untrained rows as if they had been learned.
# (add_weighted_adapter copies the first configuration, injects an adapter from it and then writes to LoRA layers only.)
# merge_and_unload(adapter_names=...), which leaves a plain model and no adapter, does keep the words of both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" - "$folder/saved" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import logging
import sys
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), sep=", ")
CAT, DOG = 7, 8
prompts = torch.tensor([[58, 3, CAT, 59], [58, 3, DOG, 59]])
target = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))


def two_adapters(**options):
    """A tiny text encoder with the adapters "cat" and "dog", each trained on a prompt of its own."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPTextModel(CLIPTextConfig(vocab_size=60, bos_token_id=58, eos_token_id=59, **shape))
    for which, (name, token) in enumerate({"cat": CAT, "dog": DOG}.items()):
        words = options or {"trainable_token_indices": {"token_embedding": [token]}}
        config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], **words)
        if which == 0:
            model = get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
        for _ in range(40):
            (model(input_ids=prompts[which : which + 1])[0] - target[which]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def row(model, adapter, token):
    """What the model, with this adapter, looks up for the token."""
    model.set_adapter(adapter)
    return model.get_input_embeddings()(torch.tensor([token]))[0].detach().clone()


def lora_of(model, adapter):
    layer = model.base_model.model.encoder.layers[0].self_attn.q_proj
    return layer.get_delta_weight(adapter).detach()


model = two_adapters()
learned = {CAT: row(model, "cat", CAT), DOG: row(model, "dog", DOG)}
with model.disable_adapter():
    base = {token: model.get_input_embeddings()(torch.tensor([token]))[0].detach().clone() for token in learned}
print("learned rows are off the base rows by", *(f"{(learned[t] - base[t]).norm():.3f}" for t in learned))

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)
pair = ["cat", "dog"]
ways = [(pair, how) for how in ("linear", "cat", "svd", "ties", "dare_linear", "magnitude_prune")] + [(["cat"], "linear")]
for names, how in ways:
    new = f"{'+'.join(names)} by {how}"
    options = {} if how in ("linear", "cat", "svd") else {"density": 0.5}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.add_weighted_adapter(names, [1.0] * len(names), new, combination_type=how, **options)
    said += [str(warning.message) for warning in caught]
    states = []
    for token in learned:
        now, known = row(model, new, token), {"learned": learned[token], "base row": base[token]}
        states.append(next((name for name, one in known.items() if torch.equal(now, one)), "other"))
    tokens = model.peft_config[new].trainable_token_indices["token_embedding"]
    print(f"{new:26} <cat>: {states[0]}, <dog>: {states[1]}, its list of tokens: {tokens}")
    assert states == ["base row", "base row"] and tokens == [CAT], (states, tokens)
for new, names in (("cat+dog by cat", pair), ("cat by linear", ["cat"])):
    whole = sum(lora_of(model, name) for name in names)
    off = float((lora_of(model, new) - whole).norm() / whole.norm())
    print(f"{new}: its LoRA is off the sum by {off:.1e}")
    assert off < 1e-5, off
with torch.no_grad():
    model.set_adapter("cat")
    alone = model(input_ids=prompts[:1])[0]
    model.set_adapter("cat by linear")
    apart = float((model(input_ids=prompts[:1])[0] - alone).norm() / alone.norm())
print(f"a prompt with <cat>, under the adapter and under its copy with weight 1: {apart:.0%} apart; said: {said}")
assert apart > 0.01 and not said, (apart, said)
model.save_pretrained(sys.argv[1], selected_adapters=["cat+dog by cat"])
saved = load_file(f"{sys.argv[1]}/cat+dog by cat/adapter_model.safetensors")
rows = next(rows for name, rows in saved.items() if "trainable_tokens" in name)
print("saved with the merged adapter:", tuple(rows.shape), "equal to the base row:", torch.equal(rows[0], base[CAT]))
assert rows.shape == (1, 16) and torch.equal(rows[0], base[CAT])
try:
    two_adapters(modules_to_save=["token_embedding"]).add_weighted_adapter(["cat", "dog"], [1.0, 1.0], "both")
    refused = "no"
except ValueError as error:
    refused = str(error)
print("with modules_to_save instead:", refused)
assert "Cannot add weighted adapters" in refused, refused
table = two_adapters().merge_and_unload(adapter_names=pair).get_input_embeddings().weight
kept = [bool(torch.equal(table[token], learned[token])) for token in learned]
print("with merge_and_unload(adapter_names=...), which ends in a plain model, the words are the learned ones:", kept)
assert kept == [True, True], kept
print("as described: merged adapters forget their words")
PYTHON
