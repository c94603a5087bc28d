"""Which switches give better rows in fewer steps, and which learning rate?

    python -m benchmarks.ablation

Each switch alone, then together, on the three concepts, 100 steps of the bundled model; the score is
the loss on held-out photos, on the same draws for all. Then learning rates over four decades. What
is measured already is taken from benchmarks/ablation.csv; delete a line to measure it anew. Writes
that table and docs/learning-rates.png, and prints what a page needs. Captions and masks are not
among them: the course's photos have neither.
"""

from __future__ import annotations

import csv
import logging
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks.quality import CONCEPTS, ROOT, card, photos, teach
from tiutils import evaluation, figures

TABLE = ROOT / "benchmarks" / "ablation.csv"
COLUMNS = ("concept", "variant", "steps", "evaluation_loss")
LOOKS = (10, 25, 50, 100)  # steps; the last ends the run
DRAWS = 64
PHRASES = {"wood-toy": "wood toy", "rocking-horse": "toy horse", "teddy-bear": "toy bear"}
ALONE: dict[str, dict[str, Any]] = {
    "no weight decay": {"adam_weight_decay": 0.0},
    "norm control": {"norm_control": 0.1},
    "min-SNR": {"snr_gamma": 5.0},
    "noisy timesteps": {"timestep_sampling": "noisy"},
    "gradient clipping": {"max_grad_norm": 0.01},
    "cross initialization": {"cross_initialization": True},
    "phrase": {"initializer_phrase": PHRASES},
}
TOGETHER = {name: value for flags in ALONE.values() for name, value in flags.items()}
RATES = (5e-5, 5e-4, 5e-3, 5e-2, 5e-1)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    **ALONE,
    "together": TOGETHER,
    **{f"{rate:g}": {"learning_rate": rate} for rate in RATES},
}


def main() -> int:
    """Measure what is not in the table yet; print tables, draw the figure."""
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    for name in CONCEPTS:
        for variant, flags in VARIANTS.items():
            if not any((r["concept"], r["variant"]) == (name, variant) for r in read_table()):
                print(name, variant, flush=True)
                add_rows(list(measure(name, variant, flags)))
    table = read_table()
    figures.save(learning_rates(table), ROOT / "docs" / "learning-rates.png")
    print(as_markdown(table))
    return 0


def measure(name: str, variant: str, flags: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train once; a line for each look at the held-out loss."""
    word, held_out, losses = card(name)["placeholder_token"], photos(name, "held_out"), {}
    folder = ROOT / "runs" / "ablation" / f"{name}-{variant}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    flags = {k: v[name] if isinstance(v, dict) else v for k, v in flags.items()}

    def look(progress: Any) -> None:
        if progress.step in LOOKS:
            parts = progress.training.models
            measured = evaluation.evaluation_losses(parts, held_out, word, "object", DRAWS)
            losses[progress.step] = measured.mean().item()

    teach(name, folder, [look], max_train_steps=LOOKS[-1], **flags)
    for step, loss in losses.items():
        yield {"concept": name, "variant": variant, "steps": step, "evaluation_loss": f"{loss:.6f}"}


def read_table() -> list[dict[str, str]]:
    """The lines measured so far."""
    if not TABLE.exists():
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def add_rows(rows: list[dict[str, Any]]) -> None:
    """Append lines; those of one run together."""
    is_new = not TABLE.exists()
    with open(TABLE, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def loss_of(table: list[dict[str, str]], concept: str, variant: str, steps: int) -> float | None:
    """One number of the table; None if it is not measured."""
    wanted = (concept, variant, str(steps))
    found = [r for r in table if (r["concept"], r["variant"], r["steps"]) == wanted]
    return float(found[0]["evaluation_loss"]) if found else None


def as_markdown(table: list[dict[str, str]]) -> str:
    """By how much each switch lowers the loss against none, in thousandths of it, and whether everywhere."""
    lines = [
        f"| switch, {LOOKS[-1]} steps | " + " | ".join(CONCEPTS) + " | helps everywhere |",
        "|---|" + "--:|" * len(CONCEPTS) + "---|",
    ]
    for variant in [*ALONE, "together"]:
        gains = []
        for concept in CONCEPTS:
            plain, other = (
                loss_of(table, concept, name, LOOKS[-1]) for name in ("as it is", variant)
            )
            gains.append(None if not plain or not other else 1000 * (1 - other / plain))
        cells = [variant, *("" if gain is None else f"{gain:+.1f} ‰" for gain in gains)]
        known = [gain for gain in gains if gain is not None]
        verdict = "" if len(known) < len(gains) else "yes" if min(known) > 0 else "no"
        lines.append(f"| {' | '.join([*cells, verdict])} |")
    return "\n".join(lines)


def learning_rates(table: list[dict[str, str]]) -> Figure:
    """Held-out loss over the steps, a line for each learning rate, a panel for each concept."""
    figure = Figure(figsize=(9.6, 2.9), dpi=figures.DPI, layout="constrained")
    axes, text = figure.subplots(1, len(CONCEPTS)), []
    colors = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00")
    for axis, concept in zip(axes, CONCEPTS, strict=True):
        for rate, color in zip(RATES, colors, strict=True):
            values = [loss_of(table, concept, f"{rate:g}", step) for step in LOOKS]
            known = [(s, v) for s, v in zip(LOOKS, values, strict=True) if v is not None]
            if known:
                axis.plot(*zip(*known, strict=True), "o-", color=color, label=f"{rate:g}")
        best = {rate: loss_of(table, concept, f"{rate:g}", LOOKS[-1]) for rate in RATES}
        best = {rate: loss for rate, loss in best.items() if loss is not None}
        if best:
            text.append(f"{concept}: {min(best, key=lambda rate: best[rate]):g}")
        axis.set(title=concept, xlabel="steps", xscale="log", xticks=LOOKS, xticklabels=LOOKS)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss on held-out photos")
    if axes[-1].lines:
        axes[-1].legend(title="learning rate", frameon=False, fontsize=8)
    figure.set_label(
        "Loss on held-out photos over the steps for learning rates over four decades; lowest after "
        f"{LOOKS[-1]} steps with {', '.join(text)}."
    )
    return figure


if __name__ == "__main__":
    sys.exit(main())
