"""The promises of SECURITY.md that concern no single room; each of the others has its own tests."""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from small_model import draw_photo

import tiutils
from tiutils import concept, models
from tiutils.errors import InputError
from tiutils.figures import output
from tiutils.io import pretrained, run_folder
from tiutils.io.embeddings import LearnedEmbedding, write
from tiutils.io.files import replace_file
from tiutils.runs import session

ROOT = Path(__file__).resolve().parent.parent
SETUP = "tiutils/course/setup.py"
SOURCES = sorted((ROOT / "tiutils").rglob("*.py"))
TOKEN = "hf_thisIsASecret"

# No code from data


NEVER_IMPORTED = {
    "subprocess", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "code", "runpy", "ctypes",
}  # fmt: skip
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.fork",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "np.fromfile", "tempfile.mktemp", "os.chmod",
}  # fmt: skip


def dangers(source: str) -> list[str]:
    """What a module does that may run code out of data, start a program, or open any format at all."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = module or [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in NEVER_IMPORTED]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        found += [name] if name in NEVER_CALLED or name.startswith("os.spawn") else []
        found += [name] if name == "torch.load" and options.get("weights_only") != "True" else []
        found += [name] if name == "Image.open" and "formats" not in options else []
        forbidden = {"shell", "trust_remote_code", "allow_pickle", "custom_pipeline"}
        found += [
            f"{name}({key}=)" for key in forbidden & options.keys() if options[key] != "False"
        ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_out_of_data_or_starts_a_program(path):
    # the first cell of a notebook installs what is missing, by pip; the names of the packages stand in the file
    allowed = ["subprocess"] if path.relative_to(ROOT).as_posix() == SETUP else []
    assert dangers(path.read_text(encoding="utf-8")) == allowed


@pytest.mark.parametrize(
    "planted",
    [
        "eval('1')", "def f(x):\n    return exec(x)", "import os\nos.system('ls')", "import subprocess",
        "from subprocess import run", "from yaml import load", "import pickle\npickle.load(file)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(p, allow_pickle=True)",
        "X.from_pretrained(n, trust_remote_code=flag)", "Image.open(path)", "run('x', shell=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_is_planted(planted):
    assert dangers(planted)


def test_the_search_lets_the_harmless_pass():
    source = "model.eval()\ntorch.load(b, weights_only=True)\nImage.open(p, formats=['PNG'])"
    assert dangers(source) == []


@pytest.mark.parametrize("key", ["_attn_implementation_internal", "attn_implementation"])
def test_a_model_that_names_code_on_the_hub_is_refused(small_model, tmp_path, key):
    """transformers before 5.3, which pyproject.toml admits, would fetch and run it."""
    folder = shutil.copytree(small_model, tmp_path / "model")
    path = folder / "text_encoder" / "config.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {key: "sdpa"}))
    pretrained.refuse_code(folder)
    path.write_text(json.dumps(known | {key: "attacker/kernels"}))
    with pytest.raises(InputError, match="attacker/kernels"):
        models.load(folder)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "EPS", "JPEG2000", "DDS", "PSD"])
def test_formats_no_camera_writes_are_never_decoded(tmp_path, kind):
    """Pillow reads sixty; most of its weaknesses were in those."""
    path = tmp_path / "photo.png"  # whatever its name says
    if kind == "PSD":
        header = "8BPS 0001 000000000000 0003 00000001 00000001 0008 0003".replace(
            "8BPS", "38425053"
        )
        path.write_bytes(bytes.fromhex(header) + bytes(64))
    else:
        Image.new("RGB", (64, 64)).save(path, kind)
    with Image.open(path) as image:
        assert image.format == kind, "Pillow would"
    draw_photo(0).save(tmp_path / "good.png")
    found = concept.load(tmp_path)
    assert [photo.path.name for photo in found.photos] == ["good.png"]
    ((left_out, reason),) = found.skipped
    assert left_out == path and reason.startswith("not a photo")


# What is written, where, and who may read it


@pytest.fixture(scope="module")
def run_dir(small_model, photos, tmp_path_factory):
    """A run that writes everything, under a umask of its own, beside a folder it must not touch."""
    parent = tmp_path_factory.mktemp("runs")
    before = os.umask(0o027)
    try:
        tiutils.train(config(small_model, photos, parent / "out", save_as_full_pipeline=True))
    finally:
        os.umask(before)
    return parent / "out"


def config(model, photos, out, **flags):
    return tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(model), train_data_dir=str(photos),
        placeholder_token="<toy>", initializer_token="toy", output_dir=str(out),
        max_train_steps=1, save_steps=1, checkpointing_steps=1, validation_steps=1,
        validation_prompt="a <toy>", num_validation_images=1, hub_token=TOKEN, **flags,
    )  # fmt: skip


def test_files_have_the_permissions_that_the_user_asked_for(run_dir):
    """No more than the umask says, and no less: a shared folder is for sharing. Nothing is executable."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [run_dir, *run_dir.rglob("*")]}
    assert len(modes) > 20
    assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o640"}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o750"}


def test_a_run_writes_into_its_folder_alone(run_dir):
    assert [path.name for path in run_dir.parent.iterdir()] == ["out"]
    assert not any(path.is_symlink() for path in run_dir.rglob("*"))


