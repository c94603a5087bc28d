"""Train the whole road from a picture to a word to a picture: word encoder, text encoder and denoiser together.

The word encoder looks at one or two pictures of a thing and predicts a row. The row takes a word's place in a sentence,
which the text encoder reads, and the denoiser must draw *another* picture of the same thing, from another side, in the
place that the sentence names. Rows thus come to mean what things look like, and points between the rows of known words
mean something, too; that is where Textual Inversion searches. Sentences with the world's own nouns are trained as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tiutils.word_encoder import WordEncoder

from ..world import lexicon, pack, things
from . import latents, pool, presets, thing_pool, tokenizer, train_text, training
from .presets import Preset
from .train_unet import DROPPED, MIN_SNR, noise_levels

RATE = 1e-3
PLAIN, BUILT = (
    0.35,
    0.45,
)  # shares of a batch: sentences with nouns, built things; the rest are things of the world
STAND_IN = "thing"  # the word whose row is exchanged; no noun of the world
TWO_LOOKS = 0.5  # share of the rows that are the mean of two looks
NOISE = 0.25  # relative to a row's length, at most
TOWARD_NOUN = 0.2  # share of the rows between what was seen and the thing's noun, up to halfway
SHAPES, DWELT = (400, 960), 0.5  # timesteps at which a thing's shape is decided, and their share
CONTRAST, SHARPNESS = 0.05, 8.0  # weight of the loss that makes two looks at one thing agree
UNNAMED = 0.08  # share of the sentences with learned words that are left empty: guidance needs them
OUTER = (
    "unet.conv_in",
    "unet.conv_out",
    "unet.time_embedding",
    "text.embeddings",
    "text.text_model.embeddings",
    "words.first",
    "words.last",
)  # modules that AdamW trains, Muon the other matrices
ENDLESS = 10**9
SAID = ("a photo of a {}", "a {} on grass", "a {} on a red background")  # of the pictures drawn
NOUNS = (
    *("toy", "bear", "horse", "robot", "cat", "car", "house", "chair"),
    *("duck", "dog", "bird", "tree", "cup", "shoe", "fish", "flower"),
)
NAMELESS = -1  # in place of a noun's id: the thing has no noun of one token


class Table(nn.Module):
    """The token table, some of whose rows may be exchanged for one pass: `rows` (batch, width) where `there`."""

    def __init__(self, table: nn.Embedding, stand_in: int):
        super().__init__()
        self.weight, self.stand_in = table.weight, stand_in
        self.rows: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = F.embedding(ids, self.weight)
        if self.rows is None:
            return embedded
        return torch.where((ids == self.stand_in)[..., None], self.rows[:, None], embedded)


class Road(nn.Module):
    """All networks between a look at a picture and a denoised latent."""

    def __init__(self, unet: nn.Module, text: nn.Module, words: WordEncoder, stand_in: int):
        super().__init__()
        self.unet, self.text, self.words = unet, text, words
        table = text.get_input_embeddings()
        self.length = float(table.weight.detach().norm(dim=1).median())
        text.set_input_embeddings(Table(table, stand_in))

    @property
    def table(self) -> Table:
        return self.text.get_input_embeddings()

    def read(self, ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (batch, 77, width) of ids (batch, 77), with these rows in place of the stand-in's."""
        self.table.rows = rows
        try:
            return self.text(ids).last_hidden_state
        finally:
            self.table.rows = None

    def full_length(self, directions: torch.Tensor) -> torch.Tensor:
        return F.normalize(directions.float(), dim=-1) * self.length


def begin(preset: Preset) -> tuple[Road, dict]:
    """The networks as the earlier trainings or the model in `preset.start` left them, and the vocabulary."""
    vocabulary = tokenizer.load(preset).get_vocab()
    torch.manual_seed(8)
    unet = presets.unet(preset)
    if not training.on_gpu():
        # A CPU's fused attention takes three times as long backward as plain products.
        unet.set_attn_processor(AttnProcessor())
    if preset.start:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        old = UNet2DConditionModel.from_pretrained(preset.start, subfolder="unet").state_dict()
        text = CLIPTextModel.from_pretrained(
            preset.start, subfolder="text_encoder", dtype=torch.float32
        )
    else:
        old = training.load_average(preset.folder / "unet.pt")
        text = train_text.load_text_encoder(preset)
    graft(unet, old)
    words = WordEncoder(preset.text_width, preset.latent_size)
    text.requires_grad_(True)
    road = Road(unet, text.float(), words, vocabulary[STAND_IN + "</w>"])
    return road.to(training.device()).train(), vocabulary


