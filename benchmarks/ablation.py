"""Which settings give better words? Each switch alone, judged on four things by pictures, sentences and losses.

    python -m benchmarks.ablation

Teaches three concepts and a held-out thing to the bundled model with the defaults, with one setting changed at a
time, with the field guide's settings, and with `benchmarks.experiments`, which tiutils does not have. The words and
their pictures are those of `benchmarks.identity`, which keeps them in `--runs`: what is there is not made again, and
an interrupted benchmark continues where it stopped. Writes benchmarks/ablation.json, docs/ablation.png and the table in
docs/better_rows.md; `--tables` does so from the record, without teaching anything.

Captions and masks are left out: the course's photos have neither.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

import tiutils
from benchmarks import experiments, identity, witness
from benchmarks.experiments import EXPERIMENTS
from benchmarks.quality import ROOT, write_between_markers
from tiutils import batches, diffusion, models, token_embedding
from tiutils.config import AS_THE_SCRIPT
from tiutils.evaluation import metrics, sensitivity
from tiutils.figures import output
from tiutils.io.pretrained import BUNDLED_MODEL

RECORD = ROOT / "benchmarks" / "ablation.json"
FIGURE = ROOT / "docs" / "ablation.png"
STEPS, PICTURES = 300, 16
THINGS = ("wood-toy", "teddy-bear", "rocking-horse", "moka-pot")
DIRECTIONAL: dict[str, Any] = {"optimizer": "directional", "learning_rate": 0.01}
PRODIGY: dict[str, Any] = {"prodigy": True, "learning_rate": 1.0}
PLAIN = "defaults"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "without norm control": {"norm_control": 0.0},
    "uniform timesteps": {"timestep_sampling": "uniform"},
    "the field guide's: neither, 2e-3": {**AS_THE_SCRIPT, "learning_rate": 2e-3},
    "rows averaged, 50": {"average_rows": 50},
    "directional": DIRECTIONAL,
    "directional, averaged, 50": {**DIRECTIONAL, "average_rows": 50},
    "Prodigy": PRODIGY,
    "Prodigy without norm control": {**PRODIGY, "norm_control": 0.0},
    "timesteps 300 to 950": {"timestep_range": (300, 950)},
    "cosine schedule": {"lr_scheduler": "cosine", "lr_warmup_steps": 0},
    "Min-SNR 5": {"snr_gamma": 5.0},
    "no weight decay": {"adam_weight_decay": 0.0},
    "rate 5e-4": {"learning_rate": 5e-4},
    "rate 2e-2": {"learning_rate": 2e-2},
    "start from photos": {"start": "look"},
    "start from a picked word": {"pick_initializer": True},
    "cross initialization": {"cross_initialization": True},
    "start from five nouns": {"several_nouns": True},
    "start from no word": {"no_word": True},
    "a term that keeps the sentence": {"keep_sentence": True},
}
# what the table shows: measure, column, digits, and whether more is better
COLUMNS = (
    ("first", "first of 60", 2, 1),
    ("among_five", "first five", 2, 1),
    ("among_five_sharp", "first five, sharp eye", 2, 1),
    ("first_in_places", "first of 60, in places", 2, 1),
    ("place", "place", 2, 1),
    ("sensitivity", "prompt sensitivity", 2, 1),
    ("loss", "loss, of the noun's", 3, -1),
    ("length", "length, of the noun's", 1, 0),
)


@dataclass(frozen=True)
class Settings(identity.Settings):
    """Those of `benchmarks.identity`, and experiments, which are no part of tiutils."""

    def flags(self, word: str, noun: str) -> dict[str, Any]:
        flags = super().flags(word, noun)
        return {name: value for name, value in flags.items() if name not in EXPERIMENTS}


def settings_of(variant: str) -> Settings:
    """How the words of a variant are taught and drawn."""
    more = dict(VARIANTS[variant])
    start = more.pop("start", "noun")
    return Settings(STEPS, PICTURES, start, tuple(more.items()))


def judged(variant: str, thing: str, seed: int, runs: Path, judges: Judges) -> dict[str, float]:
    """Everything that is measured of one word, kept beside its pictures."""
    settings = settings_of(variant)
    path = identity.word_folder(judges.model, thing, seed, settings, runs) / "judged.json"
    if not path.exists():
        with experiments.put_in_place(dict(settings.more), *identity.card(thing)):
            drawn = identity.word_pictures(judges.model, thing, seed, settings, runs)
        found = judges.pictures.all(drawn, thing) | judges.row(path.parent, thing)
        path.write_text(json.dumps(found, indent=2) + "\n")
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Judges:
    """Who judges a word's pictures, and its row."""

    model: Path
    pictures: identity.Judges

    @classmethod
    def call(cls, model: Path) -> Judges:
        """With the model's own evaluator for the places."""
        return cls(model, identity.Judges.call(model / "evaluator"))

    def row(self, folder: Path, thing: str) -> dict[str, float]:
        """Prompt sensitivity, loss on held-out photos, and length, the last two as shares of the plain noun's."""
        parts, (word, noun) = tiutils.load(self.model), identity.card(thing)
        tiutils.load_embedding(parts, folder / "learned_embeds.safetensors")
        return {
            "sensitivity": sensitivity.prompt_sensitivity(spread(parts, word), spread(parts, noun)),
            "loss": held_out_loss(parts, thing, word) / held_out_loss(parts, thing, noun),
            "length": length(parts, word) / length(parts, noun),
        }