def test_what_is_shared_does_not_name_our_folders(run_dir, small_model):
    """run.json does, for it is no one else's."""
    for path in run_dir.rglob("*"):
        if path.is_file() and path.name != "run.json" and "checkpoint" not in str(path):
            assert str(small_model.parent).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", ["/tmp/logs", "../logs", "a/../../logs", "..", "..\\logs"])
def test_logs_stay_in_the_output_folder(small_model, photos, tmp_path, name):
    with pytest.raises(InputError, match="--logging_dir"):
        tiutils.train(config(small_model, photos, tmp_path / "out", logging_dir=name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["unet", "logs", "model_index.json", "vae/config.json"])
def test_links_that_lead_out_of_the_output_folder_are_refused(small_model, photos, tmp_path, link):
    """A run to go on with may come from a stranger, in an archive."""
    target, out = tmp_path / "elsewhere", tmp_path / "out"
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(target)
    with pytest.raises(InputError, match="leads outside"):
        tiutils.train(config(small_model, photos, out, resume_from_checkpoint="latest"))
    assert not target.exists()


def test_a_link_within_the_output_folder_is_its_owners_business(small_model, photos, tmp_path):
    (tmp_path / "out" / "logs-of-today").mkdir(parents=True)
    (tmp_path / "out" / "logs").symlink_to("logs-of-today")
    (tmp_path / "out" / "other").symlink_to(tmp_path)  # nothing is written there
    run_folder.check_output_dir(tmp_path / "out", photos, "logs", "<toy>", resumed=False)


WRITERS = {
    "figures.save": lambda path: output.save(draw_photo(0), path, alt="a toy"),
    "embedding": lambda path: write(path, LearnedEmbedding("<toy>", np.ones((1, 8)))),
    "record": lambda path: run_folder.update_record(path.parent, {"steps": 1}),
    "replace_file": lambda path: replace_file(path, b"new"),
}


@pytest.mark.parametrize("temporary", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(tmp_path, name, temporary):
    """Not at the file's own name, nor at the temporary one, which another user could guess."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    path = tmp_path / "out" / "run.json"
    path.parent.mkdir()
    (path.with_name(f".{path.name}.tmp") if temporary else path).symlink_to(mine)
    WRITERS[name](path)
    assert mine.read_text() == "precious"
    assert path.is_file() and not path.is_symlink()
    assert os.listdir(path.parent) == ["run.json"]


# Secrets


def test_the_access_token_is_in_no_file_and_in_no_text(run_dir, small_model, photos):
    for path in run_dir.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    settings = config(small_model, photos, run_dir)
    assert TOKEN not in repr(settings) and TOKEN not in f"{settings}"
    assert TOKEN not in json.dumps(session.public_flags(settings))


@pytest.mark.parametrize("value", [TOKEN.encode(), [TOKEN], f"{TOKEN}\n", f"{TOKEN} "])
def test_a_token_that_cannot_be_one_is_not_shown(small_model, photos, tmp_path, value):
    settings = tiutils.TrainingConfig(train_data_dir=str(photos), hub_token=value)
    with pytest.raises(InputError, match="--hub_token") as caught:
        tiutils.train(settings)
    assert TOKEN not in str(caught.value)


def test_no_notebook_has_a_token():
    import re

    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        assert not re.search(r"hf_[A-Za-z0-9]{20,}", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_a_notebook_does_not_keep_the_token(small_model, photos, tmp_path):
    """Not where settings and results are shown, and not in the traceback of a failed publication."""
    cells = [
        "import dataclasses, os\nfrom pathlib import Path\nimport tiutils\nfrom tiutils.publishing import publish",
        f"config = tiutils.TrainingConfig({str(small_model)!r} and {str(photos)!r}, '<toy>', 'toy', "
        f"pretrained_model_name_or_path={str(small_model)!r}, output_dir='out', max_train_steps=1, "
        "hub_token=os.environ['SECRET'])\nconfig",
        "result = tiutils.train(config)\nresult.output_dir, result.losses",
        "publish.publish(result.output_dir, token=config.hub_token)",
        "tiutils.train(dataclasses.replace(config, seed=-1))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "run.ipynb")
    command = ["-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "--allow-errors"]
    subprocess.run(
        [sys.executable, *command, "run.ipynb"], cwd=tmp_path, check=True, timeout=400,
        env=os.environ | {"SECRET": TOKEN, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    text = (tmp_path / "run.ipynb").read_text(encoding="utf-8")
    outputs = [cell.outputs for cell in nbformat.reads(text, as_version=4).cells]
    kinds = [cell[-1].output_type if cell else None for cell in outputs]
    assert kinds == [None, "execute_result", "execute_result", "error", "error"], text
    assert "placeholder_token='<toy>'" in text and "cannot log in to the Hub" in text
    assert TOKEN not in text


# Packages


def test_no_pinned_package_has_a_known_weakness(tmp_path):
    audit = [sys.executable, str(ROOT / ".ci" / "audit")]
    done = subprocess.run(audit, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 findings; the list was reviewed" in done.stdout
    (tmp_path / "old.txt").write_text("torch==2.5.1\nPillow==12.1.0\nnumpy==2.0.0\n")
    done = subprocess.run([*audit, str(tmp_path / "old.txt")], capture_output=True, text=True)
    assert done.returncode == 1
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("AFFECTED")]
    assert sorted(found) == ["pillow", "pillow", "pillow", "torch"]
