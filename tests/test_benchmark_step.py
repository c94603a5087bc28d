"""The benchmarks of a step: their arithmetic and commands; what they measure is tiny here."""

from __future__ import annotations

import itertools
import json
import os
import sys

import pytest
import torch

from benchmarks import against_diffusers, programs, step_cost, step_growth
from tiutils.figures import output

MIB = 2**20


def run_of(who, steps, seconds, **more):
    return {
        "who": who, "steps": steps, "cache": "warm", "seconds": 2 * seconds, "cpu_seconds": seconds,
        "peak_bytes": 600 * MIB, "checkpoint_bytes": 4096, **more,
    }  # fmt: skip


RUNS = [
    run
    for who, step in (
        ("ours 1x4", 0.2),
        ("theirs 1x4", 0.8),
        ("ours 4x1", 0.2),
        ("theirs 4x1", 0.3),
    )
    for run in (run_of(who, 10, 5 + 10 * step), run_of(who, 50, 5 + 50 * step))
]
RECORD = {
    "device": "cpu",
    "compared": "cpu_seconds",
    "summary": against_diffusers.summarize(RUNS, (10, 50)),
}


def test_against_diffusers_by_hand():
    ours = RECORD["summary"]["ours 1x4"]
    assert ours["cpu_seconds"] == pytest.approx(0.2) and ours["seconds"] == pytest.approx(0.4)
    assert ours["startup_cpu_seconds"] == pytest.approx(5)
    assert against_diffusers.ratio(RECORD, "1x4", "1x4") == pytest.approx(0.25)
    assert against_diffusers.missed(RECORD) == [("4x1", "4x1")]  # two thirds, where half is asked
    table = against_diffusers.as_markdown(RECORD).splitlines()
    assert table[2] == "| 1 × 4 | tiutils | 0.200 | 5.0 | 600 MiB | 4 KiB |"
    assert "0.25 (their 1 × 4, our 1 × 4)" in table[-1]


def test_both_programs_get_the_same_flags():
    options = against_diffusers.parse(["--diffusers", "CHECKOUT"])
    ours, theirs = (against_diffusers.command(who, "1x4", 7, options) for who in ("ours", "theirs"))
    assert ours[1:4] == ["-m", "tiutils", "train"] and theirs[3] == "CHECKOUT"
    assert ours[4:6] == ["--norm_control=0.0", "--timestep_sampling=uniform"]
    assert ours[6:-1] == theirs[4:-1]  # all but the folder they write to
    pairs = dict(itertools.pairwise(ours))
    assert (pairs["--train_batch_size"], pairs["--gradient_accumulation_steps"]) == ("1", "4")


def test_a_program_is_measured():
    hungry = "held = b'x' * (300 * 2**20)"
    small, large = (
        programs.run_measured(
            [sys.executable, "-c", f"{code}; import time; time.sleep(0.5)"], dict(os.environ), "cpu"
        )
        for code in ("sum(range(3_000_000))", hungry)
    )
    assert small["cpu_seconds"] > 0 and small["seconds"] > 0.5
    assert large["peak_bytes"] - small["peak_bytes"] > 250 * MIB
    with pytest.raises(SystemExit, match=r"failed:\n.*no such thing"):
        words = [sys.executable, "-c", "raise SystemExit('no such thing')"]
        programs.run_measured(words, dict(os.environ), "cpu")


@pytest.fixture(scope="module")
def options():
    return step_cost.parse(["--batch", "1", "--rounds", "1"])


def test_the_floor_is_part_of_the_step(options):
    """The U-Net's operations are those of the floor, the text encoder's come on top."""
    training = step_cost.make_training(options)
    few = step_cost.fewest(training)
    tokens, width, layers = 77, 256, 2
    text = 2 * 2 * layers * 12 * width**2 * tokens  # a multiplication and an addition, twice
    assert few["step_operations"] - few["floor_operations"] == text
    assert few["step_bytes"] > few["floor_bytes"] > 0
    before = training.rows.detach().clone()
    step_cost.bare_unet(training, training.models.unet, torch.float32)(0)
    assert torch.equal(training.rows, before) and training.rows.grad is None


def test_a_longer_table_and_more_photos_make_the_same_step(options):
    """The growth is measured on the same training: only what should not matter differs."""
    plain = step_cost.make_training(options)
    longer = step_cost.make_training(options, vocabulary=9000)
    losses = [step_cost.training_step(training, 0) for training in (plain, longer)]
    assert torch.equal(*losses) and torch.equal(plain.rows, longer.rows)
    assert len(step_cost.make_training(options, photos=4).dataset.mean) == 8
    whole = step_growth.whole_table_step(plain)
    frozen = plain.models.text_encoder.get_input_embeddings().table.weight.clone()
    whole(0)
    assert torch.equal(plain.models.text_encoder.get_input_embeddings().table.weight, frozen)


def test_the_figure_says_what_it_shows():
    by_rows = [{"rows": n, "ours": 0.2, "whole": n / 1e5} for n in step_growth.VOCABULARIES]
    by_photos = [{"photos": n, "ours": 0.2} for n in step_growth.PHOTOS]
    figure = step_growth.draw({"vocabulary": by_rows, "photos": by_photos})
    assert "grows from 0.08 to 5.00" in output.alt_text(figure)


@pytest.mark.parametrize("name", ["step_cost-cpu-bundled", "step_growth"])
def test_what_is_committed_can_be_read(name):
    record = json.loads((programs.ROOT / "benchmarks" / f"{name}.json").read_text())
    assert record["machine"] and record["command"].startswith("python -m benchmarks.")
