"""A whole run on the small model: the files it writes, what it goes on from, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from small_model import draw_photo

import tiutils
from tiutils import models
from tiutils.cli import flags
from tiutils.cli.main import build_parser, main
from tiutils.io import checkpoints, embeddings, files, pretrained
from tiutils.runs import callbacks
from tiutils.runs import run as runs

TOKEN = "hf_thisIsASecretThatMustNotBeWritten"


@pytest.fixture(scope="module")
def base(small_model, photos):
    """The flags of every run here; a flag given again wins."""
    return [
        "--pretrained_model_name_or_path", str(small_model), "--train_data_dir", str(photos),
        "--placeholder_token", "<my-toy>", "--initializer_token", "toy",
        "--max_train_steps", "4", "--train_batch_size", "2",
    ]  # fmt: skip


def config_for(base, out):
    """The same for `tiutils.train`; a path is as good as a name."""
    config = flags.training_config(build_parser().parse_args(["train", *base]))
    return dataclasses.replace(config, output_dir=out)


@pytest.fixture
def learn(base, tmp_path, capsys):
    """Run `tiutils train` here; returns its exit status and what it said, without the progress bar."""

    def learn(*flags, out=tmp_path / "out"):
        try:
            status = main(["train", *base, "--output_dir", str(out), *map(str, flags)])
        except SystemExit as left:
            status = left.code
        printed = capsys.readouterr()
        said = [line for line in printed.err.splitlines() if line.startswith("tiutils: ")]
        return SimpleNamespace(status=status, said=said, err=printed.err, out=printed.out)

    return learn


@pytest.fixture
def refused(learn, tmp_path, monkeypatch):
    """A run that must end with status 2 and one line, before weights are loaded or a file is touched."""

    def refused(*flags, **options):
        before = fingerprints(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(models, "load", lambda *a, **k: pytest.fail("weights were loaded"))
            done = learn(*flags, **options)
        assert done.status == 2, done.err
        *before_it, line = done.err.splitlines()
        assert all(each.startswith(("asking the Hub", "loading ")) for each in before_it)
        assert line.startswith("tiutils: ") and not done.out
        assert fingerprints(tmp_path) == before, "nothing written, nothing overwritten"
        return line

    return refused


def fingerprints(folder):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def rows_in(folder, name="learned_embeds.safetensors"):
    return embeddings.read(folder / name).vectors


def record_in(folder):
    """run.json, read strictly: NaN is no JSON."""
    return json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)


def steps_of_checkpoints(folder):
    return [int(path.name.split("-")[1]) for path in checkpoints.list_checkpoints(folder)]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A finished run that has written everything a run can write."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    status = main([
        "train", *base, "--output_dir", str(folder), "--save_steps", "2", "--checkpointing_steps", "2",
        "--validation_prompt", "a <my-toy> on sand", "--validation_steps", "4",
        "--num_validation_images", "2", "--save_as_full_pipeline", "--hub_token", TOKEN,
    ])  # fmt: skip
    assert status == 0
    return folder


# What is written


def test_files_of_a_run(finished):
    assert {path.name for path in finished.iterdir()} == {
        "learned_embeds.safetensors", "learned_embeds-steps-2.safetensors",
        "learned_embeds-steps-4.safetensors", "checkpoint-2", "checkpoint-4",
        "validation-steps-4.png", "run.json",
        "model_index.json", "text_encoder", "tokenizer", "vae", "unet", "scheduler",
    }  # fmt: skip


def test_the_embedding_has_diffusers_form(finished):
    tensors = load_file(finished / "learned_embeds.safetensors")
    assert list(tensors) == ["<my-toy>"]
    assert tensors["<my-toy>"].shape == (1, 32) and tensors["<my-toy>"].dtype == np.float32
    assert (tensors["<my-toy>"] == rows_in(finished, "learned_embeds-steps-4.safetensors")).all()
    assert (tensors["<my-toy>"] != rows_in(finished, "learned_embeds-steps-2.safetensors")).any()
    facts = embeddings.read(finished / "learned_embeds-steps-2.safetensors").metadata
    assert (facts["steps"], facts["seed"], facts["initializer_token"]) == ("2", "0", "toy")


def test_run_json_says_how_to_make_it_again(finished, small_model, photos):
    record = record_in(finished)
    assert (record["status"], record["steps"], record["total_steps"]) == ("finished", 4, 4)
    assert record["flags"]["placeholder_token"] == "<my-toy>"
    assert record["flags"]["train_data_dir"] == str(photos)
    assert set(record["flags"]) == set(tiutils.TrainingConfig.__dataclass_fields__) - {"hub_token"}
    assert record["model"] == str(small_model)
    assert record["photos"] == [f"photo-{index}.png" for index in range(5)]
    assert record["versions"]["tiutils"] == tiutils.__version__
    assert record["versions"]["torch"] == metadata.version("torch")
    assert set(record["seconds"]) == {"checks", "loading", "encoding", "training", "saving"}
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert len(record["losses"]) == 4 and all(0 < loss < 10 for loss in record["losses"])


def test_the_access_token_is_in_no_file(finished):
    for path in finished.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_a_validation_grid_is_a_picture_with_alt_text(finished):
    picture = Image.open(finished / "validation-steps-4.png")
    assert picture.format == "PNG" and picture.size == (32 * 2 + 2, 32)
    assert "a <my-toy> on sand" in picture.text["Description"]
    assert "4 steps" in picture.text["Description"]


def test_validation_does_not_touch_the_run(finished, learn, tmp_path):
    """Drawing has generators of its own: the rows are those of a run that draws nothing."""
    assert learn("--checkpointing_steps", 1).status == 0
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()


def test_validation_draws_with_the_parts_already_loaded(base, small_model, tmp_path):
    """After the first step there is no model on the disk any more: nothing can be read again."""
    folder = shutil.copytree(small_model, tmp_path / "model")
    config = dataclasses.replace(
        config_for(base, tmp_path / "out"),
        pretrained_model_name_or_path=folder,
        validation_prompt="a <my-toy> on sand",
        validation_steps=2,
        num_validation_images=1,
    )
    tiutils.train(config, [lambda progress: shutil.rmtree(folder, ignore_errors=True)])
    assert not folder.exists()
    assert {"validation-steps-2.png", "validation-steps-4.png"} < set(os.listdir(tmp_path / "out"))


@pytest.mark.parametrize(
    "flags", [[], ["--num_vectors", "3"], ["--use_8bit_adam", "--num_vectors", "64"]]
)
def test_a_checkpoint_is_small(learn, tmp_path, flags):
    assert learn("--max_train_steps", 1, *flags).status == 0
    rows = rows_in(tmp_path / "out")
    (folder,) = checkpoints.list_checkpoints(tmp_path / "out")
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    assert size <= 5 * rows.nbytes + 16_000
    state = load_file(folder / "state.safetensors")
    assert (state["rows"] == rows).all() and state["rows"].dtype == np.float32


def test_only_so_many_checkpoints_are_kept(learn, tmp_path):
    flags = ["--checkpointing_steps", 1, "--checkpoints_total_limit", 2]
    assert learn(*flags).status == 0
    assert steps_of_checkpoints(tmp_path / "out") == [4, 3]


def test_torch_file_instead_of_safetensors(learn, finished, tmp_path):
    assert learn("--no_safe_serialization", "--save_steps", 2).status == 0
    names = {path.name for path in (tmp_path / "out").glob("learned_embeds*")}
    assert names == {
        "learned_embeds.bin", "learned_embeds-steps-2.bin", "learned_embeds-steps-4.bin",
    }  # fmt: skip
    tensors = torch.load(tmp_path / "out" / "learned_embeds.bin", weights_only=True)
    assert list(tensors) == ["<my-toy>"]
    assert (tensors["<my-toy>"].numpy() == rows_in(finished)).all()


def test_the_full_pipeline_is_one_for_stock_diffusers(finished):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(finished)
    pipeline.set_progress_bar_config(disable=True)
    plain = pipeline.tokenizer("a photo", add_special_tokens=False).input_ids
    ids = pipeline.tokenizer("a photo <my-toy>", add_special_tokens=False).input_ids
    assert len(ids) == len(plain) + 1
    row = pipeline.text_encoder.get_input_embeddings().weight[ids[-1]]
    assert (row.detach().numpy() == rows_in(finished)[0]).all()
    assert pipeline("a <my-toy>", num_inference_steps=2).images[0].size == (32, 32)


def test_the_full_pipeline_is_one_for_older_versions_too(finished):
    weights = load_file(finished / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    assert {"vocab.json", "merges.txt"} < {p.name for p in (finished / "tokenizer").iterdir()}


@pytest.mark.slow
def test_the_full_pipeline_in_a_process_without_tiutils(finished):
    code = """if True:
        import sys
        from diffusers import StableDiffusionPipeline
        pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
        ids = pipeline.tokenizer("a <my-toy> on sand", add_special_tokens=False).input_ids
        row = pipeline.text_encoder.get_input_embeddings().weight[ids[1]].tolist()
        assert pipeline("a <my-toy> on sand", num_inference_steps=2).images[0].size == (32, 32)
        print(any(name.split(".")[0] == "tiutils" for name in sys.modules), len(ids), *row[:3])"""
    command = [sys.executable, "-c", code, str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    here, count, *row = done.stdout.split()
    assert (here, count) == ("False", "4")
    assert [float(x) for x in row] == rows_in(finished)[0, :3].tolist()


@pytest.mark.release
@pytest.mark.slow
def test_the_full_pipeline_under_transformers_4(finished):
    from overlays import run_under

    code = """if True:
        import sys, transformers
        from diffusers import StableDiffusionPipeline
        pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
        ids = pipeline.tokenizer("<my-toy>", add_special_tokens=False).input_ids
        row = pipeline.text_encoder.get_input_embeddings().weight[ids[0]].tolist()
        print(transformers.__version__, len(ids), *row[:3])"""
    version, count, *row = run_under("transformers-4.57", code, str(finished)).split()
    assert version.startswith("4.") and count == "1"
    assert [float(x) for x in row] == rows_in(finished)[0, :3].tolist()


def test_the_result_in_memory(base, finished, tmp_path):
    seen = []
    config = config_for(base, tmp_path / "out")
    result = tiutils.train(config, callbacks=[lambda progress: seen.append(progress.step)])
    assert seen == [1, 2, 3, 4], "a notebook's own callback is called after each step"
    assert result.embedding_path == tmp_path / "out" / "learned_embeds.safetensors"
    assert (result.steps, len(result.losses), result.stopped, result.diverged) == (
        4,
        4,
        None,
        False,
    )
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all(), "the same as the command line"
    (image,) = tiutils.generate(result.models, "a <my-toy>", num_inference_steps=1)
    assert image.size == (32, 32)
    assert record_in(tmp_path / "out")["flags"]["output_dir"] == str(tmp_path / "out")


def test_two_runs_in_one_process(learn, finished, tmp_path):
    """As in a notebook: accelerate keeps global state, and must not hold the second to the first."""
    assert learn("--mixed_precision", "bf16", out=tmp_path / "bf16").status == 0
    assert learn("--mixed_precision", "no", out=tmp_path / "fp32").status == 0
    assert (rows_in(tmp_path / "fp32") == rows_in(finished)).all()
    assert (rows_in(tmp_path / "bf16") != rows_in(finished)).any()


def test_deterministic_algorithms_learn_the_same_rows(learn, finished, tmp_path):
    """On a CPU they are what is used anyway; no operation of a step lacks one."""
    assert learn("--deterministic").status == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert learn(out=tmp_path / "plain").status == 0
    assert not torch.are_deterministic_algorithms_enabled(), "the switch is not left on"
    assert rows_in(tmp_path / "out").tobytes() == rows_in(tmp_path / "plain").tobytes()


def test_length_in_epochs(learn, base, tmp_path):
    flags = ["--num_train_epochs", "2", "--repeats", "1", "--gradient_accumulation_steps", "2"]
    without_steps = [flag for flag in base if flag not in ("--max_train_steps", "4")]
    status = main(["train", *without_steps, *flags, "--output_dir", str(tmp_path / "out")])
    assert status == 0
    # 5 photos in batches of 2: 3 batches, so 2 steps of 2 micro-batches in each epoch
    assert record_in(tmp_path / "out")["steps"] == 4


# What is mended, or said, and goes on


def test_photos_that_cannot_be_used_are_named(learn, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw_photo(0).save(folder / "good.png")
    draw_photo(1).convert("CMYK").save(folder / "print.jpg")
    draw_photo(2).convert("L").save(folder / "grey.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    done = learn("--train_data_dir", folder, "--max_train_steps", 1)
    assert done.status == 0
    bad = ["cut.png", ".DS_Store", "folder.png", "loop.png"]
    assert all(any(repr(name) in line for line in done.said) for name in bad), done.said
    record = record_in(tmp_path / "out")
    assert set(record["skipped"]) == set(bad)
    assert record["photos"] == ["good.png", "grey.png", "print.jpg"]


def test_one_photo_is_enough_with_a_warning(learn, tmp_path):
    (tmp_path / "photos").mkdir()
    draw_photo(0).save(tmp_path / "photos" / "only.png")
    done = learn("--train_data_dir", tmp_path / "photos", "--max_train_steps", 1)
    assert done.status == 0 and "only one photo, 'only.png'" in done.said[0]


def test_a_word_in_mixed_case_is_warned_about_once(learn, tmp_path):
    done = learn("--placeholder_token", "<Mixed-Case>", "--save_steps", 1, "--num_vectors", 2)
    assert done.status == 0
    (line,) = done.said
    assert "stock diffusers ignores case" in line and "<mixed-case>" in line
    assert embeddings.read(tmp_path / "out/learned_embeds.safetensors").token == "<Mixed-Case>"


def test_a_flag_that_cannot_act_says_so(learn):
    done = learn("--dataloader_num_workers", 2, "--validation_epochs", 3, "--max_train_steps", 1)
    assert done.status == 0 and len(done.said) == 2
    assert any("--dataloader_num_workers has no effect" in line for line in done.said)
    assert any("--validation_epochs has no effect" in line for line in done.said)


@pytest.mark.parametrize(
    ("prompt", "is_said"), [("a toy", True), ("a <My-toy>", True), ("a <my-toy>", False)]
)
def test_a_validation_prompt_without_the_word_is_warned_about(learn, prompt, is_said):
    done = learn("--validation_prompt", prompt, "--max_train_steps", 1)
    assert done.status == 0
    assert is_said == any("<my-toy> is not in it (it is case-sensitive)" in s for s in done.said)


@pytest.mark.parametrize("flags", [("--lr_warmup_steps", 4), ("--lr_warmup_steps", 500), ()])
def test_a_warm_up_as_long_as_the_run_is_warned_about(learn, flags):
    done = learn("--lr_scheduler", "cosine", *flags)
    assert done.status == 0
    assert bool(flags) == any("no shorter than the run of 4 steps" in line for line in done.said)


def test_a_word_of_several_vectors_with_a_backslash_is_learned(learn, tmp_path):
    done = learn("--placeholder_token", r"<my\1toy>", "--num_vectors", 2, "--max_train_steps", 1)
    assert done.status == 0 and not done.said
    assert embeddings.read(tmp_path / "out/learned_embeds.safetensors").token == r"<my\1toy>"


def test_a_caption_that_is_cut_before_the_word_is_refused(refused, photos, tmp_path):
    folder = tmp_path / "captioned"
    shutil.copytree(photos, folder)
    (folder / "photo-1.txt").write_text("red, " * 40 + "<my-toy>")
    line = refused("--captions", "--train_data_dir", folder)
    assert "the caption 'photo-1.txt' is cut after 75 tokens" in line


def full_disk(monkeypatch, *names):
    """Writing a file with one of these words in its path fails, as on a full disk."""
    write = files.replace_file

    def replace_file(path, data):
        if any(name in str(path) for name in names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    monkeypatch.setattr(files, "replace_file", replace_file)


def test_disk_full_while_saving_a_checkpoint(learn, finished, tmp_path, monkeypatch):
    full_disk(monkeypatch, "checkpoint-3", "checkpoint-4")
    done = learn("--checkpointing_steps", 1, "--checkpoints_total_limit", 1)
    assert done.status == 0
    assert "could not save checkpoint-3" in done.said[0] and "No space left" in done.said[0]
    assert "newest complete checkpoint: checkpoint-2" in done.said[0]
    assert steps_of_checkpoints(tmp_path / "out") == [2]
    assert checkpoints.load_latest(tmp_path / "out").step == 2
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all(), "the run went on"


def test_disk_full_on_the_way(learn, finished, tmp_path, monkeypatch):
    full_disk(monkeypatch, "learned_embeds-steps-2", "validation-steps-2")
    flags = [
        "--validation_prompt",
        "a <my-toy>",
        "--validation_steps",
        2,
        "--num_validation_images",
        1,
    ]
    done = learn("--save_steps", 2, *flags)
    assert done.status == 0 and len(done.said) == 2, done.said
    assert all("No space left" in line for line in done.said)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"learned_embeds-steps-4.safetensors", "validation-steps-4.png"} < there
    assert not {"learned_embeds-steps-2.safetensors", "validation-steps-2.png"} & there
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()


def test_disk_full_at_the_very_end(learn, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, "learned_embeds.safetensors")
        done = learn()
    assert done.status == 2
    (line,) = done.said
    assert "could not write" in line and "learned_embeds.safetensors" in line
    assert steps_of_checkpoints(tmp_path / "out") == [4], "what was learned is not lost"
    assert learn("--resume_from_checkpoint", "latest").status == 0
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()


def test_disk_full_from_the_start(learn, monkeypatch):
    full_disk(monkeypatch, "run.json")
    done = learn()
    assert done.status == 2
    (line,) = done.said
    assert "could not write" in line and "run.json" in line


# Going on


@pytest.fixture
def stopped(learn, finished, tmp_path):
    """A folder as a killed run leaves it: two checkpoints, no final file."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("checkpoint-2", "learned_embeds-steps-2.safetensors"):
        copy = shutil.copytree if (finished / name).is_dir() else shutil.copy
        copy(finished / name, folder / name)
    record = record_in(finished) | {"status": "running", "losses": []}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_resume_goes_on_where_it_stopped(learn, stopped, finished):
    done = learn("--resume_from_checkpoint", "latest")
    assert done.status == 0 and not done.said
    assert (rows_in(stopped) == rows_in(finished)).all()
    record, whole = record_in(stopped), record_in(finished)
    assert record["status"] == "finished" and record["steps"] == 4
    assert record["losses"] == [None, None, *whole["losses"][2:]], "an entry for each step"


