"""Real processes that share a batch: the same rows, one that writes, all that end together; docs/bigger.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import hub_server
import numpy as np
import psutil
import pytest

from tiutils import models
from tiutils.cli.flags import training_config
from tiutils.cli.main import build_parser, main
from tiutils.io import checkpoints, embeddings
from tiutils.tokenizer import check_initializer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bigger.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
BATCH = 4  # of all processes together
STEPS = 20
STOPPING = [
    "--early_stopping", "--early_stopping_steps", "2", "--early_stopping_window", "12", "--learning_rate", "0.05",
    "--max_train_steps", "60",
]  # fmt: skip


@pytest.fixture
def words(small_model, photos):
    """The command line of a run in so many processes, as one of several would have it."""

    def words(output_dir, number, *flags):
        return [
            "train", "--pretrained_model_name_or_path", str(small_model), "--train_data_dir", str(photos),
            "--placeholder_token", "<my-toy>", "--initializer_token", "toy", "--learning_rate", "0.005",
            "--train_batch_size", str(BATCH // number), "--max_train_steps", str(STEPS),
            "--output_dir", str(output_dir), *flags,
        ]  # fmt: skip

    return words


@pytest.fixture
def start(words):
    """Starts a run in several processes; what they say goes to `log.txt` beside the output folder."""
    started = []

    def start(output_dir, number, *flags, env=None):
        # --standalone: on a free port of its own, so that two test runs do not meet
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
        command = [sys.executable, *torchrun, "-m", "tiutils", *words(output_dir, number, *flags)]
        with open(output_dir.with_suffix(".log"), "wb") as log:
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | (env or {}))
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def learn(start, words):
    """Runs it to its end; returns what is on record. One process alone is this one, which has all imported."""

    def learn(output_dir, number, *flags, env=None):
        if number == 1:
            assert main(words(output_dir, number, *flags)) == 0
            return record_in(output_dir)
        process = start(output_dir, number, *flags, env=env)
        assert process.wait(300) == 0, output_dir.with_suffix(".log").read_text()[-3000:]
        return record_in(output_dir)

    return learn


def record_in(output_dir):
    return json.loads((output_dir / "run.json").read_text())


def rows_in(output_dir):
    return embeddings.read(output_dir / "learned_embeds.safetensors").vectors


def assert_same_rows(small_model, one, other):
    """As near as the order of sums allows, compared with the way that the rows have gone."""
    parts = models.load(small_model)
    toy = check_initializer(parts.tokenizer, "toy")
    start = parts.text_encoder.get_input_embeddings().weight[[toy]].numpy()
    way = np.linalg.norm(rows_in(one) - start)
    assert np.linalg.norm(rows_in(one) - rows_in(other)) <= 1e-3 * way


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (2, []),
        pytest.param(4, [], marks=pytest.mark.release),
        pytest.param(2, ["--optimizer", "directional"], marks=pytest.mark.release),
    ],
)
def test_one_and_more_processes_learn_the_same(small_model, tmp_path, learn, number, flags):
    drawing = [
        "--validation_prompt",
        "a <my-toy>",
        "--validation_steps",
        "10",
        "--save_steps",
        "10",
        *flags,
    ]
    one = learn(tmp_path / "1", 1, *drawing, "--num_validation_images", "1")
    folder = tmp_path / str(number)
    record = learn(folder, number, *drawing, "--num_validation_images", "1")
    assert (one["processes"], record["processes"]) == (1, number)
    assert_same_rows(small_model, tmp_path / "1", folder)
    np.testing.assert_allclose(record["losses"], one["losses"], rtol=1e-4)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "1"))
    said = folder.with_suffix(".log").read_text()
    assert said.count("<my-toy> after 20 steps") == 1, "only the first speaks"


@pytest.mark.slow
@pytest.mark.release
def test_they_stop_by_themselves_at_the_same_step(small_model, tmp_path, learn):
    flags = [*STOPPING, "--average_rows", "5"]  # the mean is judged, and is the same in both
    one, two = (learn(tmp_path / str(number), number, *flags) for number in (1, 2))
    assert 12 < one["steps"] == two["steps"] < 60
    assert one["status"] == two["status"] == "finished"
    states = [checkpoints.load_latest(tmp_path / name) for name in ("1", "2")]
    assert states[0].scalars["best_step"] == states[1].scalars["best_step"]
    means = [state.tensors["mean_rows"] for state in states]
    np.testing.assert_allclose(*means, rtol=1e-4, atol=1e-5)
    heard = [state.tensors["stopping.sensitivities"] for state in states]
    np.testing.assert_allclose(*heard, rtol=1e-3)
    fixed = [state.tensors["stopping.losses"] for state in states]
    np.testing.assert_allclose(fixed[0], fixed[1], rtol=1e-5)
    assert_same_rows(small_model, tmp_path / "1", tmp_path / "2")


@pytest.mark.release
@pytest.mark.slow
def test_resumed_with_another_number_of_processes(small_model, tmp_path, learn):
    learn(tmp_path / "whole", 1)
    for number, steps in ((4, "8"), (1, "14"), (2, "20")):
        flags = ["--max_train_steps", steps, "--resume_from_checkpoint", "latest"]
        record = learn(tmp_path / "parts", number, *flags)
        assert (record["processes"], record["steps"]) == (number, int(steps))
    assert_same_rows(small_model, tmp_path / "whole", tmp_path / "parts")
    assert "other batches" not in (tmp_path / "parts.log").read_text()
    np.testing.assert_allclose(record["losses"], record_in(tmp_path / "whole")["losses"], rtol=1e-4)


@pytest.mark.release
@pytest.mark.slow
def test_resumed_where_only_the_first_machine_has_the_folder(small_model, photos, tmp_path, learn):
    learn(tmp_path / "whole", 1)
    script = f"""
        import os, accelerate, tiutils
        def learn(steps):
            rank = accelerate.PartialState().process_index
            tiutils.train(tiutils.TrainingConfig(
                pretrained_model_name_or_path={str(small_model)!r}, train_data_dir={str(photos)!r},
                placeholder_token="<my-toy>", initializer_token="toy", train_batch_size=2,
                max_train_steps=steps, output_dir=f"node-{{rank}}", resume_from_checkpoint="latest",
            ))
        for steps in (8, 20):
            accelerate.debug_launcher(learn, args=(steps,), num_processes=2)
    """
    run_code(textwrap.dedent(script), tmp_path)
    assert_same_rows(small_model, tmp_path / "whole", tmp_path / "node-0")
    assert not (tmp_path / "node-1").exists(), "only the first writes"


@pytest.mark.slow
def test_ctrl_c_ends_all_after_the_same_step(tmp_path, start):
    steps = ["--max_train_steps", "100000", "--checkpointing_steps", "10"]
    run = start(tmp_path / "run", 2, *steps)
    deadline = time.monotonic() + 120
    while not checkpoints.list_checkpoints(tmp_path / "run"):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) >= 2
    run.send_signal(signal.SIGINT)
    run.wait(60)
    assert psutil.wait_procs(workers, timeout=10)[1] == [], "nothing goes on"
    record = record_in(tmp_path / "run")
    assert record["status"] == "stopped by request"
    assert checkpoints.load_latest(tmp_path / "run").step == record["steps"]
    assert np.isfinite(rows_in(tmp_path / "run")).all()


@pytest.mark.release
@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all(tmp_path, start):
    run = start(tmp_path / "run", 2, "--learning_rate", "9e29")
    assert run.wait(120) != 0
    assert "not finite" in record_in(tmp_path / "run")["status"]
    assert np.abs(rows_in(tmp_path / "run")).max() < 10, "rows that a finite loss was seen with"


@pytest.mark.slow
def test_what_is_wrong_ends_all_before_anything_is_written(tmp_path, start):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert start(tmp_path / "run", 2).wait(120) != 0
    said = (tmp_path / "run.log").read_text()
    assert said.count("already contains a run") == 1, "the others do not look"
    assert os.listdir(tmp_path / "run") == ["run.json"]


@pytest.mark.release
@pytest.mark.slow
def test_only_the_first_process_publishes(tmp_path, learn):
    with hub_server.serving() as server:
        server.add_account("hf_token", "me")
        flags = ["--push_to_hub", "--hub_token", "hf_token", "--hub_model_id", "me/my-toy"]
        environment = hub_server.environment(server, tmp_path / "hf-home")
        learn(tmp_path / "run", 2, *flags, "--max_train_steps", "2", env=environment)
        assert server.asked.count("commit") == 1
        assert server.asked.count("whoami") <= 2, "one asks before training, and before it uploads"


def run_code(code, folder):
    """As a notebook's kernel does: in a process that knows nothing else."""
    (folder / "code.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "code.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("launcher", ["debug_launcher", "notebook_launcher"])
def test_the_pages_code_for_notebooks(tmp_path, launcher):
    """On a CPU notebook_launcher starts two processes, too, and tiutils joins them."""
    whole, instead = CODE
    code = whole.replace("max_train_steps=300", "max_train_steps=2")
    if launcher == "notebook_launcher":
        code = code.replace(next(line for line in whole.splitlines() if "debug" in line), instead)
    (tmp_path / "data").symlink_to(ROOT / "data")
    run_code(code, tmp_path)
    record = record_in(tmp_path / "runs" / "wood-toy-2")
    assert (record["processes"], record["status"]) == (2, "finished")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_are_understood(command, tmp_path, monkeypatch):
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    monkeypatch.chdir(tmp_path)
    flags = {"train_data_dir": "photos", "placeholder_token": "<t>", "initializer_token": "toy"}
    Path("my-cat.toml").write_text("".join(f'{k} = "{v}"\n' for k, v in flags.items()))
    program, *words = shlex.split(command)
    parser = get_args_parser()
    if program == "accelerate":
        assert words.pop(0) == "launch"
        parser = launch_command_parser()
    launch = parser.parse_args(words)
    assert launch.module and launch.training_script == "tiutils"
    config = training_config(build_parser().parse_args(launch.training_script_args))
    assert config.train_data_dir and config.placeholder_token and config.initializer_token


def test_the_page_has_commands_of_both_launchers():
    assert {shlex.split(command)[0] for command in COMMANDS} == {"torchrun", "accelerate"}
