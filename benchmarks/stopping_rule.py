"""Which step of a run should be kept? Rules that need no picture, against what independent judges say of the pictures.

    python -m benchmarks.stopping_rule

Teaches words for 600 steps, with the defaults and without norm control, which lets a word drown out the sentence. At
six steps of each run pictures are drawn and judged: does the witness find the right thing among the first five of 60,
does the evaluator find the place asked for? A step's worth is the product of both shares. Each rule then keeps a step,
and the table says what that step is worth beside the best of the six. What is in `--runs` is not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiutils
from benchmarks import ablation, identity, witness
from benchmarks.quality import ROOT, write_between_markers
from tiutils.evaluation.clip import ClipScorer
from tiutils.io.pretrained import BUNDLED_MODEL

RECORD = ROOT / "benchmarks" / "stopping_rule.json"
STEPS, PICTURES = 600, 8
LOOKS = (50, 100, 200, 300, 450, 600)
THINGS = ("wood-toy", "teddy-bear", "moka-pot")
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "without norm control": {"norm_control": 0.0},
}
Look = Mapping[str, float]  # what was measured of one step


def teach(thing: str, setting: str, folder: Path) -> None:
    """A run that ends with its last step, with its fixed losses, prompt sensitivities and words on the way."""
    word, noun = identity.card(thing)
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(BUNDLED_MODEL),
        train_data_dir=str(witness.taught()[thing]),
        placeholder_token=word,
        initializer_token=noun,
        output_dir=str(folder),
        max_train_steps=STEPS,
        save_steps=50,
        early_stopping=True,
        early_stopping_window=STEPS - 1,
        resume_from_checkpoint="latest",
        **SETTINGS[setting],
    )
    if stopped := tiutils.train(config).stopped:
        sys.exit(f"{folder}: {stopped}")


def look(thing: str, step: int, folder: Path, judges: ablation.Judges) -> Look:
    """Pictures of the word of one step, judged; kept beside the word."""
    path = folder / f"judged-{step}.json"
    if not path.exists():
        parts, (word, noun) = tiutils.load(judges.model), identity.card(thing)
        tiutils.load_embedding(parts, folder / f"learned_embeds-steps-{step}.safetensors")
        drawn = identity.draw(parts, word, PICTURES)
        identity.save(drawn, folder / f"pictures-{step}.png", word)
        found = judges.pictures.all(drawn, thing)
        found["following"] = following(judges.pictures.clip, drawn, noun)
        found["held_out_loss"] = ablation.held_out_loss(parts, thing, word)
        found["length"] = ablation.length(parts, word) / ablation.length(parts, noun)
        path.write_text(json.dumps(found, indent=2) + "\n")
    record = json.loads((folder / "run.json").read_text())
    loss, sensitivity = (newest(record[n], step) for n in ("fixed_losses", "prompt_sensitivity"))
    return {**json.loads(path.read_text()), "loss": loss, "sensitivity": sensitivity}


def newest(history: Mapping[str, float], step: int) -> float:
    """The last value that was known at a step."""
    return history[max((at for at in history if int(at) <= step), key=int)]


def following(scorer: ClipScorer, drawn: identity.Drawn, noun: str) -> float:
    """The evaluator's similarity between pictures in places and their prompts, said with the noun."""
    each = len(drawn.placed) // len(identity.ASKED)
    prompts = [f"a {noun} {place}" for place in identity.ASKED for _ in range(each)]
    pairs = scorer.encode_images(drawn.placed) * scorer.encode_text(prompts)
    return float(pairs.sum(dim=1).mean())


def worth(seen: Look) -> float:
    """The share of pictures with the right thing times the share in the right place."""
    return seen["among_five"] * seen["place"]


def lowest_loss(looks: Mapping[int, Look]) -> int:
    return min(looks, key=lambda step: looks[step]["loss"])


def sensitive(floor: float) -> Callable[[Mapping[int, Look]], int]:
    """The lowest loss among the steps whose prompt sensitivity is at least `floor`; without one, the most sensitive."""

    def rule(looks: Mapping[int, Look]) -> int:
        kept = {step: seen for step, seen in looks.items() if seen["sensitivity"] >= floor}
        return lowest_loss(kept) if kept else max(looks, key=lambda s: looks[s]["sensitivity"])

    return rule


def best_following(looks: Mapping[int, Look]) -> int:
    return max(looks, key=lambda step: looks[step]["following"])


RULES: dict[str, Callable[[Mapping[int, Look]], int]] = {
    "the last step": max,
    "lowest loss": lowest_loss,
    **{
        f"lowest loss, sensitivity ≥ {floor:g}": sensitive(floor)
        for floor in (0.6, 0.7, 0.8, 0.9, 1.0)
    },
    "CLIP follows the prompt best": best_following,
    "the best of the six": lambda looks: max(looks, key=lambda step: worth(looks[step])),
}


def as_markdown(runs: Mapping[str, Mapping[str, Mapping[int, Look]]]) -> str:
    """For each rule and setting: the mean step kept, how often thing and place are right, and the worth."""
    lines = [
        "| rule | " + " | ".join(f"{name}: step | thing | place | worth" for name in runs) + " |",
        "|---|" + "--:|" * 4 * len(runs),
    ]
    for name, rule in RULES.items():
        cells = []
        for things in runs.values():
            kept = [(step := rule(looks), looks[step]) for looks in things.values()]
            cells.append(f"{np.mean([step for step, _ in kept]):.0f}")
            for measure in (lambda s: s["among_five"], lambda s: s["place"], worth):
                cells.append(f"{np.mean([measure(seen) for _, seen in kept]):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Teach and judge what is missing; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--things", nargs="+", choices=witness.taught(), default=THINGS)
    parser.add_argument("--runs", type=Path, default=Path("runs/stopping_rule"))
    given = parser.parse_args()
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    judges = ablation.Judges.call(BUNDLED_MODEL.relative_to(ROOT))
    runs: dict[str, dict[str, dict[int, Look]]] = {name: {} for name in SETTINGS}
    for thing in given.things:
        for setting in SETTINGS:
            folder = given.runs / f"{thing}-{setting.replace(' ', '-')}"
            if not identity.is_finished(folder):
                teach(thing, setting, folder)
            runs[setting][thing] = {step: look(thing, step, folder, judges) for step in LOOKS}
            print(
                setting,
                thing,
                {s: round(worth(seen), 2) for s, seen in runs[setting][thing].items()},
            )
    RECORD.write_text(
        json.dumps({"command": "python -m benchmarks.stopping_rule", "runs": runs}, indent=1) + "\n"
    )
    text = as_markdown(runs)
    write_between_markers(ROOT / "docs" / "better_rows.md", text, "stopping_rule")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
