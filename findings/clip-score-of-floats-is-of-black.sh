#!/usr/bin/env bash
# torchmetrics' CLIP score measures how well a picture follows its prompt. Pictures from 0 to 1, which is what diffusers
# returns with output_type="pt", should raise an error or score correctly. Instead the processor divides by 255 once more,
# so CLIP sees only black: any two pictures are 100 alike, and all have the same score for a prompt. With transformers 5,
# torchmetrics 1.9 cannot score anything as it is: get_image_features now returns an object, and an AttributeError
# follows. The wrapper below takes the vector out of that object.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 pillow==13.0.0 transformers==5.23.0 torchmetrics==1.9.0
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import string
from importlib.metadata import version

import torch
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

pieces = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
torch.manual_seed(4)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
text = {**shape, "vocab_size": len(pieces), "bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
model = CLIPModel(CLIPConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})).eval()
processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), tokenizer)


class Vectors(torch.nn.Module):
    """The same model, whose features are vectors as in transformers 4."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *args):
        return self.model.get_image_features(*args).pooler_output

    def get_text_features(self, *args):
        return self.model.get_text_features(*args).pooler_output


@torch.no_grad()
def score(source, target, model=Vectors(model)):
    return float(clip_score(source, target, lambda: (model, processor)))


print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "torchmetrics")), sep=", ")
one, other = (torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2))
other[:, :, 32:] = 255
try:
    score(one, other, model)
    raised = ""
except AttributeError as error:
    raised = str(error)
print("transformers 5 as it is:", raised)
seen = {}
for name, scale in (("0 to 255", 1), ("0 to 1", 255), ("black", None)):
    pair = [picture / scale if scale == 255 else picture * (scale or 0) for picture in (one, other)]
    seen[name] = [score(*pair), *(score(picture, "a photo of a cat") for picture in pair)]
    print(f"{name:8}  two pictures alike {seen[name][0]:7.3f}; each with the prompt {seen[name][1]:.3f} and {seen[name][2]:.3f}")
assert "has no attribute 'norm'" in raised, raised
assert seen["0 to 255"][0] < 99 and abs(seen["0 to 255"][1] - seen["0 to 255"][2]) > 0.3, seen
assert seen["0 to 1"][0] > 99.99 and all(abs(a - b) < 0.02 for a, b in zip(seen["0 to 1"], seen["black"])), seen
print("as described: pictures from 0 to 1 are scored as black ones")
PYTHON
