"""Does a step cost more with a larger vocabulary, or with more photos?

    python -m benchmarks.step_growth

Measures CPU seconds per step on one thread, of the bundled model with longer tables and with more photos of noise, all
alternating in one process; for comparison, a step that trains the whole table, as other programs do. Writes
docs/step-cost.png and benchmarks/step_growth.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks import programs, step_cost
from benchmarks.step_cost import in_turns, make_training
from tiutils import diffusion, token_embedding
from tiutils.figures import output
from tiutils.training import Training, training_step

ROOT = programs.ROOT
VOCABULARIES, PHOTOS = (8192, 49408, 500_000), (3, 30, 300)


def main() -> int:
    """Measure, plot, write and print the results."""
    options = step_cost.parse(sys.argv[1:])
    torch.set_num_threads(1)
    record = {
        "command": " ".join(["python -m benchmarks.step_growth", *sys.argv[1:]]),
        "machine": programs.machine(),
        "batch": options.batch,
        "vocabulary": vocabulary_growth(options),
        "photos": photo_growth(options),
    }
    figure = draw(record)
    output.save(figure, ROOT / "docs" / "step-cost.png")
    path = ROOT / "benchmarks" / "step_growth.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(figure.get_label())
    return 0


def vocabulary_growth(options: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds per step by rows of the table, here and in a program that trains the whole table."""
    works: dict[str, Callable[[int], object]] = {}
    for size in VOCABULARIES:
        training = make_training(options, vocabulary=size)
        works[f"ours {size}"] = lambda number, t=training: training_step(t, number)
        works[f"whole {size}"] = whole_table_step(training)
    seconds = in_turns(works, options.rounds, options.device)
    return [
        {"rows": n, "ours": seconds[f"ours {n}"], "whole": seconds[f"whole {n}"]}
        for n in VOCABULARIES
    ]


def whole_table_step(training: Training) -> Callable[[int], None]:
    """The step of other programs: the whole table has gradients and moments, then all other rows are restored."""
    parts = token_embedding.merged(training.models)
    parts.text_encoder.to(parts.device)
    table = parts.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    before, count = table.detach().clone(), len(training.rows)
    optimizer = torch.optim.AdamW([table], lr=5e-4)

    def work(number: int) -> None:
        batch = training.dataset.plan.batch_size
        diffusion.losses_at(parts, training.dataset, number, 0, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        table.data[:-count] = before[:-count]

    return work


def photo_growth(options: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds per step by the number of photos."""
    trainings = {count: make_training(options, photos=count) for count in PHOTOS}
    works = {
        str(count): lambda number, t=training: training_step(t, number)
        for count, training in trainings.items()
    }
    seconds = in_turns(works, options.rounds, options.device)
    return [{"photos": count, "ours": seconds[str(count)]} for count in PHOTOS]


def draw(record: dict[str, Any]) -> Figure:
    """Two panels: seconds per step by rows of the table, and by photos."""
    figure = Figure(figsize=(7.6, 2.8), dpi=output.DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    by_rows, by_photos = record["vocabulary"], record["photos"]
    rows, photos = [r["rows"] for r in by_rows], [r["photos"] for r in by_photos]
    left.plot(
        rows,
        [r["whole"] for r in by_rows],
        "s--",
        color=output.VERMILION,
        label="whole table trained",
    )
    left.plot(rows, [r["ours"] for r in by_rows], "o-", color=output.BLUE, label="new rows only")
    left.set(xlabel="rows of the embedding table", ylabel="CPU seconds a step", xscale="log")
    left.set_xticks(rows, [f"{n:,}" for n in rows])
    left.legend(frameon=False, fontsize=8)
    right.plot(photos, [r["ours"] for r in by_photos], "o-", color=output.BLUE)
    right.set(xlabel="photos", xscale="log", ylim=(0, 1.5 * max(r["ours"] for r in by_photos)))
    right.set_xticks(photos, [str(n) for n in photos])
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    first, last = by_rows[0], by_rows[-1]
    figure.set_label(
        f"CPU seconds a step. Left: from {first['rows']:,} to {last['rows']:,} rows of the embedding table, a step "
        f"that trains only the new rows stays near {last['ours']:.2f}, one that trains the whole table grows from "
        f"{first['whole']:.2f} to {last['whole']:.2f}. Right: from {photos[0]} to {photos[-1]} photos, "
        f"{by_photos[0]['ours']:.2f} and {by_photos[-1]['ours']:.2f}."
    )
    return figure


if __name__ == "__main__":
    sys.exit(main())
