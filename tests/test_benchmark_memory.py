"""The counting of bytes, and the table that is made of it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import counting, memory
from benchmarks.flax import random_parts
from benchmarks.quality import ROOT


def test_bytes_are_counted_once_and_forgotten_when_they_are_gone():
    given = torch.ones(256)  # 1024 bytes, there before
    with counting.Counter([given]) as counter:
        twice = given * 2
        view = twice[:100].view(10, 10)
        assert counter.live == 1024 and counter.moved == 2 * 1024
        small = view[0] + 1  # 40 bytes take a block of 512
        assert counter.live == counter.peak == 1024 + 512
        del twice, view
        assert counter.live == 512
        given.mul_(3)
        assert (counter.live, counter.peak) == (512, 1024 + 512)
        del small
    assert counter.live == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tensors_without_values_count_like_real_ones(checkpointing):
    fake = counting.count_step("sd15-thin", "no", checkpointing, None, 2)
    parts = counting.ready(random_parts("sd15-thin", vocabulary=49408), checkpointing, None)
    learned = counting.dataset(parts, 2)
    held = counting.tensors(parts.unet, parts.text_encoder)
    with counting.Counter(held) as counter:
        counting.step(parts, learned, None)
    assert fake["weights"] == sum(tensor.nbytes for tensor in held)
    assert fake["activations"] == pytest.approx(counter.peak, rel=0.03)


def test_a_row_is_the_line_through_the_outermost_batches():
    steps = {b: {"weights": 7, "activations": 10 + 3 * b, "time": 2 * b} for b in (1, 2, 4)}
    row = memory.row_of(("half", True, "8bit"), steps)
    assert (row["activations"], row["time"], row["weights"]) == ([10, 3], [0, 2], 7)
    assert memory.bend(steps) == 0


def test_bytes_of_adam_by_hand():
    pytest.importorskip("bitsandbytes")
    found = {(row["what"].split()[0], row["adam"]): row for row in memory.adam()}
    assert found["1", 32]["moments"] == 2 * 768 * 4 + 4, "and the count of steps"
    assert found["1", 8]["moments"] >= 2 * 768 * 4, "too small for 8 bits"
    table = 49408 * 768
    assert found["the", 32]["gradient"] == found["the", 32]["copy"] == 4 * table
    assert found["the", 32]["moments"] == 8 * table + 4
    assert found["the", 8]["moments"] == pytest.approx(2 * table, rel=0.02)


def test_the_page_shows_the_table_that_is_used():
    table = json.loads(memory.TABLE.read_text())
    more = json.loads(memory.RECORD.read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert memory.as_markdown(table, more) in page
    assert memory.adam_as_markdown(more["adam"]) in page
