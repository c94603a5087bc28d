"""The command line: every flag of the diffusers script, the settings file, complaints of one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tiutils.cli.flags import training_config
from tiutils.cli.main import build_parser, main
from tiutils.config import LR_SCHEDULERS, TrainingConfig
from tiutils.io.embeddings import LearnedEmbedding, write

# The flags of diffusers' textual_inversion.py, with their types and defaults; `bool` is a switch.
SCRIPT = {
    "pretrained_model_name_or_path": (str, "required"),
    "revision": (str, None),
    "variant": (str, None),
    "tokenizer_name": (str, None),
    "train_data_dir": (str, "required"),
    "learnable_property": (str, "object"),
    "placeholder_token": (str, "required"),
    "initializer_token": (str, "required"),
    "num_vectors": (int, 1),
    "resolution": (int, 512),
    "center_crop": (bool, False),
    "repeats": (int, 100),
    "num_train_epochs": (int, 100),
    "max_train_steps": (int, 5000),
    "train_batch_size": (int, 16),
    "gradient_accumulation_steps": (int, 1),
    "gradient_checkpointing": (bool, False),
    "learning_rate": (float, 1e-4),
    "scale_lr": (bool, False),
    "lr_scheduler": (str, "constant"),
    "lr_warmup_steps": (int, 500),
    "lr_num_cycles": (int, 1),
    "adam_beta1": (float, 0.9),
    "adam_beta2": (float, 0.999),
    "adam_weight_decay": (float, 1e-2),
    "adam_epsilon": (float, 1e-8),
    "mixed_precision": (str, "no"),
    "allow_tf32": (bool, False),
    "enable_xformers_memory_efficient_attention": (bool, False),
    "seed": (int, None),
    "output_dir": (str, "text-inversion-model"),
    "save_steps": (int, 500),
    "save_as_full_pipeline": (bool, False),
    "no_safe_serialization": (bool, False),
    "checkpointing_steps": (int, 500),
    "checkpoints_total_limit": (int, None),
    "resume_from_checkpoint": (str, None),
    "validation_prompt": (str, None),
    "num_validation_images": (int, 4),
    "validation_steps": (int, 100),
    "report_to": (str, "tensorboard"),
    "logging_dir": (str, "logs"),
    "dataloader_num_workers": (int, 0),
    "push_to_hub": (bool, False),
    "hub_model_id": (str, None),
    "hub_token": (str, None),
}
OURS = {
    "quantize": (str, None), "fit": (bool, False), "capture": (bool, False),
    "use_8bit_adam": (bool, False), "deterministic": (bool, False), "evaluator": (str, None),
    "early_stopping": (bool, False), "early_stopping_steps": (int, 10),
    "early_stopping_window": (int, 310), "early_stopping_patience": (int, None),
    "initializer_phrase": (str, None), "initializer_from_photos": (bool, False),
    "captions": (bool, False), "masked_loss": (bool, False), "max_grad_norm": (float, None),
    "norm_control": (float, 0.2), "timestep_sampling": (str, "noisy"),
    "timestep_range": (tuple, None), "average_rows": (int, 0), "optimizer": (str, "adamw"),
    "direction_prior": (float, 1e-4),
}  # fmt: skip
CHOICES = {
    "learnable_property": ("object", "style"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "quantize": ("8bit", "4bit"),
    "lr_scheduler": LR_SCHEDULERS,
    "timestep_sampling": ("uniform", "noisy"),
    "optimizer": ("adamw", "directional"),
}
MUST = [
    "--train_data_dir",
    "photos",
    "--placeholder_token",
    "<my-toy>",
    "--initializer_token",
    "toy",
]
FIELDS = {field.name: field for field in dataclasses.fields(TrainingConfig)}


def parsed(*flags):
    return training_config(build_parser().parse_args(["train", *flags]))


def complaint(capsys, *arguments):
    """The one line of a command that is refused by its parser."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.startswith("tiutils: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.fixture
