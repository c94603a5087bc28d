"""What importing costs, and which room may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tiutils

PACKAGE = Path(tiutils.__file__).parent
HEAVY = {
    "torch", "jax", "flax", "bitsandbytes", "xformers", "huggingface_hub", "diffusers", "transformers",
    "accelerate", "matplotlib", "numpy", "PIL", "safetensors",
}  # fmt: skip
NEVER_AT_THE_TOP = {"jax", "flax", "bitsandbytes", "xformers", "huggingface_hub", "wandb", "google"}
FLOORS = (
    "errors config flag_checks pickles embedding_formats folders library words quantized models concept tokens "
    "embedding_files captions weighting",
    "batches checkpoints progress drawing inference memory",
    "diffusion training evaluation evaluator scores stopping card",
    "curves figures diagrams attention explore galleries",
    "callbacks record hub checks sitting overfitting run report inspection flags",
    "cli doctor widgets live exercises __init__ __main__",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py"))


def modules_after(statement):
    """Top-level names in sys.modules after a statement, in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import tiutils",
        "from tiutils import TrainingConfig, InputError",
        "from tiutils import cli; cli.build_parser()",
    ],
)
def test_nothing_heavy_is_imported(statement):
    assert not modules_after(statement) & HEAVY


def test_every_name_of_the_package_is_there():
    for name in tiutils.__all__:
        assert getattr(tiutils, name).__name__ == name
    from tiutils import run

    assert tiutils.train is run.train
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tiutils.nonsense


def imports_of(room, *, everywhere=True):
    """Absolute names that a module imports; without `everywhere`, only those at its top."""
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_known_to(room):
    """Rooms that a module imports; `import tiutils`, for its version, is no room."""
    names = (name.split(".") for name in imports_of(room))
    return {name[1] for name in names if name[0] == "tiutils" and len(name) > 1} & set(ROOMS)


def test_every_room_has_its_floor():
    assert set(ROOMS) <= set(FLOOR), "a new room: say where it stands"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room):
    above = {other for other in rooms_known_to(room) if FLOOR[other] > FLOOR[room]}
    assert not above, f"{room} knows rooms above it"


def test_no_two_rooms_need_each_other():
    order = TopologicalSorter({room: rooms_known_to(room) for room in ROOMS})
    assert set(order.static_order()) >= set(ROOMS)  # raises CycleError


@pytest.mark.parametrize("room", ROOMS)
def test_what_may_not_be_there_is_imported_where_it_is_used(room):
    names = {name.split(".")[0] for name in imports_of(room, everywhere=False)}
    assert not names & NEVER_AT_THE_TOP


def test_training_knows_no_figure_no_hub_and_no_file_of_its_own():
    assert not rooms_known_to("training") & {"figures", "hub", "callbacks", "run", "inference"}
