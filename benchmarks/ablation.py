"""Which switches give better rows in fewer steps, and which learning rate?

    python -m benchmarks.ablation

Trains the bundled model for 100 steps on each of the three concepts, with each switch alone, then
with all of them. The scores are those of `benchmarks.quality`, on held-out photos and with the same
random draws for every variant. Learning rates over four decades follow. Results that are already in
benchmarks/ablation.csv are not measured again; delete a line to repeat it. Writes that table,
docs/learning-rates.png and the table in docs/better_rows.md. Captions and masks are left out: the
course's photos have neither.
"""

from __future__ import annotations

import csv
import logging
import shutil
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks.quality import (
    CONCEPTS,
    FOLLOWED,
    ROOT,
    card,
    photos,
    teach,
    write_between_markers,
)
from tiutils.config import AS_THE_SCRIPT
from tiutils.evaluation import clip, comparison, metrics
from tiutils.figures import output

TABLE = ROOT / "benchmarks" / "ablation.csv"
COLUMNS = ("concept", "variant", "steps", *comparison.METRICS)
LOOKS = (10, 25, 50, 100)  # steps at which the loss is measured, at the last all scores
DRAWS = 64
NUM_IMAGES = 8
JUDGED_BY = ("evaluation_loss", "image_similarity", "prompt_following")
PHRASES = {"wood-toy": "wood toy", "rocking-horse": "toy horse", "teddy-bear": "toy bear"}
ALONE: dict[str, dict[str, Any]] = {
    "no weight decay": {"adam_weight_decay": 0.0},
    "norm control": {"norm_control": 0.1},
    "min-SNR": {"snr_gamma": 5.0},
    "noisy timesteps": {"timestep_sampling": "noisy"},
    "gradient clipping": {"max_grad_norm": 0.01},
    "cosine schedule": {"lr_scheduler": "cosine", "lr_warmup_steps": 0},
    "cross initialization": {"cross_initialization": True},
    "phrase": {"initializer_phrase": PHRASES},
}
# left out of "together", where the phrase already says where to start
PICKED = {"picked initializer": {"pick_initializer": True}}
TOGETHER = {name: value for flags in ALONE.values() for name, value in flags.items()}
RATES = (5e-5, 5e-4, 5e-3, 5e-2, 5e-1)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    **ALONE,
    **PICKED,
    "together": TOGETHER,
    **{f"{rate:g}": {"learning_rate": rate} for rate in RATES},
}


def main() -> int:
    """Measure what the table lacks; print the tables and draw the figure."""
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    for name in CONCEPTS:
        for variant, flags in VARIANTS.items():
            if not any((r["concept"], r["variant"]) == (name, variant) for r in read_table()):
                print(name, variant, flush=True)
                add_rows(list(measure(name, variant, flags)))
    table = read_table()
    output.save(learning_rates(table), ROOT / "docs" / "learning-rates.png")
    text = as_markdown(table)
    write_between_markers(ROOT / "docs" / "better_rows.md", text, "ablation")
    print(text)
    return 0


