"""pyproject.toml, constraints.txt, environment.yml and the overlays say the same thing."""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from overlays import VARIABLES, run_under
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(requirements: list[str]) -> dict[str, SpecifierSet]:
    """Version ranges by normalized package name; no package may be named twice."""
    parsed = [Requirement(line) for line in requirements]
    ranges = {canonicalize_name(one.name): one.specifier for one in parsed}
    assert len(ranges) == len(parsed), "a package is named twice"
    return ranges


def pins(path: Path) -> dict[str, Version]:
    """Exact versions by normalized name from a file of `name==version` lines."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    found = {}
    for name, specifiers in by_name(lines).items():
        (specifier,) = specifiers
        assert specifier.operator == "==" and "*" not in specifier.version, f"{name}{specifiers}"
        found[name] = Version(specifier.version)
    return found


REQUIRED = by_name(PROJECT["dependencies"])
SETS = re.findall(r"--editable '\.\[(.*?)\]'", (ROOT / "Makefile").read_text())
EXTRAS = [extra for extras in SETS for extra in extras.split(",")]
EXTRA = by_name([line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]])
ALL = REQUIRED | EXTRA
PINS = pins(ROOT / "constraints.txt")


def test_no_package_is_both_required_and_extra():
    assert not REQUIRED.keys() & EXTRA.keys()


def test_each_requirement_is_pinned_within_its_range():
    assert {name for name in ALL if name not in PINS} == set()
    outside = {n: str(PINS[n]) for n, allowed in ALL.items() if not allowed.contains(PINS[n])}
    assert outside == {}


def test_torch_is_pinned_without_a_build():
    assert str(PINS["torch"]) == "2.13.0"  # "+cpu" could be installed on no other machine


def test_floors_have_no_ceiling():
    """Exact pins and upper bounds are what made other courses impossible to install on Colab."""
    operators = {specifier.operator for allowed in ALL.values() for specifier in allowed}
    assert operators <= {">=", "!="}


def test_environment_yml_says_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip_itself, below = environment["dependencies"]
    assert pip_itself == "pip"
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    options = [line for line in below["pip"] if line.startswith("-")]
    assert options == ["--constraint constraints.txt", "--editable ."]
    assert by_name([line for line in below["pip"] if line not in options]) == ALL


def test_every_pin_can_be_installed_on_the_oldest_python():
    """Debian 12 has Python 3.11.2: with one pin that asks for 3.11.5, pip tries other versions without an end."""
    (oldest,) = SpecifierSet(PROJECT["requires-python"])
    for dist in metadata.distributions():
        if PINS.get(canonicalize_name(dist.name)) == Version(dist.version):
            allowed = SpecifierSet(dist.metadata["Requires-Python"] or "")
            assert allowed.contains(f"{oldest.version}.0"), f"{dist.name} {dist.version}: {allowed}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "versions").glob("[!c]*.txt")), ids=lambda p: p.stem
)  # Colab's images: tests/colab/
def test_other_versions_keep_within_the_floors(path):
    for package, version in pins(path).items():
        assert ALL.get(package, SpecifierSet()).contains(version), f"{package}=={version}"


@pytest.mark.skipif(
    not Path(sys.prefix, "installed").is_file() or "PYTHONPATH" in os.environ,
    reason="only where make has installed the pins, with nothing laid over them",
)
def test_what_is_installed_is_what_is_pinned():
    """`.venv/` has not drifted; other packages may lie beside the pinned ones."""
    installed = {dist.name: dist.version for dist in metadata.distributions()}
    found = {canonicalize_name(name): Version(text).public for name, text in installed.items()}
    differing = (
        ROOT / "tests" / "versions" / f"python-{sys.version_info[0]}.{sys.version_info[1]}.txt"
    )
    lines = differing.read_text().splitlines() if differing.is_file() else []
    other = dict(line.split("==") for line in lines if "==" in line)  # what .ci/quick-under changes
    assert REQUIRED.keys() <= found.keys()
    assert {name: found[name] for name in ALL if name in found} == {
        name: other.get(name, str(PINS[name])) for name in ALL if name in found
    }


def test_uv_looks_where_pip_would():
    """A class behind a mirror sets pip's variables or files; `make setup` must not pass them over."""
    handed_on = runpy.run_path(str(ROOT / ".ci" / "install"))["handed_on"]
    listed = """\
:env:.extra-index-url='https://example.org/cpu'
:env:.timeout='99'
global.cert='/etc/some.pem'
global.extra-index-url='https://example.org/not-this'
global.find-links='/wheels /more'
global.index-url='https://example.org/simple'
global.no-color='true'
install.trusted-host='example.org'"""
    options, variables = handed_on(listed)
    assert options == [
        *("--default-index", "https://example.org/simple"),
        *("--index", "https://example.org/cpu"),
        *("--find-links", "/wheels", "--find-links", "/more"),
        *("--allow-insecure-host", "example.org"),
    ]
    assert variables == {"SSL_CERT_FILE": "/etc/some.pem", "UV_HTTP_TIMEOUT": "99"}
    assert handed_on("") == ([], {})
    assert handed_on("global.no-index='true'")[0] == ["--no-index"]


@pytest.mark.parametrize("folder", ["tiutils", "tests", "benchmarks"])
def test_imports_are_declared(folder):
    """An import that pyproject.toml does not know works here by luck and fails elsewhere."""
    known = REQUIRED.keys() if folder == "tiutils" else ALL.keys()
    known |= {"pil", "tiutils", "bitsandbytes", "xformers"}  # the last two only if they are there
    known |= {"jax", "flax", "optax"}  # in tiutils/flax/ alone
    known |= {"pillow-heif"}  # where it is there, iPhones' photos are read, too
    known |= {"torchvision"} if folder == "benchmarks" else set()  # else a stand-in
    known |= {"yaml", "nbformat", "packaging"} if folder == "tests" else set()
    known |= {"benchmarks", "data"} if folder != "tiutils" else set()  # the repository's own
    known |= {canonicalize_name(path.stem) for path in (ROOT / folder).rglob("*.py")}
    imported = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    ours = {canonicalize_name(name) for name in imported - set(sys.stdlib_module_names)}
    assert ours - known == set()


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.parametrize("name", VARIABLES)
def test_overlay_imports_with_its_own_versions(name):
    wanted = pins(ROOT / "tests" / "versions" / f"{name}.txt")
    code = (
        "import importlib.metadata, sys, tiutils.models\n"
        "for name in sys.argv[1:]: print(importlib.metadata.version(name))"
    )
    printed = run_under(name, code, *wanted).split()
    assert [Version(version) for version in printed] == list(wanted.values())