def test_resume_from_a_named_checkpoint(learn, stopped, finished, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    assert learn("--resume_from_checkpoint", stopped / "checkpoint-2", out=elsewhere).status == 0
    assert (rows_in(elsewhere) == rows_in(finished)).all()
    assert learn("--resume_from_checkpoint", "checkpoint-2").status == 0, "in the output folder"
    assert (rows_in(stopped) == rows_in(finished)).all()


def test_a_finished_run_may_be_made_longer(learn, finished, tmp_path):
    assert learn("--max_train_steps", 2).status == 0
    losses = record_in(tmp_path / "out")["losses"]
    assert learn("--resume_from_checkpoint", "latest").status == 0
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()
    assert record_in(tmp_path / "out")["losses"] == record_in(finished)["losses"]
    assert record_in(tmp_path / "out")["losses"][:2] == losses


def test_resuming_a_finished_run_changes_nothing(learn, tmp_path):
    assert learn().status == 0
    before = rows_in(tmp_path / "out")
    done = learn("--resume_from_checkpoint", "latest")
    assert done.status == 0 and "after 4 steps" in done.out
    assert (rows_in(tmp_path / "out") == before).all()


def test_a_checkpoint_cut_in_half(learn, stopped, finished):
    shutil.copytree(finished / "checkpoint-4", stopped / "checkpoint-3")
    state = stopped / "checkpoint-3" / "state.safetensors"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    done = learn("--resume_from_checkpoint", "latest")
    assert done.status == 0
    (line,) = done.said
    assert "checkpoint-3" in line and "damaged or cut short" in line
    assert (rows_in(stopped) == rows_in(finished)).all(), "the one before was used"


@pytest.mark.parametrize("leftovers", [False, True])
def test_latest_without_a_checkpoint_starts_anew(learn, finished, tmp_path, leftovers):
    folder = tmp_path / "out"
    if leftovers:
        folder.mkdir()
        (folder / "run.json").write_text('{"status": "running", "losses": [1')
        (folder / "learned_embeds-steps-2.safetensors").write_bytes(b"cut")
        (folder / ".checkpoint-2.tmp").mkdir()
        (folder / "checkpoint-2").mkdir()
    done = learn("--resume_from_checkpoint", "latest", "--save_steps", 2)
    assert done.status == 0
    said = [
        line
        for line in done.said
        if "no complete checkpoint" in line and "from the beginning" in line
    ]
    assert len(said) == leftovers, "a new folder needs no remark"
    assert (rows_in(folder) == rows_in(finished)).all()
    name = "learned_embeds-steps-2.safetensors"
    assert (rows_in(folder, name) == rows_in(finished, name)).all()
    assert len(record_in(folder)["losses"]) == 4


def test_a_changed_seed_or_batch_is_warned_about(learn, stopped):
    done = learn("--resume_from_checkpoint", "latest", "--seed", 5, "--train_batch_size", 1)
    assert done.status == 0
    said = "\n".join(done.said)
    assert "with seed 5, but the run was begun with 0" in said
    assert "with batch_size 1, but the run was begun with 2" in said


def test_every_changed_setting_that_matters_is_named(learn, stopped):
    done = learn("--resume_from_checkpoint", "latest", "--learning_rate", "0.001", "--center_crop")
    assert done.status == 0
    (line,) = done.said
    assert "--learning_rate 0.001 instead of" in line and "--center_crop True" in line


@pytest.mark.parametrize("word", ["__metadata__", f"<{'a' * 200}>"])
def test_a_word_that_no_file_holds_is_refused(refused, word):
    assert "cannot be a placeholder token" in refused("--placeholder_token", word)


def test_equal_runs_leave_equal_bytes(learn, tmp_path):
    for name in "ab":
        assert learn("--max_train_steps", 1, out=tmp_path / name).status == 0
    for name in ("learned_embeds.safetensors", "checkpoint-1/state.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--placeholder_token", "<other>"], "'<my-toy>', but this one is for '<other>'"),
        (["--num_vectors", "2"], "rows of shape (1, 32), but this run has (2, 32)"),
        (["--use_8bit_adam"], "optimizer 'AdamW', but this run has 'AdamW8bit'"),
    ],
)
def test_another_runs_checkpoint_is_refused(refused, stopped, flags, expected):
    assert expected in refused("--resume_from_checkpoint", "latest", *flags)


