"""Train the evaluator: a small CLIP model of the same world, which takes no part in drawing pictures.

It shares nothing with the denoiser's text encoder except the world itself. It has its own tokenizer and its own two
towers, and its pictures are mirrored, cropped, lit, blurred and made noisy in other ways, so that the soft edges of
drawn pictures do not mislead it. In addition to the captions of a batch, each picture must find its noun among all
nouns and its place among all places: with one or two hundred pictures in a batch, that is most of what there is to
learn.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch.nn import functional as F

from ..world import lexicon, places
from . import pool, presets, tokenizer, training
from .presets import Preset
from .train_text import contrast
from .train_vae import to_tensor

RATE = 1e-3
LENGTH = 24  # tokens; captions are shorter
BACKGROUNDS = [f"on {'an' if c[0] == 'o' else 'a'} {c} background" for c in places.COLORS]
PLACES = [*places.PLACES, *BACKGROUNDS]


@functools.cache
def nouns() -> tuple[list[str], dict[str, int]]:
    """The nouns and names of the world, and the number of each by its forms."""
    rows = [*lexicon.nouns(), *lexicon.names()]
    forms = {form: n for n, noun in enumerate(rows) for form in (noun.plural, noun.word)}
    return [noun.word for noun in rows], forms


def parts_of(caption: str) -> tuple[int, int]:
    """Numbers of the noun and of the place in PLACES that a caption names; -1 for none."""
    place = next((p for p in PLACES if caption.endswith(" " + p)), "")
    words = caption.removesuffix(place).split()  # every template ends with the thing itself
    ends = (" ".join(words[-count:]) for count in (4, 3, 2, 1))
    noun = next((number for end in ends if (number := nouns()[1].get(end)) is not None), -1)
    return noun, PLACES.index(place) if place else -1


def augment(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirror, crop, light, blur and noise for (batch, 3, side, side) in -1..1; color names stay true."""
    batch, side = len(pictures), pictures.shape[-1]
    draw = lambda low, high: torch.from_numpy(  # noqa: E731
        rng.uniform(low, high, batch).astype(np.float32)
    ).to(pictures.device)
    turn, zoom, flip = draw(-0.1, 0.1), draw(0.85, 1.05), draw(-1, 1).sign()
    theta = torch.stack(
        [
            *(zoom * flip * turn.cos(), -zoom * turn.sin(), draw(-0.1, 0.1)),
            *(zoom * flip * turn.sin(), zoom * turn.cos(), draw(-0.1, 0.1)),
        ],
        dim=1,
    ).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    views = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    views = mean + (views - mean) * draw(0.75, 1.2)[:, None, None, None]
    views = views + draw(-0.15, 0.15)[:, None, None, None]
    if rng.random() < 0.3:  # as soft as what a small autoencoder draws
        small = F.interpolate(views, size=int(rng.integers(side // 3, side)), mode="area")
        views = F.interpolate(small, size=side, mode="bilinear")
    noise = training.normal(rng, views.shape)
    return (views + 0.06 * rng.random() * noise).clamp(-1, 1)


def see(clip, pictures: torch.Tensor) -> torch.Tensor:
    """(batch, 3, size, size) in -1..1 to unit vectors (batch, width)."""
    seen = clip.vision_model(pixel_values=pictures).pooler_output
    return F.normalize(clip.visual_projection(seen).float(), dim=-1)


def read(clip, ids: torch.Tensor) -> torch.Tensor:
    """Token ids (batch, LENGTH) to unit vectors (batch, width)."""
    return F.normalize(clip.text_projection(clip.text_model(ids).pooler_output).float(), dim=-1)


class Words:
    """Token ids of the texts to match: the captions, and every noun and place in a few sentences."""

    ASKED = ("a photo of {}", "{}", "a picture of {}")

    def __init__(self, preset: Preset):
        self.tokenizer = tokenizer.load(preset, "evaluator-tokenizer")
        names, _ = nouns()
        self.nouns = [self.ids([s.format(named(n)) for n in names]) for s in self.ASKED]
        self.places = [self.ids([s.format(p) for p in PLACES]) for s in ("{}", "a photo {}")]

    def ids(self, sentences: list[str]) -> torch.Tensor:
        encoded = self.tokenizer(
            sentences, padding="max_length", truncation=True, max_length=LENGTH
        )
        return torch.tensor(encoded["input_ids"]).to(training.device())


def named(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def train(preset: Preset) -> training.Run:
    device = training.device()
    pictures = pool.Pictures(preset)
    captions = pool.captions(preset, len(pictures))
    spoken = np.array([number for number, caption in enumerate(captions) if caption])
    words, labels = (
        Words(preset),
        torch.tensor([parts_of(c) for c in captions]).to(device),
    )
    ids = words.ids(captions)
    test, test_captions = pool.held_out(preset, 600)
    asked = torch.tensor([parts_of(caption) for caption in test_captions])

    torch.manual_seed(7)
    clip = presets.evaluator(preset, len(words.tokenizer)).to(device)
    print(f"evaluator: {sum(p.numel() for p in clip.parameters()) / 1e6:.2f} M parameters")
    run = training.Run(clip, preset.folder / "evaluator.pt", preset.evaluator_steps, RATE)

    def step(number: int) -> torch.Tensor:
        rng = training.generator(14, number)
        chosen = rng.choice(spoken, preset.evaluator_batch, replace=False)
        picked = torch.from_numpy(chosen).to(device)
        noun, place = labels[picked].T
        asked_nouns, asked_places = words.nouns[number % 3], words.places[number % 2]
        views = augment(to_tensor(pictures.take(chosen)), rng)
        with training.autocast():
            seen, said = (
                see(clip, views),
                read(clip, torch.cat([ids[picked], asked_nouns, asked_places])),
            )
        scale = clip.logit_scale.clamp(max=np.log(60.0)).exp()
        own, which, where = (scale * seen @ said.T).split(
            [len(chosen), len(asked_nouns), len(PLACES)], dim=1
        )
        same = (ids[picked][:, None] == ids[picked][None]).all(-1).float()
        return (
            contrast(own, same)
            + 1.5 * F.cross_entropy(which, noun, ignore_index=-1)  # the hard one
            + 0.3 * F.cross_entropy(where, place, ignore_index=-1)
        )

    def watch(run: training.Run) -> None:
        clip.eval()
        with torch.no_grad(), training.autocast():
            seen = see(clip, to_tensor(test))
            found = [
                (seen @ read(clip, question).T).argmax(1).cpu()
                for question in (words.nouns[0], words.places[0])
            ]
        clip.train()
        right = [
            (f == a)[a >= 0].float().mean().item() for f, a in zip(found, asked.T, strict=True)
        ]
        print(
            f"evaluator {run.step}: held out, the noun of {len(words.nouns[0])} {right[0]:.1%}, "
            f"the place of {len(PLACES)} {right[1]:.1%}",
            flush=True,
        )

    training.loop(
        run,
        step,
        lambda number, steps: training.cosine(number, steps, RATE),
        keep=0.99,
        minutes=dict(preset.minutes).get("evaluator"),
        save_every=100,
        watch=watch,
    )
    return run


def load_evaluator(preset: Preset):
    """The trained evaluator (averaged weights)."""
    clip = presets.evaluator(preset, len(tokenizer.load(preset, "evaluator-tokenizer")))
    clip.load_state_dict(training.load_average(preset.folder / "evaluator.pt"))
    return clip.eval().requires_grad_(False)
