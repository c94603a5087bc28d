"""What the notebooks install on Colab leaves what is there as it is.

Colab's images are played by their lists in tests/versions/: a virtual environment of names and versions with nothing
behind them. In it the notebook's own cell runs, and pip says what it would do, without doing it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pages
import pytest
from overlays import overlay
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tiutils.course import setup

IMAGES = ("gpu", "tpu")
HANDS_OFF = {"torch", "numpy", "ipywidgets", "ipython", "jax", "jaxlib", "flax"}
# What the first cell lets pip bring; pip is only asked.
ASK_PIP = f"""
import json, subprocess, sys
sys.path.insert(0, {str(pages.ROOT)!r})
from tiutils.course import setup
needed = setup.NEEDED + setup.FOR_JAX
command = setup.pip_install(needed, setup.missing_of(needed))
command += ["--quiet", "--dry-run", "--report", "-", "--only-binary=:all:"]
report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
for one in report["install"]: print("WOULD INSTALL", one["metadata"]["name"], one["metadata"]["version"])
"""
PLAIN_PIP = """
import json, subprocess, sys
command = [sys.executable, "-m", "pip", "install", "diffusers>=0.42", "--quiet", "--dry-run", "--report", "-"]
report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
for one in report["install"]: print("WOULD INSTALL", one["metadata"]["name"], one["metadata"]["version"])
"""


def on_image(image: str) -> dict[str, str]:
    """Versions by name."""
    text = (pages.ROOT / "tests" / "versions" / f"colab-{image}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (s.split("==") for s in lines)}


@pytest.fixture(scope="module", params=IMAGES)
def image(request, tmp_path_factory) -> tuple[str, Path]:
    """The name of the image, and the Python of an environment that claims to hold its packages."""
    venv = tmp_path_factory.mktemp(request.param) / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for name, version in on_image(request.param).items():
        module = name.replace("-", "_")
        info = packages / f"{module}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        known = overlay("colab") / info.name / "METADATA"  # has what the package requires, too
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(known.read_text() if known.exists() else about)
        (info / "RECORD").touch()
        if not (packages / module).exists():  # pip itself is there already
            (packages / module).mkdir()
            (packages / module / "__init__.py").touch()
    return request.param, venv / "bin" / "python"


def would_install(python: Path, question: str) -> dict[str, str]:
    """Versions by name of what pip would bring; skipped without a network, which CI has."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-W", "ignore", "-c", question]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if "No matching distribution" in done.stderr and not os.environ.get("CI"):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("WOULD")]
    return {canonicalize_name(name): version for _, _, name, version in lines}


@pytest.mark.slow
@pytest.mark.release
def test_the_set_up_replaces_nothing_that_matters(image):
    kind, python = image
    there, new = on_image(kind), would_install(python, ASK_PIP)
    replaced = new.keys() & there.keys()
    assert replaced <= {"huggingface-hub"}, f"pip would replace {replaced}"
    if replaced:  # not imported yet; as new as diffusers wants and as old as transformers bears
        assert Version(on_image(kind)["huggingface-hub"]) < Version(new["huggingface-hub"])
        assert Version(new["huggingface-hub"]) < Version("2")
    assert new.keys() - replaced == {*setup.NEEDED, *setup.FOR_JAX} - there.keys()


@pytest.mark.slow
@pytest.mark.release
def test_pip_replaces_what_it_is_not_told_to_keep(image):
    """That the test above can fail: alone, today's diffusers brings a Hub client that transformers 5.15 refuses."""
    new = would_install(image[1], PLAIN_PIP)
    assert Version(new["huggingface-hub"]) >= Version("2")


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_there_is_new_enough_for_tiutils(image):
    """The floors, and the JAX part's; so `pip install` of tiutils itself would replace nothing either."""
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    there = on_image(image)
    assert {*there} >= HANDS_OFF
    for line in [*project["dependencies"], *project["optional-dependencies"]["flax"]]:
        requirement = Requirement(line)
        version = there.get(canonicalize_name(requirement.name))
        assert version is not None or (image, requirement.name) == ("tpu", "diffusers"), line
        assert version is None or requirement.specifier.contains(version), f"{line}: {version}"


def test_what_imports_a_package_of_colabs_is_tested_under_colabs_version():
    """`make colab` runs the quick tests of these modules; NumPy and Pillow, which all import, are not meant."""
    listed = re.search(r"^ON_COLAB := ((?:.*\\\n)*.*)", (pages.ROOT / "Makefile").read_text(), re.M)
    files = {
        file
        for name in listed[1].replace("\\\n", "").split()
        for file in (pages.ROOT / "tests" / name, *(pages.ROOT / "tests" / name).glob("*.py"))
    }
    overlaid = (pages.ROOT / "tests" / "versions" / "colab.txt").read_text()
    packages = {*re.findall(r"^(\w+)==", overlaid, re.M)} - {"numpy", "pillow"}
    imports = re.compile(rf"^ *(?:from|import) (?:{'|'.join(packages)})\b", re.M)
    asked = []
    for module in (pages.ROOT / "tiutils").rglob("*.py"):
        if imports.search(module.read_text()):
            folder = pages.ROOT / "tests" / module.relative_to(pages.ROOT / "tiutils").parent
            asked += [folder / f"test_{module.name}", folder / f"test_flax_{module.name}"]
    asked = {file for file in asked if file.is_file()}
    assert len(asked) > 10 and asked <= files, f"not in ON_COLAB: {asked - files}"