def graft(unet: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load weights that may come from a denoiser with fewer attention blocks; new blocks add nothing at first."""
    weights = {name: weight.float() for name, weight in weights.items()}
    missing, unexpected = unet.load_state_dict(weights, strict=False)
    strange = [name for name in (*missing, *unexpected) if ".attentions." not in name]
    if strange:
        raise ValueError(f"the denoiser's weights do not fit: {strange[:4]}")
    for name, parameter in unet.named_parameters():
        if name in missing and ".proj_out." in name:
            nn.init.zeros_(parameter)


def load_road(preset: Preset) -> Road:
    """The trained networks (averaged weights)."""
    road, _ = begin(preset)
    road.load_state_dict(training.load_average(preset.folder / "words-average.pt"))
    return road.eval().requires_grad_(False)


class Sayings:
    """Pictures as latents, their sentences, and which show the same thing, all on the device."""

    def __init__(self, preset: Preset, vocabulary: dict[str, int]):
        self.end = preset.vocabulary - 1
        vae = latents.load_vae(preset)
        factor = latents.scaling_factor(preset)
        device = training.device()

        def near(chunks: list, name: str) -> torch.Tensor:
            parts = latents.cached(preset, vae, name, chunks)
            return torch.cat([(part.float() * factor).half() for part in parts]).to(device)

        plain = pool.chunks(preset)
        self.plain = near(plain, "pool")
        self.built = near(thing_pool.chunks(preset), "things")
        self.captions = self._ids(preset, pool.words(preset, len(self.plain), "caption"))
        sentences = pool.words(preset, len(self.plain), "sentence")
        self.sentences = self._ids(preset, [s.format(STAND_IN) for s in sentences])
        said = thing_pool.words(preset, "sentence")
        self.built_sentences = self._ids(preset, [s.format(STAND_IN) for s in said])
        nouns = [
            vocabulary.get(noun + "</w>", NAMELESS) for noun in thing_pool.words(preset, "noun")
        ]
        self.built_nouns = torch.tensor(nouns, device=device)
        self.unseen = min(thing_pool.UNSEEN, preset.things // 4)  # things, the last
        self._group(preset, sentences, vocabulary)
        self.empty = self._ids(preset, [""])

    @staticmethod
    def _ids(preset: Preset, sentences: list[str]) -> torch.Tensor:
        """(sentences, LENGTH) ids, each different sentence encoded once."""
        numbers: dict[str, int] = {}
        order = [numbers.setdefault(sentence, len(numbers)) for sentence in sentences]
        ids = train_text.token_ids(preset, list(numbers), train_text.LENGTH)
        return ids[torch.tensor(order)].to(training.device())

    def _group(self, preset: Preset, sentences: list[str], vocabulary: dict[str, int]) -> None:
        """Pictures of the pool by the thing they show; those of one thing are adjacent in `members`."""
        owner, nouns = [], []
        for number, thing in enumerate(pack.load()):
            owner += [number] * len(thing.sides)
            known = [vocabulary[w + "</w>"] for w in thing.words if w + "</w>" in vocabulary]
            nouns.append(known[0] if known else NAMELESS)
        sides = np.array(pool.words(preset, len(self.plain), "side"))
        many = re.compile(rf"\b({'|'.join(map(str, lexicon.COUNTS.values()))}) {{}}")
        alone = np.array([many.search(sentence) is None for sentence in sentences])
        thing = np.where((sides >= 0) & alone, np.array(owner)[np.maximum(sides, 0)], -1)
        order = np.argsort(thing, kind="stable")
        order = order[thing[order] >= 0]
        counts = np.bincount(thing[order], minlength=len(nouns))
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        kept = np.flatnonzero(counts[thing[order]] > 1)
        device = training.device()
        self.members = torch.from_numpy(order).to(device)
        self.targets = torch.from_numpy(kept).to(
            device
        )  # positions in `members` whose thing has other pictures
        self.owner = torch.from_numpy(thing[order]).to(device)
        self.first, self.count = (torch.from_numpy(x).to(device) for x in (first, counts))
        self.world_nouns = torch.tensor(nouns, device=device)

    def pad(self, ids: torch.Tensor) -> torch.Tensor:
        return F.pad(ids, (0, 77 - ids.shape[1]), value=self.end)

    def built_batch(self, draw, count: int, unseen: bool = False) -> tuple:
        """Targets, two looks at other pictures of the same things, ids, nouns, and the things' numbers."""
        total = len(self.built_nouns)
        low, high = (total - self.unseen, total) if unseen else (0, total - self.unseen)
        thing = low + draw(count, high - low)
        scenes = things.SCENES
        target = draw(count, scenes)
        # two scenes that are neither the target nor, if possible, the one that shows several of the thing
        step = 1 + draw(count, scenes - 2)
        one = (target + step) % scenes
        two = (target + 1 + (step + draw(count, scenes - 2)) % (scenes - 1)) % scenes
        at = thing * scenes
        return (
            self.built[at + target],
            (self.built[at + one], self.built[at + two]),
            self.built_sentences[at + target],
            self.built_nouns[thing],
            thing,
        )

    def world_batch(self, draw, count: int) -> tuple:
        """The same of the world's things, from the pool."""
        place = self.targets[draw(count, len(self.targets))]
        thing = self.owner[place]
        first, size = self.first[thing], self.count[thing]

        def other() -> torch.Tensor:
            step = 1 + draw(count, ENDLESS) % (size - 1)
            return self.members[first + (place - first + step) % size]

        target = self.members[place]
        looks = self.plain[other()], self.plain[other()]
        return (
            self.plain[target],
            looks,
            self.sentences[target],
            self.world_nouns[thing],
            len(self.built_nouns) + thing,
        )


class Dice:
    """Everything random in a step, from its number, on the device."""

    def __init__(self, step: int, rank: int = 0):
        seed = int(training.generator(41, step).integers(2**62)) + rank
        self.generator = torch.Generator(training.device()).manual_seed(seed)

    def __call__(self, count: int, below: int) -> torch.Tensor:
        return torch.randint(below, (count,), device=training.device(), generator=self.generator)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=training.device(), generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=training.device(), generator=self.generator)


