"""A CLIP model as judge: which pictures are alike, and whether a picture shows what its prompt says.

CLIP (Radford et al. 2021, arXiv 2103.00020) maps pictures and sentences into one space, where the cosine says how well
they match. Any CLIP will do: the one that comes with the bundled model, one in a folder, or one from the Hub, such as
`openai/clip-vit-base-patch32`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

from tiutils.errors import InputError, first_line
from tiutils.io import files, hub
from tiutils.io.pretrained import load_tokenizer
from tiutils.models import Models, no_progress_bars

Images = Sequence[Image.Image]

# those of CLIP's own training; a folder's preprocessor_config.json may have others
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipScorer:
    """A frozen CLIP model, its tokenizer, and the mean and deviation by which pixels are normalized."""

    name: str
    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @torch.no_grad()
    def encode_images(self, images: Images) -> torch.Tensor:
        """Vectors of the pictures' central squares, float32 (images, width) of length 1, on the CPU."""
        side = self.model.config.vision_config.image_size
        squares = [
            ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
            for image in images
        ]
        pixels = np.stack([np.asarray(square, np.float32) / 255 for square in squares])
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels = ((pixels - mean) / std).transpose(0, 3, 1, 2)
        answer = self.model.get_image_features(
            pixel_values=torch.from_numpy(np.ascontiguousarray(pixels)).to(self.model.device)
        )
        return _unit(answer)

    @torch.no_grad()
    def encode_text(self, sentences: Sequence[str]) -> torch.Tensor:
        """Vectors of the sentences, float32 (sentences, width) of length 1, on the CPU."""
        longest = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(sentences), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.model.device)
        answer = self.model.get_text_features(
            input_ids=ids.input_ids, attention_mask=ids.attention_mask
        )
        return _unit(answer)

    def clip_i(self, images: Images, references: Images) -> torch.Tensor:
        """How alike each picture is to the references: mean cosine, float32 (images,)."""
        return (self.encode_images(images) @ self.encode_images(references).T).mean(dim=1)

    def clip_t(self, images: Images, prompts: Sequence[str]) -> torch.Tensor:
        """How well each picture shows its own prompt: cosine, float32 (images,).

        CLIP does not know a learned word: give prompts with the plain word instead.

        Raises:
            InputError: there is not one prompt for each picture.
        """
        if len(images) != len(prompts):
            raise InputError(f"{len(images)} pictures, {len(prompts)} prompts: give one for each")
        return (self.encode_images(images) * self.encode_text(prompts)).sum(dim=1)


def load(name: str | Path, *, device: str | torch.device = "cpu") -> ClipScorer:
    """Load a CLIP model from a folder or by its Hub id, float32 and frozen.

    Raises:
        InputError: there is none, it is not a CLIP model, or the Hub cannot be reached.
    """
    name = str(files.given(name, "the CLIP model's name"))
    if not os.path.isdir(name) and not hub.answers(f"models/{name}"):
        raise InputError(
            f"there is no CLIP model {name!r}: no folder of that name here, and the Hub cannot be "
            f"reached or has none; give a folder with a CLIPModel, or leave --evaluator out"
        )
    try:
        with no_progress_bars():
            model, report = CLIPModel.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # for a damaged folder, transformers raises anything
        raise InputError(f"cannot read {name!r} as a CLIP model: {first_line(error)}") from error
    if report["missing_keys"]:  # transformers would go on with random weights
        raise InputError(
            f"{name!r} is not a whole CLIP model: it lacks {sorted(report['missing_keys'])[0]}"
        )
    model = model.float().to(device).requires_grad_(False).eval()
    tokenizer = load_tokenizer(name, tokenizer_name=name)
    return ClipScorer(name, model, tokenizer, *_normalization(Path(name)))


def bundled_with(model: Models) -> ClipScorer | None:
    """The CLIP model in a model's folder, `evaluator/`, on the model's device; None if there is none.

    The bundled model's knows only the small world that the bundled model can draw.
    """
    folder = Path(model.name) / "evaluator"
    return load(folder, device=model.device) if folder.is_dir() else None


def _normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each color channel, from the folder's preprocessor_config.json or CLIP's own."""
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return tuple(settings["image_mean"]), tuple(settings["image_std"])
    except (OSError, ValueError, KeyError):
        return MEAN, STD


def _unit(answer: object) -> torch.Tensor:
    """What transformers 4 (vectors) or 5 (an object that has them) returned, scaled to length 1."""
    vectors = getattr(answer, "pooler_output", answer)
    assert isinstance(vectors, torch.Tensor)
    return normalize(vectors.float(), dim=-1).cpu()
