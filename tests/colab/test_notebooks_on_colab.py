"""The notebooks as Colab runs them: alone in an empty folder, in an environment that knows no tiutils.

One environment for all: it sees this one's packages, and before them Colab's versions of a few, but not the course,
which each notebook's first cell has to fetch. All run shortened: 00 with the bundled model, the others with a random
one in the shape of Stable Diffusion 1.5, the GPU's; 03 at 256 pixels, where it takes its path for large models. The
words that are shipped do not fit that model, so 04 and 05 teach it these words first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pages
import pytest
from overlays import overlay
from small_model import save_sd15_shaped

from data.recipes.results import embeddings as recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.release,
    pytest.mark.skipif(not shutil.which("git"), reason="needs git"),
]
RESOLUTION = {"03_training_loop": 256}
TAUGHT = {"04_inference": ["wood-toy"], "05_using_your_word": sorted(recipe.NAMES)}
# What JAX has compiled of 06 in `make notebooks`, if that ran before: the versions of JAX are the same.
COMPILED = pages.ROOT / "build" / "notebooks" / "notebooks" / "runs" / "jax-cache"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of the environment."""
    venv = tmp_path_factory.mktemp("colab") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    # What is named in a .pth file is searched for modules; the .pth files in there are not read,
    # and so the course, which is installed by one, is not seen.
    seen = [str(overlay("colab")), sysconfig.get_paths()["purelib"]]
    (packages / "seen.pth").write_text("\n".join(seen) + "\n")
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").write_text('"""In the place of Colab\'s."""\n')
    return venv / "bin" / "python"


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A repository that holds the working tree as it is now."""
    folder = tmp_path_factory.mktemp("origin")

    def git(*arguments: str, cwd: Path = folder) -> str:
        name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", *name, *arguments]
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout

    if not (pages.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=pages.ROOT)
    for path in filter(None, listed.split("\0")):
        if (pages.ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pages.ROOT / path, folder / path)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "The working tree")
    return folder


@pytest.fixture
def environment(origin, tmp_path) -> dict[str, str]:
    """Of a reader without a token or a file; git fetches a fork's address from `origin`."""
    address = "https://github.com/a-fork/textual-inversion-course"
    (tmp_path / "home").mkdir()
    return {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": address, "TIUTILS_REPOSITORY": address,
    }  # fmt: skip


@pytest.fixture
def content(tmp_path) -> Path:
    """The folder that a notebook finds itself in."""
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def test_the_environment_is_colabs(python, content, environment):
    code = (
        "import google.colab, google.protobuf, diffusers, ipywidgets\n"
        "from importlib.util import find_spec\n"
        "print(diffusers.__version__, ipywidgets.__version__, find_spec('tiutils'))"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=content, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0.39.0", "7.7.1", "None"], done.stderr


@pytest.mark.parametrize("name", [path.stem for path in pages.NOTEBOOKS])
def test_run_all(python, content, environment, name, tmp_path):
    if name != "00_start_here":
        model = tmp_path / "sd15-shaped"
        save_sd15_shaped(model, resolution=RESOLUTION.get(name, 64))
        environment |= {"TIUTILS_MODEL": str(model), "TIUTILS_STEPS": "8"}
    if name == "06_flax_tpu" and COMPILED.is_dir():
        shutil.copytree(COMPILED, content / "runs" / "jax-cache")
    nbformat.write(pages.shortened(pages.read(name)), content / f"{name}.ipynb")
    command = [python, "-m", "pytest", "--nbmake", "--nbmake-timeout=600", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"{name}.ipynb"], cwd=content, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert (content / "course" / "tiutils").is_dir()
    folders = (content / "runs").glob("sd15-shaped-*")
    taught = sorted(folder.name.removeprefix("sd15-shaped-") for folder in folders)
    assert taught == TAUGHT.get(name, [])
