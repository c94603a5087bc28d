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
EVERYTHING_BELOW = "errors batches io figures config concept models tokenizer"
LOOP = "dataset protocols diffusion directional training"
CORE = f"{EVERYTHING_BELOW} {LOOP} token_embedding conditioning word_encoder inference"
ALL_BUT_THE_DOORS = f"{CORE} evaluation publishing runs flax"
# Who may import whom: a wing, a folder or a file of the core, and the wings below it. Within a wing all may, but in no
# circle.
TABLE = {
    "errors": "",
    "batches": "",
    "io": "errors",
    "figures": "errors io",
    "config": "errors io",
    "concept": "errors io",
    "models": "errors io",
    "tokenizer": "errors io",
    "token_embedding": EVERYTHING_BELOW,
    "protocols": EVERYTHING_BELOW,
    "dataset": f"{EVERYTHING_BELOW} protocols",
    "conditioning": EVERYTHING_BELOW,
    "diffusion": f"{EVERYTHING_BELOW} conditioning dataset",
    "word_encoder": f"{EVERYTHING_BELOW} token_embedding dataset diffusion",
    "inference": f"{EVERYTHING_BELOW} conditioning token_embedding",
    "directional": "",
    "training": f"{EVERYTHING_BELOW} token_embedding dataset protocols diffusion directional",
    "evaluation": CORE,
    "publishing": CORE,
    "runs": f"{CORE} evaluation publishing",
    "flax": "errors batches io config concept tokenizer dataset protocols runs",
    "course": f"{ALL_BUT_THE_DOORS} cli",  # a notebook's set-up says what `tiutils doctor` says
    "cli": ALL_BUT_THE_DOORS,
    "__init__": ALL_BUT_THE_DOORS,
    "__main__": f"{ALL_BUT_THE_DOORS} cli",
}
MAY_IMPORT = {wing: set(below.split()) for wing, below in TABLE.items()}
NEVER = {"flax": {"runs.run", "runs.cuda_graph"}}  # PyTorch's own


def name_of(path):
    """A module's name within the package: `io.files`, a folder's own `io`, the package's `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def wing_of(module):
    return module.split(".")[0]


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
        "from tiutils.cli.main import build_parser; build_parser()",
    ],
)
def test_nothing_heavy_is_imported(statement):
    assert not modules_after(statement) & HEAVY


def test_every_name_of_the_package_is_there():
    for name in tiutils.__all__:
        assert getattr(tiutils, name).__name__ == name
    from tiutils.runs import run

    assert tiutils.train is run.train
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tiutils.nonsense


def imports_of(path, *, everywhere=True):
    """Absolute names that a file imports; without `everywhere`, only those at its top."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or PACKAGE not in path.parents, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names if not node.level)


def modules_in(path):
    """Modules of ours that a file imports; `import tiutils`, for its version, is none."""
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        if package == "tiutils" and rest:
            parts = rest.split(".")
            names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            yield next((name for name in names if name in MODULES), "__init__")


KNOWN = {module: set(modules_in(path)) for module, path in MODULES.items()}


def test_every_wing_stands_in_the_table():
    assert {wing_of(module) for module in MODULES} == set(TABLE), "a new room: say where it stands"
    assert all(below <= set(TABLE) for below in MAY_IMPORT.values())


@pytest.mark.parametrize("wing", TABLE)
def test_imports_go_down_only(wing):
    climbs = [
        f"{module} -> {other}"
        for module in MODULES
        if wing_of(module) == wing
        for other in sorted(KNOWN[module])
        if wing_of(other) not in MAY_IMPORT[wing] | {wing} or other in NEVER.get(wing, ())
    ]
    assert not climbs


def test_the_table_has_no_circle():
    assert list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


def test_no_two_modules_need_each_other():
    order = TopologicalSorter({module: KNOWN[module] - {module} for module in MODULES})
    assert set(order.static_order()) >= set(MODULES)  # raises CycleError, which names them


def defined_in(path):
    """Names that a module defines itself at its top, and does not import."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)
            )


@pytest.mark.parametrize("folder", ["tiutils", "tests", "benchmarks", "data"])
def test_a_name_is_imported_from_where_it_is_defined(folder):
    """So that no module is a second door to what another one holds."""
    defined = {module: set(defined_in(path)) for module, path in MODULES.items()}
    defined["__init__"] |= set(tiutils.__all__)
    wrong = []
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        for name in imports_of(path):
            package, _, rest = name.partition(".")
            module, _, attribute = rest.rpartition(".")
            is_there = rest in MODULES or attribute in defined.get(module or "__init__", ())
            if package == "tiutils" and rest and not is_there:
                wrong.append(f"{path.name}: {name}")
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_what_may_not_be_there_is_imported_where_it_is_used(module):
    never = NEVER_AT_THE_TOP - ({"jax", "flax"} if wing_of(module) == "flax" else set())
    names = {name.split(".")[0] for name in imports_of(MODULES[module], everywhere=False)}
    assert not names & never
