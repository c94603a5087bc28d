"""SDXL beside diffusers' script: the page says what was measured, and the losses agree."""

import json

import numpy as np

from benchmarks import sdxl_script

RECORD = json.loads(sdxl_script.RECORD.read_text())


def test_the_page_has_the_measured_table():
    page = (sdxl_script.ROOT / "docs" / "engines.md").read_text()
    assert sdxl_script.as_markdown(RECORD) in page


def test_the_losses_of_both_programs_agree():
    ours, theirs = (np.array(p["losses"]) for p in RECORD["programs"].values())
    assert len(ours) == len(theirs) == RECORD["steps"]
    error = np.hypot(*(losses.std(ddof=1) / np.sqrt(len(losses)) for losses in (ours, theirs)))
    assert abs(ours.mean() - theirs.mean()) < 3 * error


def test_both_write_a_row_for_each_encoder():
    ours, theirs = (p["files"] for p in RECORD["programs"].values())
    (one,) = ours.values()
    both = [shape for content in theirs.values() for shape in content.values()]
    assert [one["clip_l"], one["clip_g"]] == both == [[1, 32], [1, 48]]