def measure(name: str, variant: str, flags: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train once; yields a line for each step in LOOKS."""
    words, held_out, found = card(name), photos(name, "held_out"), {}
    word, plain_word = words["placeholder_token"], words["initializer_token"]
    folder = ROOT / "runs" / "ablation" / f"{name}-{variant}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    flags = {k: v[name] if isinstance(v, dict) else v for k, v in flags.items()}

    def look(progress: Any) -> None:
        if progress.step in LOOKS[:-1]:
            parts = progress.training.models
            losses = metrics.evaluation_losses(parts, held_out, word, "object", DRAWS)
            found[progress.step] = {"evaluation_loss": losses}

    flags = {**AS_THE_SCRIPT, **flags}
    parts = teach(name, folder, [look], max_train_steps=LOOKS[-1], **flags).models
    found[LOOKS[-1]] = comparison.evaluate_word(
        parts,
        word,
        held_out,
        plain_word=plain_word,
        num_images=NUM_IMAGES,
        questions=comparison.Questions(clip.bundled_with(parts), FOLLOWED),
    )
    for step, measured in found.items():
        values = {key: f"{values.mean():.6f}" for key, values in measured.items()}
        yield {"concept": name, "variant": variant, "steps": step, **values}


def read_table() -> list[dict[str, str]]:
    """The lines measured so far."""
    if not TABLE.exists():
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def add_rows(rows: list[dict[str, Any]]) -> None:
    """Append the lines of one run, all at once."""
    is_new = not TABLE.exists()
    with open(TABLE, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def value_of(
    table: list[dict[str, str]], concept: str, variant: str, steps: int, measure: str
) -> float | None:
    """One number of the table; None if it has not been measured."""
    wanted = (concept, variant, str(steps))
    found = [r for r in table if (r["concept"], r["variant"], r["steps"]) == wanted]
    return float(found[0][measure]) if found and found[0].get(measure) else None


def gains(table: list[dict[str, str]], variant: str, measure: str) -> list[float]:
    """By how many percent a variant beats the run without switches, on each concept measured so far."""
    better = []
    for concept in CONCEPTS:
        plain, other = (
            value_of(table, concept, name, LOOKS[-1], measure) for name in ("as it is", variant)
        )
        if plain and other:
            better.append(100 * comparison.METRICS[measure][1] * (other / plain - 1))
    return better


def as_markdown(table: list[dict[str, str]]) -> str:
    """By how much each switch beats the run without switches: the mean over concepts, and on how many it does."""
    names = [comparison.METRICS[measure][0][:-2] for measure in JUDGED_BY]
    lines = [
        f"| switch, {LOOKS[-1]} steps | {' | '.join(names)} | helps on every concept |",
        "|---|" + "--:|" * len(names) + "---|",
    ]
    for variant in [*ALONE, *PICKED, "together"]:
        measured = [gains(table, variant, measure) for measure in JUDGED_BY]
        cells = [
            f"{statistics.mean(gain):+.1f} % ({sum(g > 0 for g in gain)} of {len(gain)})"
            if gain
            else ""
            for gain in measured
        ]
        known = all(len(gain) == len(CONCEPTS) for gain in measured)
        verdict = "" if not known else "yes" if min(map(min, measured)) > 0 else "no"
        lines.append(f"| {' | '.join([variant, *cells, verdict])} |")
    return "\n".join(lines)


def learning_rates(table: list[dict[str, str]]) -> Figure:
    """Held-out loss over the steps, a line for each rate and a panel for each concept; then the pictures."""
    figure = Figure(figsize=(12.4, 2.9), dpi=output.DPI, layout="constrained")
    *axes, last = figure.subplots(1, len(CONCEPTS) + 1)
    colors = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00")
    text = []
    for axis, concept in zip(axes, CONCEPTS, strict=True):
        at_the_end = {}
        for rate, color in zip(RATES, colors, strict=True):
            losses = {s: value_of(table, concept, f"{rate:g}", s, "evaluation_loss") for s in LOOKS}
            known = {step: loss for step, loss in losses.items() if loss is not None}
            axis.plot(list(known), list(known.values()), "o-", color=color, label=f"{rate:g}")
            at_the_end[rate] = known.get(LOOKS[-1], float("inf"))
        text.append(f"{concept}: {min(RATES, key=lambda rate: at_the_end[rate]):g}")
        axis.set(title=concept, xlabel="steps", xscale="log", xticks=LOOKS, xticklabels=LOOKS)
        axis.minorticks_off()
    axes[0].set_ylabel("loss on held-out photos")
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, title="learning rate", loc="outside left center", frameon=False)
    styles = {"image_similarity": "o-", "prompt_following": "s--"}
    for measure, color in zip(styles, (output.BLUE, output.VERMILION), strict=True):
        means = {}
        for rate in RATES:
            values = [value_of(table, c, f"{rate:g}", LOOKS[-1], measure) for c in CONCEPTS]
            known_values = [value for value in values if value is not None]
            if known_values:
                means[rate] = statistics.mean(known_values)
        label = comparison.METRICS[measure][0][:-2]
        last.plot(list(means), list(means.values()), styles[measure], color=color, label=label)
        if means:
            text.append(f"{label} is highest with {max(means, key=lambda rate: means[rate]):g}")
    last.set(title=f"pictures after {LOOKS[-1]} steps", xlabel="learning rate", xscale="log")
    last.legend(frameon=False, fontsize=8)
    for axis in (*axes, last):
        axis.spines[["top", "right"]].set_visible(False)
    figure.set_label(
        "Loss on held-out photos over the steps for learning rates over four decades, and what is "
        f"drawn after {LOOKS[-1]} steps. Lowest loss: {', '.join(text)}."
    )
    return figure


if __name__ == "__main__":
    sys.exit(main())