def test_another_words_checkpoint_is_refused_from_anywhere(refused, finished):
    flags = [
        "--placeholder_token",
        "<other>",
        "--resume_from_checkpoint",
        finished / "checkpoint-2",
    ]
    assert "placeholder_token '<my-toy>', but this run has '<other>'" in refused(*flags)


@pytest.mark.parametrize("name", ["checkpoint-7", "nowhere/checkpoint-2", "run.json"])
def test_a_named_checkpoint_that_is_missing_is_an_error(refused, stopped, name):
    line = refused("--resume_from_checkpoint", name)
    assert "no checkpoint at" in line and name in line


def test_a_named_checkpoint_that_is_damaged_is_an_error(refused, stopped):
    state = stopped / "checkpoint-2" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert "damaged or cut short" in refused("--resume_from_checkpoint", "checkpoint-2")


# What is refused: one line, before weights are loaded, nothing overwritten


@pytest.mark.parametrize(
    "flags, expected",
    {
        "--placeholder_token toy": "already knows the token 'toy'",
        "--placeholder_token Toy": "already knows",
        "--placeholder_token=": "--placeholder_token is missing",
        "--placeholder_token=<my toy>": "one word without spaces",
        "--initializer_token=": "--initializer_token is missing",
        "--initializer_token wooden": "single tokens near it",
        "--initializer_token=toy cat": "2 tokens (toy + cat), but must be one",
        "--num_vectors 0": "--num_vectors is 0",
        "--num_vectors 75": "has 75 vectors, too many for the training sentence",
        "--num_vectors nan": "--num_vectors",
        "--num_vectors 74": "has 74 vectors, too many for the training sentence",
        "--placeholder_token ropp": "torn apart; choose another, such as '<ropp>'",
        "--learning_rate nan": "--learning_rate is nan",
        "--learning_rate -0.1": "--learning_rate is -0.1",
        "--learning_rate 0": "--learning_rate is 0.0",
        "--max_train_steps 0": "--max_train_steps is 0",
        "--checkpointing_steps 0": "--checkpointing_steps is 0",
        "--checkpoints_total_limit 0": "--checkpoints_total_limit is 0",
        "--seed -1": "--seed is -1",
        "--resolution 30": "--resolution is 30, but this model needs a multiple of 4: give 28 or 32",
        "--resolution 3": "a multiple of 4: give 4",
        "--resolution 0": "--resolution is 0",
        "--mixed_precision fp16": "--mixed_precision fp16 needs a GPU",
        "--mixed_precision int8": "--mixed_precision",
        "--train_data_dir nowhere": "no folder 'nowhere'",
        "--train_data_dir nobody/nothing": "no Hub dataset",
        "--pretrained_model_name_or_path nowhere": "no model 'nowhere'",
        "--pretrained_model_name_or_path nobody/nothing": "no model 'nobody/nothing'",
        "--tokenizer_name nobody/nothing": "cannot read the tokenizer nobody/nothing",
        "--resume_from_checkpoint nowhere": "out/nowhere'",
        "--report_to tensorbord": "--report_to is 'tensorbord'; it must be one of all, aim, tensorboard",
        "--push_to_hub": "cannot log in to the Hub",
        "--push_to_hub --hub_model_id a//b": "'a//b' cannot be a repository's name",
        "--config nowhere.toml": "nowhere.toml cannot be read",
    }.items(),
)  # fmt: skip
def test_refused(refused, flags, expected):
    given = flags.split("=", 1) if "=" in flags else flags.split()
    assert expected in refused(*given)