def shown(capsys, monkeypatch):
    """The help of each flag of `tiutils train`, as one line."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    entries = text[text.index("--config") :].split("\n  --")
    return {entry.split()[0]: " ".join(entry.split()) for entry in entries}


# The flags


@pytest.mark.parametrize("name", SCRIPT | OURS)
def test_every_flag_with_its_type(name):
    kind, _ = (SCRIPT | OURS)[name]
    text = {int: "3", float: "0.25", str: "anything"}.get(kind)
    if kind is bool:
        value, flags = True, [f"--{name}"]
    elif kind is tuple:
        value, flags = (300, 950), [f"--{name}", "300", "950"]
    else:
        others = [c for c in CHOICES.get(name, ()) if c != FIELDS[name].default]
        value = others[0] if others else kind(text)
        flags = [f"--{name}", str(value)]
    config = parsed(*MUST, *flags)
    assert getattr(config, name) == value and type(getattr(config, name)) is kind
    given = {"train_data_dir", "placeholder_token", "initializer_token", name}
    for other, field in FIELDS.items():
        assert other in given or getattr(config, other) == field.default


def test_there_is_no_other_flag():
    assert set(FIELDS) == set(SCRIPT | OURS)


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name, capsys):
    for choice in CHOICES[name]:
        assert getattr(parsed(*MUST, f"--{name}", choice), name) == choice
    line = complaint(capsys, "train", *MUST, f"--{name}", "other")
    assert f"--{name}" in line and all(choice in line for choice in CHOICES[name])


def test_a_default_that_differs_is_marked_in_the_help(shown):
    for name, (_, theirs) in SCRIPT.items():
        ours = FIELDS[name].default
        same = ours == theirs or (theirs == "required" and ours == "")
        theirs = "none" if theirs is None else theirs
        mark = f"[differs from the diffusers script, where it is {theirs}"
        assert (mark in shown[name]) != same, shown[name]
    assert parsed(*MUST) == TrainingConfig("photos", "<my-toy>", "toy")


def test_the_help_shows_defaults(shown):
    assert set(FIELDS) <= set(shown)
    for name in ("num_vectors", "seed", "norm_control", "output_dir", "adam_epsilon"):
        assert shown[name].endswith(f"(default: {FIELDS[name].default})")
    assert "photos are encoded once" in shown["dataloader_num_workers"]


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "push", "doctor"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and f"tiutils {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["teach"],
        ["train", "--nonsense"],
        ["train", "--num_vectors", "nan"],
        ["train", "--num_vectors", "1.5"],
        ["train", "--learning_rate", "fast"],
        ["train", "--seed"],
        ["generate"],
    ],
)
def test_a_wrong_command_is_one_line(arguments, capsys):
    assert "--help`" in complaint(capsys, *arguments)


@pytest.mark.parametrize("flag", ["--local_rank=0", "--local-rank=0", "--validation_epochs=3"])
def test_flags_of_older_scripts_are_let_through(flag, capsys):
    assert parsed(*MUST, flag) == parsed(*MUST)
    assert flag.split("=")[0] not in capsys.readouterr().out


# The settings file


def write_config(path, text):
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


TOML = """
train_data_dir = "photos"
placeholder_token = "<größe>"
initializer_token = "toy"
learning_rate = 1e-3
max_train_steps = 7
center_crop = true
"""


def test_settings_from_toml(tmp_path):
    config = parsed(*write_config(tmp_path / "run.toml", TOML))
    assert config == TrainingConfig(
        "photos", "<größe>", "toy", learning_rate=1e-3, max_train_steps=7, center_crop=True
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_of_any_editor(tmp_path, encoding):
    path = tmp_path / "run.JSON"
    path.write_text('{"placeholder_token": "<größe>"}', encoding=encoding)
    assert parsed("--config", str(path)).placeholder_token == "<größe>"


def test_home_is_home_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = 'output_dir = "~/o"\ntrain_data_dir = "~/p"\ntokenizer_name = "~/t"\nevaluator = "~/e"'
    config = parsed(*write_config(tmp_path / "run.toml", text))
    paths = (config.output_dir, config.train_data_dir, config.tokenizer_name, config.evaluator)
    assert paths == tuple(str(tmp_path / name) for name in "opte")


def test_settings_from_json_with_or_without_dashes(tmp_path):
    flags = {"--train_data_dir": "photos", "placeholder_token": "<t>", "--max_train_steps": 7}
    config = parsed(*write_config(tmp_path / "run.json", json.dumps(flags)))
    assert config == TrainingConfig("photos", "<t>", max_train_steps=7)


def test_the_command_line_wins(tmp_path):
    file = write_config(tmp_path / "run.toml", TOML)
    for flags in ([*file, "--max_train_steps", "9"], ["--max_train_steps", "9", *file]):
        config = parsed(*flags)
        assert (config.max_train_steps, config.learning_rate) == (9, 1e-3)
    assert parsed(*file, "--learning_rate", "5e-3").learning_rate == 5e-3, (
        "even if it is the default"
    )


def test_settings_from_an_earlier_run(tmp_path):
    record = {
        "status": "finished",
        "flags": {"train_data_dir": "photos", "seed": 5, "revision": None},
    }
    config = parsed(*write_config(tmp_path / "run.json", json.dumps(record)))
    assert config == TrainingConfig("photos", seed=5)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("a.toml", "learning_rate = ", "cannot be read"),
        ("a.toml", "[train]\nseed = 1", "'train', which is not a flag"),
        ("a.toml", "learning_rat = 1", "'learning_rat', which is not a flag"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "has a value of type list"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", '{"flags": 3}', "has a value of type int"),
        ("a.json", '{"seed": "1"}', "--seed is '1'; it must be a whole number"),
        ("a.json", '{"seed": null}', "--seed is None; it must be a whole number"),
        ("a.json", '{"learning_rate": NaN}', "--learning_rate is nan; it must be above 0"),
        ("a.json", '{"center_crop": 1}', "--center_crop is 1; it must be true or false"),
        ("a.json", '{"lr_scheduler": "fast"}', "--lr_scheduler is 'fast'; it must be one of"),
        ("a.json", '{"output_dir": ""}', "--output_dir is empty"),
        ("a.json", '{"validation_prompt": "\\udcf6"}', "not UTF-8"),
        ("a.json", '{"max_train_steps": 1' + "0" * 400 + "}", "a number of 401 digits"),
        ("a.json", '{"learning_rate": 1' + "0" * 400 + "}", "a number of 401 digits"),
        ("a.json", '{"max_grad_norm": 1e300}', "--max_grad_norm is 1e+300; it must be above 0"),
        ("a.json", '{"output_dir": ["a"]}', "--output_dir is ['a']; it must be text"),
    ],
)
def test_a_wrong_settings_file_is_one_line(tmp_path, capsys, name, text, expected):
    assert main(["train", *MUST, *write_config(tmp_path / name, text), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tiutils: ") and error.count("\n") == 1 and expected in error, error


def test_a_settings_file_that_is_not_there(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path / "no.toml")]) == 2
    assert "no.toml cannot be read" in capsys.readouterr().err
    (tmp_path / "photo.toml").write_bytes(b"\xff\xd8\xff\xe0")
    assert main(["train", "--config", str(tmp_path / "photo.toml")]) == 2
    assert "photo.toml cannot be read" in capsys.readouterr().err


# Exit states


@pytest.mark.parametrize(
    "stopped, diverged, status",
    [(None, False, 0), ("stopped by request", False, 130), ("the loss was not finite", True, 1)],
)
def test_exit_status_of_training(monkeypatch, capsys, stopped, diverged, status):
    result = argparse.Namespace(
        placeholder=argparse.Namespace(token="<t>"), steps=3, embedding_path="a run/file",
        stopped=stopped, diverged=diverged, is_main_process=True,
        best_step=None,
    )  # fmt: skip
    monkeypatch.setattr("tiutils.runs.run.train", lambda config: result)
    assert main(["train", *MUST, "--quiet"]) == status
    printed = capsys.readouterr()
    first, *steps = printed.out.splitlines()
    assert first == "<t> after 3 steps: a run/file"
    assert [shlex.split(line.partition(":")[2])[1:3] for line in steps] == [
        ["evaluate", "a run"], ["generate", "--embedding"], ["convert", "a run/file"]
    ]  # fmt: skip
    assert shlex.split(steps[1])[-1] == "a <t> on the beach"
    assert printed.err == (f"tiutils: {stopped}\n" if stopped else "")


def test_ctrl_c_before_the_first_step(monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("tiutils.runs.run.train", interrupted)
    assert main(["train", *MUST]) == 130


def test_warnings_are_lines_and_are_said_once(monkeypatch, capsys):
    import logging

    def warn(config):
        for _ in range(2):
            logging.getLogger("tiutils").warning("mind %s", "the gap")
        raise KeyboardInterrupt

    monkeypatch.setattr("tiutils.runs.run.train", warn)
    for _ in range(2):  # a second command in one process does not say all twice
        main(["train", *MUST, "--quiet"])
        assert capsys.readouterr().err == "tiutils: mind the gap\n"
    monkeypatch.setenv("RANK", "1")
    main(["train", *MUST])
    assert capsys.readouterr().err == "", "of several processes one speaks"


# The other commands


def test_generate_draws_with_a_learned_word(small_model, tmp_path, capsys):
    learned = LearnedEmbedding("<my-toy>", np.full((2, 32), 0.1, np.float32))
    word = write(tmp_path / "word.safetensors", learned)
    status = main([
        "generate", "--pretrained_model_name_or_path", str(small_model), "--embedding", str(word),
        "--prompt", "a <my-toy> on sand", "--prompt", "a toy", "--num_images", "2",
        "--num_inference_steps", "2", "--output_dir", str(tmp_path / "pictures"),
    ])  # fmt: skip
    assert status == 0
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["000.png", "001.png", "002.png", "003.png"]
    pictures = [Image.open(file) for file in files]
    assert {picture.size for picture in pictures} == {(32, 32)}
    assert {picture.mode for picture in pictures} == {"RGB"}, "in full color"
    assert [p.text["Description"] for p in pictures] == ["a <my-toy> on sand"] * 2 + ["a toy"] * 2
    assert "000.png a <my-toy> on sand" in capsys.readouterr().out


def generate(model, folder, *flags):
    return main([
        "generate", "--pretrained_model_name_or_path", str(model), "--prompt", "a toy", "--num_inference_steps",
        "1", "--output_dir", str(folder), *flags,
    ])  # fmt: skip


def test_pictures_are_never_overwritten(small_model, tmp_path):
    (tmp_path / "004.png").write_bytes(b"a photo of mine")
    for _ in range(2):
        assert generate(small_model, tmp_path, "--num_images", "1") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["004.png", "005.png", "006.png"]
    assert (tmp_path / "004.png").read_bytes() == b"a photo of mine"


def test_each_picture_is_written_as_it_is_drawn(small_model, tmp_path, monkeypatch, capsys):
    from tiutils.figures import output

    save = output.save_new

    def then_stop(*arguments, **options):
        path = save(*arguments, **options)
        if path.name == "001.png":
            signal.raise_signal(number)
        return path

    monkeypatch.setattr(output, "save_new", then_stop)
    for number in (signal.SIGTERM, signal.SIGHUP):
        folder = tmp_path / str(number)
        before = signal.getsignal(number)
        assert generate(small_model, folder, "--num_images", "3") == 130
        assert sorted(path.name for path in folder.iterdir()) == ["000.png", "001.png"]
        assert "of 3 pictures are in" in capsys.readouterr().err
        assert signal.getsignal(number) == before


def test_progress_of_generate_is_quiet_when_asked(small_model, tmp_path, capsys):
    assert generate(small_model, tmp_path, "--num_images", "2") == 0
    assert "2/2" in capsys.readouterr().err
    assert generate(small_model, tmp_path, "--num_images", "1", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_quiet_training_says_its_result_alone(small_model, photos, tmp_path, capsys):
    flags = ["train", "--pretrained_model_name_or_path", str(small_model), "--train_data_dir", str(photos),
             "--placeholder_token", "<my-toy>", "--initializer_token", "toy", "--max_train_steps", "1"]  # fmt: skip
    assert main([*flags, "--output_dir", str(tmp_path / "a"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "<my-toy> after 1 steps" in printed.out
    assert main([*flags, "--output_dir", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().err
    assert printed.startswith(f"loading {small_model} ...\n") and "1/1" in printed


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--embedding", "missing.safetensors"], "missing.safetensors"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--output_dir", "/proc/x"], "--output_dir /proc/x"),
        (["--prompt", "caf\udce9"], "not UTF-8"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**64)], "seed is"),
        (["--guidance_scale", "nan"], "guidance_scale is nan"),
        (["--guidance_scale", "1e300"], "guidance_scale is 1e+300"),
        (["--num_inference_steps", "1000000000000"], "num_inference_steps is"),
        (["--num_images", "1000000000000"], "num_images"),
        (["--num_images", "0"], "num_images"),
        (["--pretrained_model_name_or_path", "no/model"], "no model 'no/model'"),
    ],
)
def test_generate_refuses_in_one_line(small_model, tmp_path, capsys, flags, expected):
    base = ["generate", "--pretrained_model_name_or_path", str(small_model), "--prompt", "a toy"]
    assert main([*base, "--output_dir", str(tmp_path / "pictures"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tiutils: ") and error.count("\n") == 1 and expected in error, error
    assert not (tmp_path / "pictures").exists()


def drawn(small_model, folder, capsys, *flags):
    """Draw one picture of each prompt; returns the files and the lines of warning."""
    status = main([
        "generate", "--pretrained_model_name_or_path", str(small_model), *flags, "--num_images", "1",
        "--num_inference_steps", "1", "--output_dir", str(folder), "--quiet",
    ])  # fmt: skip
    assert status == 0
    return sorted(folder.iterdir()), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("prompt", ["", "  "])
def test_a_picture_without_a_prompt_says_so(small_model, tmp_path, capsys, prompt):
    (file,), said = drawn(small_model, tmp_path / "p", capsys, "--prompt", prompt)
    with Image.open(file) as picture:
        assert picture.text["Description"] == "Drawn without a prompt."
    assert not said


def test_all_words_of_a_file_are_drawn_with_or_the_one_named(small_model, tmp_path, capsys):
    from safetensors.numpy import save_file

    file = tmp_path / "two.safetensors"
    save_file({name: np.ones((1, 32), np.float32) for name in ("<a>", "<b>")}, file)
    _, said = drawn(
        small_model, tmp_path / "p", capsys, "--embedding", str(file), "--prompt", "a <a> and <b>"
    )
    assert not said
    one = ["--embedding", f"{file}=<b>", "--prompt", "a <b>"]
    assert not drawn(small_model, tmp_path / "q", capsys, *one)[1]


@pytest.mark.parametrize(
    ("prompt", "lines"),
    [
        ("a cat", ["<my-toy> is in none of the prompts (it is case-sensitive)"]),
        ("a <My-Toy>", ["<my-toy> is in none of the prompts", "case counts"]),
        ("red " * 80 + "<my-toy>", ["<my-toy> is in none of the prompts", "is cut after 75"]),
        ("a <my-toy>", []),
    ],
)
def test_a_word_that_is_not_drawn_is_said(small_model, tmp_path, capsys, prompt, lines):
    learned = LearnedEmbedding("<my-toy>", np.full((2, 32), 0.1, np.float32))
    word = write(tmp_path / "word.safetensors", learned)
    flags = ["--embedding", str(word), "--prompt", prompt]
    _, said = drawn(small_model, tmp_path / "p", capsys, *flags)
    assert len(said) == len(lines)
    assert all(line in heard for line, heard in zip(lines, said, strict=True)), said


def test_words_are_refused_before_weights_are_loaded(small_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tiutils.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    for width, name, expected in ((8, "<t>", "8 wide"), (32, "toy", "already knows")):
        file = write(tmp_path / "x.safetensors", LearnedEmbedding(name, np.ones((1, width))))
        flags = ["--embedding", str(file), "--prompt", "x"]
        assert main(["generate", "--pretrained_model_name_or_path", str(small_model), *flags]) == 2
        assert expected in capsys.readouterr().err


def test_doctor_is_called(monkeypatch):
    monkeypatch.setattr("tiutils.cli.doctor.main", lambda: 7)
    assert main(["doctor"]) == 7


@pytest.mark.slow
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "tiutils", "train"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "\ntiutils: --train_data_dir is missing" in done.stderr, done.stderr
