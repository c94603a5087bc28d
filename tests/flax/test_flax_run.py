"""Whole runs in JAX: without PyTorch, on eight devices, from the command line; the files are those of PyTorch."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tiutils
from tiutils.cli.main import main
from tiutils.errors import InputError
from tiutils.flax import run
from tiutils.io import checkpoints, embeddings

# What is None there cannot be imported: not installed, as far as a program can see.
WITHOUT_TORCH = """
import sys
for name in ("torch", "diffusers", "accelerate", "torchvision", "bitsandbytes"):
    sys.modules[name] = None
from tiutils.cli.main import main
status = main(sys.argv[1:])
assert not any(name.split(".")[0] == "torch" for name in sys.modules if sys.modules[name])
sys.exit(status)
"""


def in_a_process(code, *arguments, **environment):
    """Standard output and standard error of a Python program that must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def flags(small_model, photos):
    """Of six steps, which are saved every three."""
    return {
        "pretrained_model_name_or_path": str(small_model),
        "train_data_dir": str(photos),
        "placeholder_token": "<my-toy>",
        "initializer_token": "toy",
        "num_vectors": 2,
        "max_train_steps": 6,
        "train_batch_size": 2,
        "save_steps": 3,
        "checkpointing_steps": 3,
    }


def on_the_command_line(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """A run from the command line where there is neither torch nor diffusers; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    drawing = ("--validation_prompt", "a <my-toy>", "--validation_steps", 6)
    words = ("train", "--framework", "flax", *on_the_command_line(flags), *drawing)
    printed = in_a_process(
        WITHOUT_TORCH, *words, "--num_validation_images", 1, "--output_dir", folder
    )
    return folder, *printed


# Without PyTorch


def test_files_are_those_of_a_run_in_pytorch(finished, flags):
    folder, *_ = finished
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "learned_embeds.safetensors", "learned_embeds-steps-3.safetensors", "checkpoint-3",
        "learned_embeds-steps-6.safetensors", "checkpoint-6", "validation-steps-6.png",
    }  # fmt: skip
    learned = embeddings.read(folder / "learned_embeds.safetensors")
    assert learned.token == "<my-toy>" and learned.vectors.shape == (2, 32)
    state = checkpoints.load(folder / "checkpoint-6")
    assert np.array_equal(state.tensors["rows"], learned.vectors) and state.step == 6
    early = embeddings.read(folder / "learned_embeds-steps-3.safetensors").vectors
    assert np.array_equal(checkpoints.load(folder / "checkpoint-3").tensors["rows"], early)


def test_the_record(finished):
    folder, *_ = finished
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["steps"], len(record["losses"])) == ("finished", 6, 6)
    assert record["framework"] == "flax" and record["device"].startswith("1 × ")
    assert {"jax", "flax", "optax", "transformers"} < record["versions"].keys()
    assert "torch" not in record["versions"]


def test_what_it_says(finished):
    _, out, err = finished
    assert "<my-toy> after 6 steps:" in out
    assert "there is no TPU here: JAX trains on cpu" in err
    assert "Traceback" not in err


@pytest.mark.release
@pytest.mark.slow
def test_drawing_without_pytorch(finished, flags, tmp_path):
    folder, *_ = finished
    words = ("--embedding", folder / "learned_embeds.safetensors", "--num_images", 1)
    model = ("--pretrained_model_name_or_path", flags["pretrained_model_name_or_path"])
    steps = ("--num_inference_steps", 2, "--output_dir", tmp_path)
    command = ("generate", "--framework", "flax", "--prompt", "a <my-toy>", *words, *model, *steps)
    in_a_process(WITHOUT_TORCH, *command)
    with Image.open(tmp_path / "000.png") as picture:
        assert picture.size == (32, 32)


# Both frameworks


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flax", "pytorch"])
def test_either_framework_goes_on_with_a_run_in_jax(finished, flags, tmp_path, framework):
    folder, *_ = finished
    begun = tmp_path / "begun"
    shutil.copytree(folder / "checkpoint-3", begun / "checkpoint-3")
    config = tiutils.TrainingConfig(**flags, output_dir=str(begun), resume_from_checkpoint="latest")
    result = (run.train if framework == "flax" else tiutils.train)(config)
    assert (result.steps, len(result.losses)) == (6, 3)
    whole = json.loads((folder / "run.json").read_text())["losses"]
    np.testing.assert_allclose(result.losses, whole[3:], rtol=0, atol=1e-4)
    expected = checkpoints.load(folder / "checkpoint-6").tensors["rows"]
    found = checkpoints.load(begun / "checkpoint-6").tensors["rows"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    if framework == "flax":
        assert np.array_equal(found, expected), "a resumed run is the uninterrupted one"


@pytest.mark.slow
def test_jax_goes_on_with_a_run_in_pytorch(finished, flags, tmp_path):
    folder, *_ = finished
    half = tiutils.TrainingConfig(**flags | {"max_train_steps": 3}, output_dir=str(tmp_path))
    tiutils.train(half)
    whole = dataclasses.replace(half, max_train_steps=6, resume_from_checkpoint="latest")
    result = run.train(whole)
    expected = json.loads((folder / "run.json").read_text())["losses"]
    np.testing.assert_allclose(result.losses, expected[3:], rtol=0, atol=1e-4)
    record = json.loads((tmp_path / "run.json").read_text())
    np.testing.assert_allclose(record["losses"], expected, rtol=0, atol=1e-4)


# Devices

EIGHT = """
import json, sys, jax, numpy as np
from tiutils import TrainingConfig
from tiutils.flax import run
assert len(jax.devices()) == 8
flags = json.loads(sys.argv[1])
found = []
for number in (8, 1):
    flags["output_dir"] = sys.argv[2] + f"/{number}"
    result = run.train(TrainingConfig(**flags), devices=jax.devices()[:number])
    found.append((np.array(result.models.rows).tolist(), result.losses))
print(json.dumps(found))
"""


@pytest.mark.release
@pytest.mark.slow
def test_eight_devices_train_the_rows_of_one(flags, tmp_path):
    eight = flags | {"train_batch_size": 8, "max_train_steps": 4}
    xla = "--xla_force_host_platform_device_count=8 " + os.environ["XLA_FLAGS"]
    out, _ = in_a_process(EIGHT, json.dumps(eight), tmp_path, XLA_FLAGS=xla)
    (many, many_losses), (one, one_losses) = json.loads(out.splitlines()[-1])
    np.testing.assert_allclose(many_losses, one_losses, rtol=1e-5)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
    devices = [json.loads((tmp_path / n / "run.json").read_text())["device"] for n in "81"]
    assert devices == ["8 × cpu", "1 × cpu"]


# What cannot be used


@pytest.mark.parametrize(
    "flag, value, said",
    [
        ("use_8bit_adam", True, "--use_8bit_adam cannot be used with --framework flax"),
        ("enable_xformers_memory_efficient_attention", True, "XLA chooses"),
        ("quantize", "8bit", "--quantize 8bit cannot be used .* give --mixed_precision bf16"),
        ("fit", True, "--fit cannot be used"),
        ("capture", True, "--capture cannot be used .* XLA compiles"),
        ("mixed_precision", "fp16", "--mixed_precision fp16 cannot be used .* use bf16"),
        ("report_to", "tensorboard", "run.json has the loss of each step"),
        ("save_as_full_pipeline", True, "--save_as_full_pipeline cannot be used"),
    ],
)
def test_flags_that_cannot_act_are_refused(flags, tmp_path, flag, value, said):
    config = tiutils.TrainingConfig(**flags | {flag: value}, output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError, match=said):
        run.train(config)
    assert not (tmp_path / "out").exists()


def test_launchers_of_several_processes_are_refused(flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        run.train(tiutils.TrainingConfig(**flags))


def test_a_pickle_needs_pytorch(flags, monkeypatch):
    config = tiutils.TrainingConfig(**flags, no_safe_serialization=True)
    run.check_flax_config(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="which alone writes"):
        run.check_flax_config(config)


def test_a_flag_with_nothing_to_do_is_said(flags, caplog):
    run.check_flax_config(tiutils.TrainingConfig(**flags, deterministic=True, report_to="none"))
    assert "--deterministic has no effect" in caplog.text


def test_without_jax_the_command_says_what_to_install(flags, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["train", "--framework", "flax", *on_the_command_line(flags)]) == 2
    assert "needs jax, flax, optax: pip install 'tiutils[flax]'" in capsys.readouterr().err