def make_rows(road: Road, dice: Dice, looks, nouns: torch.Tensor) -> tuple:
    """Rows (count, width) such as training might find, and the directions of the two looks."""
    count = len(nouns)
    with training.autocast():
        both = road.words(
            torch.cat(looks).float() + 0.1 * dice.normal(2 * count, *looks[0].shape[1:])
        )
    one, two = both.chunk(2)
    share = 0.5 * (dice.uniform(count, 1) < TWO_LOOKS).float()
    row = F.normalize(torch.lerp(one, two, share), dim=-1)
    noun = F.normalize(F.embedding(nouns.clamp(min=0), road.table.weight), dim=-1)
    toward = (dice.uniform(count, 1) < TOWARD_NOUN) & (nouns >= 0)[:, None]
    row = torch.lerp(row, noun, toward * 0.5 * dice.uniform(count, 1))
    noise = dice.normal(*row.shape) / row.shape[1] ** 0.5
    return road.full_length(row) + road.length * NOISE * dice.uniform(count, 1) * noise, one, two


def agreement(one: torch.Tensor, two: torch.Tensor, thing: torch.Tensor) -> torch.Tensor:
    """InfoNCE: each first look finds the second look at the same thing among all others."""
    similarity = SHARPNESS * one @ two.T
    same = thing[:, None] == thing[None]
    apart = same & ~torch.eye(len(thing), dtype=torch.bool, device=thing.device)
    similarity = similarity.masked_fill(apart, -1e4)
    target = torch.arange(len(thing), device=thing.device)
    return F.cross_entropy(similarity, target) / np.log(len(thing))


def draw_times(dice: Dice, count: int) -> torch.Tensor:
    """Timesteps (count,): DWELT of them from where a thing's shape is decided, the rest from everywhere."""
    low, high = SHAPES
    dwell = dice.uniform(count) < DWELT
    return torch.where(dwell, low + dice(count, high - low), dice(count, 1000))