def test_the_hub_out_of_reach_says_what_to_do(refused):
    line = refused("--pretrained_model_name_or_path", pretrained.DEFAULT_MODEL)
    assert "the Hub cannot be reached" in line and str(pretrained.BUNDLED_MODEL) in line
    line = refused("--train_data_dir", "diffusers/cat_toy_example")
    assert "or give a local folder of photos" in line


def test_a_tracker_that_is_not_installed_is_refused(refused, monkeypatch):
    find_spec = runs.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorboard" else find_spec(name)
    )
    assert "pip install tensorboard" in refused("--report_to", "tensorboard")


@pytest.mark.parametrize("content", ["nothing", "only bad files"])
def test_no_photo_left_is_refused(refused, tmp_path, content):
    (tmp_path / "photos").mkdir()
    if content != "nothing":
        (tmp_path / "photos" / "notes.txt").write_text("no photo")
        (tmp_path / "photos" / "held_out").mkdir()
        draw_photo(0).save(tmp_path / "photos" / "held_out" / "0.png")
    assert "no photo left in" in refused("--train_data_dir", tmp_path / "photos")


@pytest.mark.parametrize(
    "name",
    ["run.json", "learned_embeds.safetensors", "learned_embeds-steps-5.bin", "model_index.json"],
)
def test_another_runs_folder_is_left_alone(refused, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("somebody's")
    line = refused()
    assert f"already contains a run ({name})" in line and "--resume_from_checkpoint latest" in line


def test_a_folder_with_a_checkpoint_is_left_alone(refused, finished, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
    assert "already contains a run (checkpoint-2)" in refused()


def test_a_folder_with_other_things_is_used(learn, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert learn("--max_train_steps", 1).status == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_output_folder_that_cannot_be(refused, learn, photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file")
    assert "is a file" in refused(out=tmp_path / "file")
    assert "is a file" in refused(out=tmp_path / "file" / "below")
    assert "the folder of the photos" in refused(out=photos)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in refused()


def test_fp16_needs_a_gpu_even_where_one_is_not_used(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "or use bf16" in refused("--mixed_precision", "fp16")


# The Hub, as far as it can be had without it


def test_photos_from_a_dataset_on_the_hub(learn, photos, finished, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(dataset, **options):
        asked.append((dataset, options["repo_type"], options["token"]))
        return str(photos)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    done = learn("--train_data_dir", "diffusers/cat_toy_example", "--hub_token", TOKEN)
    assert done.status == 0 and asked == [("diffusers/cat_toy_example", "dataset", TOKEN)]
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()


def test_nothing_is_published_unless_asked(learn, monkeypatch):
    monkeypatch.setattr(
        "tiutils.publishing.publish.publish", lambda *a, **k: pytest.fail("published")
    )
    monkeypatch.setattr(
        "tiutils.publishing.publish.check_access", lambda *a, **k: pytest.fail("asked the Hub")
    )
    flags = ["--hub_model_id", "me/toy", "--hub_token", TOKEN, "--max_train_steps", 1]
    assert learn(*flags).status == 0


def test_publishing_when_asked(learn, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "tiutils.publishing.publish.check_access", lambda *a: calls.append(("check", *a))
    )

    def push(output_dir, repo_id, *, token, full_pipeline):
        assert record_in(Path(output_dir))["status"] == "finished", "everything is written by then"
        calls.append(("push", repo_id, token, full_pipeline))

    monkeypatch.setattr("tiutils.publishing.publish.publish", push)
    flags = ["--push_to_hub", "--hub_model_id", "me/toy", "--hub_token", TOKEN]
    assert learn(*flags, "--max_train_steps", 1).status == 0
    assert calls == [("check", TOKEN, "me/toy"), ("push", "me/toy", TOKEN, False)]
    assert not (tmp_path / "out" / "unet").exists(), "a word is published, not a model"


# What ends a run early


def test_a_loss_that_is_not_finite(learn, tmp_path):
    done = learn("--learning_rate", "9e29", "--max_train_steps", 20, "--checkpointing_steps", 1)
    assert done.status == 1
    assert "the loss was not finite" in done.said[-1] and "--learning_rate" in done.said[-1]
    assert np.abs(rows_in(tmp_path / "out")).max() < 10, "rows that a finite loss was seen with"
    record = record_in(tmp_path / "out")
    assert record["losses"][-1] is None and "not finite" in record["status"]
    for step in steps_of_checkpoints(tmp_path / "out"):
        state = checkpoints.load(tmp_path / "out" / f"checkpoint-{step}")
        assert all(np.isfinite(v).all() for v in state.tensors.values() if v.dtype.kind == "f")


def test_rows_that_are_not_finite_are_not_saved(tmp_path):
    """On a GPU the loop looks at the loss only now and then; a file may be due in between."""
    config = tiutils.TrainingConfig(save_steps=1, checkpointing_steps=1, output_dir=str(tmp_path))
    training = SimpleNamespace(config=config, vectors=lambda: np.array([[1.0, np.nan]]))
    callbacks.saving()(SimpleNamespace(step=1, training=training))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_keeps_what_was_learned(base, finished, learn, tmp_path, number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(progress):
        if progress.step == 2:
            os.kill(os.getpid(), number)

    result = tiutils.train(config_for(base, tmp_path / "out"), callbacks=[interrupt])
    assert 2 <= result.steps <= 3 and result.stopped == "stopped by request"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert steps_of_checkpoints(tmp_path / "out") == [result.steps]
    assert record_in(tmp_path / "out")["status"] == "stopped by request"
    assert rows_in(tmp_path / "out").shape == (1, 32)
    assert learn("--resume_from_checkpoint", "latest").status == 0
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()
    assert record_in(tmp_path / "out")["losses"] == record_in(finished)["losses"]


@pytest.fixture
def usual_ctrl_c():
    """A shell's background jobs, CI's among them, begin with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_twice_stops_at_once(base, tmp_path, usual_ctrl_c):
    def interrupt(progress):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        tiutils.train(config_for(base, tmp_path / "out"), callbacks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_outside_the_main_thread(base, finished, tmp_path):
    """A notebook's widget trains in a thread, where Python lets nobody handle signals."""
    thread = threading.Thread(target=tiutils.train, args=(config_for(base, tmp_path / "out"),))
    thread.start()
    thread.join()
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()


def test_trackers_see_each_step():
    logged, shown = [], []
    tracker = SimpleNamespace(
        name="tensorboard", log_images=lambda images, step: shown.append((images, step))
    )
    accelerator = SimpleNamespace(
        trackers=[tracker], log=lambda values, step: logged.append((values, step))
    )
    (log,) = callbacks.tracking(accelerator)
    log(SimpleNamespace(step=3, loss=torch.tensor(0.5), learning_rate=1e-3))
    assert logged == [({"loss": 0.5, "lr": 1e-3}, 3)]
    callbacks.log_images([tracker], [draw_photo(0), draw_photo(1)], 3)
    assert shown[0][0]["validation"].shape == (2, 48, 48, 3) and shown[0][1] == 3
    assert callbacks.tracking(SimpleNamespace(trackers=[])) == []


# In processes of their own


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(base, tmp_path):
    out, steps = tmp_path / "out", 5000
    flags = [*base, "--output_dir", out, "--max_train_steps", steps, "--checkpointing_steps", 5]
    command = [sys.executable, "-m", "tiutils", "train", *map(str, flags)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not steps_of_checkpoints(out):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "keeping what was learned" in said and "Traceback" not in said
    newest = steps_of_checkpoints(out)[0]
    record = record_in(out)
    assert newest == record["steps"] == len(record["losses"]) < steps
    state = checkpoints.load_latest(out)
    assert (state.tensors["rows"] == rows_in(out)).all()

    flags += ["--resume_from_checkpoint", "latest", "--max_train_steps", newest + 3]
    assert main(["train", *map(str, flags)]) == 0
    assert record_in(out)["steps"] == newest + 3 == len(record_in(out)["losses"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("python -m tiutils", marks=pytest.mark.release),
        pytest.param("accelerate launch", marks=pytest.mark.release),
        "tiutils",
    ],
)
def test_every_way_to_start_learns_the_same(base, finished, tmp_path, launcher):
    programs = Path(sys.executable).parent
    command = {
        "python -m tiutils": [sys.executable, "-m", "tiutils"],
        "accelerate launch": [
            programs / "accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "tiutils",
        ],
        "tiutils": [programs / "tiutils"],
    }[launcher]  # fmt: skip
    flags = ["train", *base, "--output_dir", tmp_path / "out"]
    done = subprocess.run([*map(str, command), *map(str, flags)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (rows_in(tmp_path / "out") == rows_in(finished)).all()