def spread(parts: models.Models, word: str) -> float:
    """How far predictions for six sentences with the word lie apart."""
    plan = batches.BatchPlan(0, 1, (1,), 1, parts.latent_shape())
    return sensitivity.prompt_spread(functools.partial(diffusion.predictions, parts), plan, word)


def held_out_loss(parts: models.Models, thing: str, word: str) -> float:
    """The mean loss on the photos that no word is taught with, over the same draws for every word."""
    photos = witness.gallery()[thing]
    return metrics.fixed_evaluation_loss(parts, photos, word)


def length(parts: models.Models, word: str) -> float:
    """The length of a word's row."""
    return float(token_embedding.vector_of(parts, word).norm())


Results = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]  # variant, thing, seeds


def differences(results: Results, variant: str, measure: str) -> np.ndarray:
    """A variant less the defaults, a number for each word that both have taught."""
    pairs = [
        (word[measure], plain[measure])
        for thing in results.get(variant, {})
        for word, plain in zip(results[variant][thing], results[PLAIN].get(thing, ()), strict=False)
    ]
    return np.array([one - other for one, other in pairs])


def mean_of(results: Results, variant: str, measure: str) -> float:
    """The mean over all words of a variant."""
    return float(np.mean([word[measure] for seeds in results[variant].values() for word in seeds]))


def error(values: np.ndarray) -> float:
    """One standard error of the mean; NaN of a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def margin(values: np.ndarray) -> float:
    """Half the mean's 95 % confidence interval by Student's t, wide for few values: 3.2 errors for four."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.ppf(0.975, len(values) - 1)) * error(values) + 1e-9


def as_markdown(results: Results) -> str:
    """A line for each variant: its means; bold where it differs from the defaults by more than `margin`."""
    lines = [
        f"| setting | words | {' | '.join(column for _, column, _, _ in COLUMNS)} |",
        "|---|" + "--:|" * (1 + len(COLUMNS)),
    ]
    for variant in results:
        words = sum(map(len, results[variant].values()))
        cells = []
        for measure, _, digits, better in COLUMNS:
            change, mean = (
                differences(results, variant, measure),
                mean_of(results, variant, measure),
            )
            cell = f"{mean:.{digits}f}"
            if better and abs(change.mean()) > margin(change):
                cell = f"**{cell}** {'↑' if change.mean() > 0 else '↓'}"
            cells.append(cell)
        lines.append(f"| {variant} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def frontier(results: Results) -> Figure:
    """Identity against place: a point for each variant, with one standard error of its difference from the defaults."""
    figure = Figure(figsize=(10.5, 5.6), dpi=output.DPI, layout="constrained")
    axis = figure.subplots()
    at: dict[tuple[float, float], list[int]] = {}  # numbers of the variants whose points coincide
    text = []
    for number, variant in enumerate(results, start=1):
        x, y = (mean_of(results, variant, measure) for measure in ("place", "among_five"))
        wide, high = (
            error(differences(results, variant, measure)) for measure in ("place", "among_five")
        )
        at.setdefault((round(x, 3), round(y, 3)), []).append(number)
        is_plain = variant == PLAIN
        if not is_plain:
            axis.errorbar(x, y, xerr=wide, yerr=high, color="0.8", elinewidth=0.8, zorder=1)
        look = {"marker": "D", "color": output.VERMILION} if is_plain else {"color": output.BLUE}
        axis.scatter(x, y, s=45, zorder=3 if is_plain else 2, label=f"{number}  {variant}", **look)
        text.append(f"{variant} {y:.2f}, {x:.2f}")
    for place, numbers in at.items():
        axis.annotate(
            ", ".join(map(str, numbers)), place, xytext=(5, 4), textcoords="offset points"
        )
    axis.set(
        xlabel="shows the place asked for (share of pictures)",
        ylabel="right thing among the first five of 60 (share)",
    )
    axis.margins(0.12)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, handlelength=1)
    figure.set_label(
        "A point for each setting: how often the right thing is among the first five of 60, against how often the "
        "pictures show the place asked for. Lines: one standard error of the difference from the defaults. "
        f"{'; '.join(text)}."
    )
    return figure


def write(results: Results) -> None:
    """The figure and the table."""
    output.save(frontier(results), FIGURE)
    write_between_markers(ROOT / "docs" / "better_rows.md", as_markdown(results), "ablation")
    print(as_markdown(results))


def main() -> int:
    """Teach and judge what is missing; write the record, the figure and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--things", nargs="+", choices=witness.taught(), default=THINGS)
    parser.add_argument("--seeds", type=int, default=1, help="words of each thing")
    parser.add_argument("--runs", type=Path, default=Path("runs/identity"))
    parser.add_argument("--tables", action="store_true", help="only write table and figure anew")
    given = parser.parse_args()
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if given.tables:
        write(json.loads(RECORD.read_text())["results"])
        return 0
    judges, results = Judges.call(BUNDLED_MODEL.relative_to(ROOT)), {}
    for variant in given.variants:
        begun = time.perf_counter()
        results[variant] = {
            thing: [judged(variant, thing, seed, given.runs, judges) for seed in range(given.seeds)]
            for thing in given.things
        }
        print(f"{variant}: {time.perf_counter() - begun:.0f} s", flush=True)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.ablation", "--variants", *results]),
        "model": identity.fingerprint(judges.model),
        "steps": STEPS,
        "pictures": PICTURES,
        "results": results,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
