"""Every solution passes its check; every check refuses wrong answers and never raises."""

import runpy
from pathlib import Path

import pytest

from tiutils.course.exercises import start_here as exercises

SOLUTIONS = Path(__file__).parents[3] / "notebooks" / "solutions" / "start_here.py"


def test_solutions_are_right():
    solutions = runpy.run_path(str(SOLUTIONS))
    assert exercises.check_nearest_row(solutions["nearest_row"]).startswith("right")
    assert exercises.check_best_step(solutions["best_step"]).startswith("right")


def test_stubs_are_not_yet():
    for check in (exercises.check_nearest_row, exercises.check_best_step):
        assert check(lambda *given: ...).startswith("not yet")
        assert check(lambda *given: None).startswith("not yet")


@pytest.mark.parametrize(
    "function",
    [
        lambda table, row: int((table @ row).argmax()),  # long rows win
        lambda table, row: int((table - row).norm(dim=1).argmin()),  # short ones do
        lambda table, row: int((table @ row / table.norm(dim=1)).abs().argmax()),  # the opposite
        lambda table, row: int((table @ row / table.norm(dim=1)).argmin()),
        lambda table, row: table @ row,
        lambda table, row: "toy",
        lambda table: 0,
        2,
    ],
)
def test_wrong_neighbors_are_refused(function):
    assert exercises.check_nearest_row(function).startswith("not quite")


@pytest.mark.parametrize(
    "function",
    [
        max,  # the last step
        min,  # the first
        lambda losses: min(losses.values()),  # a loss, not a step
        lambda losses: max(losses, key=losses.get),
        lambda losses: min(losses, key=losses.get),  # the first of a tie as written, not as trained
        lambda losses: 1 / 0,
        lambda: 50,
        50,
    ],
)
def test_wrong_functions_are_refused(function):
    assert exercises.check_best_step(function).startswith("not quite")