def batch(road: Road, sayings: Sayings, dice: Dice, size: int) -> tuple:
    """Clean latents (size, 4, side, side), ids (size, 77), rows (size, width) and how much looks disagree."""
    plain, built = round(PLAIN * size), round(BUILT * size)
    chosen = dice(plain, len(sayings.plain))
    captions = torch.where(
        (dice.uniform(plain, 1) < DROPPED), sayings.empty, sayings.captions[chosen]
    )
    parts = [sayings.built_batch(dice, built), sayings.world_batch(dice, size - plain - built)]
    clean, one, two, ids, nouns, thing = (
        torch.cat(columns)
        for columns in zip(*((c, *looks, i, n, t) for c, looks, i, n, t in parts), strict=True)
    )
    rows, first, second = make_rows(road, dice, (one, two), nouns)
    ids = torch.where(dice.uniform(len(ids), 1) < UNNAMED, sayings.empty, ids)
    unused = rows.new_zeros(plain, rows.shape[1])
    return (
        torch.cat([sayings.plain[chosen], clean]).float(),
        sayings.pad(torch.cat([captions, ids])),
        torch.cat([unused, rows]),
        agreement(first, second, thing),
    )


def denoising_loss(
    road: Road, clean, ids, rows, times, noise, alphas, compiled: bool = True
) -> torch.Tensor:
    """Squared error of the predicted noise, (batch,). Compiled for one batch size; avoid others."""
    denoise = road.unet if compiled else road.unet.forward
    alpha = alphas[times][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    with training.autocast():
        hidden = road.read(ids, rows)
        predicted = denoise(noisy, times, hidden, return_dict=False)[0]
    return ((predicted.float() - noise) ** 2).mean(dim=(1, 2, 3))


def train(preset: Preset, wait: Callable[[], None] = lambda: None) -> training.Run:
    """Train all networks; `wait` returns when all pictures are composed, and a GPU compiles meanwhile."""
    device, alphas = training.device(), noise_levels().to(training.device())
    road, vocabulary = begin(preset)
    training.speed_up(
        road.unet
    )  # first, because it changes the layout of the weights that the run refers to
    run = training.Run(road, preset.folder / "words.pt", preset.words_steps, RATE, outer=OUTER)
    size = preset.words_batch
    warm_up(road, preset, alphas)
    wait()
    begun = time.monotonic()
    sayings = Sayings(preset, vocabulary)
    print(
        f"words: {len(sayings.plain)} plain and {len(sayings.built)} built pictures, "
        f"encoded in {time.monotonic() - begun:.0f} s; row length {road.length:.3f}",
        flush=True,
    )

    def step(number: int) -> torch.Tensor:
        dice = Dice(number, training.rank())
        clean, ids, rows, apart = batch(road, sayings, dice, size)
        times, noise = draw_times(dice, size), dice.normal(*clean.shape)
        signal = alphas[times] / (1 - alphas[times])
        weight = signal.clamp(max=MIN_SNR) / signal
        error = denoising_loss(road, clean, ids, rows, times, noise, alphas)
        return (weight * error).mean() + CONTRAST * apart

    def watch(run: training.Run) -> None:
        print(f"words {run.step}: {unseen_losses(road, sayings, alphas)}", flush=True)
        keep_average(run)

    watch(run)
    training.loop(
        run,
        step,
        lambda number, steps: training.cosine(number, steps, RATE, warmup=150, floor=0.01),
        keep=0.998,
        minutes=dict(preset.minutes).get("words"),
        save_every=50,
        watch=watch,
    )
    road.load_state_dict({k: v.to(device) for k, v in run.average.items()})
    print(f"words, averaged: {unseen_losses(road, sayings, alphas)}", flush=True)
    draw_sheet(preset, road, sayings, preset.folder / "words.png")
    return run


def warm_up(road: Road, preset: Preset, alphas: torch.Tensor) -> None:
    """One forward and backward pass on noise, so that a GPU compiles while other processes compose pictures."""
    if not training.on_gpu():
        return
    begun, size, side = time.monotonic(), preset.words_batch, preset.latent_size
    noise = torch.randn(size, 4, side, side, device=training.device())
    ids = torch.full((size, 77), preset.vocabulary - 1, device=training.device())
    rows = torch.zeros(size, preset.text_width, device=training.device(), requires_grad=True)
    times = torch.full((size,), 500, device=training.device())
    denoising_loss(road, noise, ids, rows, times, noise, alphas).mean().backward()
    road.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    print(f"words: compiled in {time.monotonic() - begun:.0f} s", flush=True)


@torch.no_grad()
def unseen_losses(road: Road, sayings: Sayings, alphas: torch.Tensor) -> str:
    """Loss on things that no training sees, named by a look, a noun, or nothing; at low and high timesteps."""
    dice, words, count = Dice(ENDLESS), [], 512 if training.on_gpu() else 48
    clean, looks, ids, nouns, _ = sayings.built_batch(dice, count, unseen=True)
    noise = dice.normal(*clean.shape)
    with training.autocast():
        look = road.full_length(road.words(looks[0].float()))
    noun = F.embedding(nouns.clamp(min=0), road.table.weight)
    empty = sayings.pad(sayings.empty.expand(count, -1))
    for low, high in ((0, 400), (400, 960)):
        times = low + dice(count, high - low)
        for name, said, rows in (
            ("look", sayings.pad(ids), look),
            ("noun", sayings.pad(ids), noun),
            ("empty", empty, noun),
        ):
            loss = denoising_loss(road, clean.float(), said, rows, times, noise, alphas, False)
            words.append(f"{name} {loss.mean().item():.4f}")
        words.append("|")
    with training.autocast():
        second = road.words(looks[1].float())
    found = (F.normalize(look, dim=-1) @ second.T).argmax(1).cpu() == torch.arange(count)
    return " ".join(words) + f" second look found {found.float().mean().item():.2f} of {count}"


def keep_average(run: training.Run) -> None:
    """Write the averaged weights in fp16 to a file that can be copied from the machine: `words-average.pt`."""
    if training.rank() != 0:
        return
    half = {k: v.half() if v.is_floating_point() else v for k, v in run.average.items()}
    part = run.path.with_name("words-average.part")
    torch.save(
        {"average": half, "step": run.step, "steps": run.steps, "seconds": run.seconds}, part
    )
    part.replace(run.path.with_name("words-average.pt"))


@torch.no_grad()
def generate(road: Road, preset: Preset, ids, rows, empty, seed: int = 0, steps: int = 30):
    """Scaled latents of pictures for ids (count, 77) said with rows, by DDIM with guidance 2.5."""
    from diffusers import DDIMScheduler

    settings = {**presets.scheduler_settings(), "clip_sample": False}
    scheduler = DDIMScheduler(**settings)
    scheduler.set_timesteps(steps)
    device, count, side = training.device(), len(ids), preset.latent_size
    own = torch.Generator().manual_seed(seed)
    state = torch.randn(count, 4, side, side, generator=own).to(device)
    with training.autocast():
        hidden = torch.cat([road.read(empty.expand(count, -1), None), road.read(ids, rows)])
    for t in scheduler.timesteps:
        with training.autocast():
            both = road.unet.forward(
                torch.cat([state, state]), t.to(device).expand(2 * count), hidden, return_dict=False
            )[0].float()
        without, asked = both.chunk(2)
        state = scheduler.step(without + 2.5 * (asked - without), t, state).prev_sample
    return state


@torch.no_grad()
def draw_sheet(preset: Preset, road: Road, sayings: Sayings, path: Path) -> None:
    """Unseen things: a picture of each, then pictures drawn from one look at it; below them, plain prompts."""
    road.eval()
    vae, factor = latents.load_vae(preset), latents.scaling_factor(preset)
    total, scenes = len(sayings.built_nouns), things.SCENES
    chosen = [n for n in range(total - 1, 0, -1) if n % things.HUED][:16]
    at = torch.tensor([n * scenes for n in chosen], device=sayings.built.device)
    with training.autocast():
        rows = road.full_length(road.words(sayings.built[at].float()))
    columns = [sayings.built[at].float()]
    for seed, sentence in enumerate(SAID):
        ids = sayings.pad(Sayings._ids(preset, [sentence.format(STAND_IN)])).expand(len(at), -1)
        columns.append(generate(road, preset, ids, rows, sayings.pad(sayings.empty), seed))
    prompts = [f"a {noun} on the beach" for noun in NOUNS[: len(at)]]
    ids = sayings.pad(Sayings._ids(preset, prompts))
    columns.append(generate(road, preset, ids, None, sayings.pad(sayings.empty), 4))
    lines = []
    for column in columns:
        with training.autocast():
            pictures = vae.decode((column / factor).to(training.device())).sample.float()
        pixels = ((pictures + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        lines.append(np.concatenate(list(pixels), 1))
    Image.fromarray(np.concatenate(lines, 0)).save(path)
    road.train()
