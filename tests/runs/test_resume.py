"""Real processes: killed and resumed, they learn the very same rows as one left alone."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
from small_model import save_small_sdxl

from tiutils.io import checkpoints, embeddings

pytestmark = pytest.mark.slow

TOTAL_STEPS = 150


def flags_for(small_model, photos, output_dir, *extra):
    return [
        "train", "--pretrained_model_name_or_path", str(small_model), "--train_data_dir", str(photos),
        "--placeholder_token", "<my-toy>", "--initializer_token", "toy", "--learning_rate", "0.005",
        "--output_dir", str(output_dir), *extra,
    ]  # fmt: skip


def learned_rows(output_dir):
    return embeddings.read(output_dir / "learned_embeds.safetensors").rows


def run_command(flags, log):
    """In a process of its own: the command line, with its output in a file."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from tiutils.cli.main import main

    sys.exit(main(flags))


@pytest.fixture(scope="module")
def processes():
    """Starts processes in which everything is imported already: ten kills in seconds, not minutes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiutils.runs.run", "bitsandbytes"])
    return context


def newest_step(output_dir):
    found = checkpoints.list_checkpoints(output_dir)
    return int(found[0].name.split("-")[1]) if found else 0


def kill_after_a_new_checkpoint(process, output_dir, before, chance):
    while newest_step(output_dir) == before:
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.06))  # anywhere in a step, or in the next save
    assert process.is_alive(), "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_three_kills_and_the_same_bits(small_model, photos, tmp_path, processes):
    compare_with_kills(small_model, photos, tmp_path, processes, 3, [])


@pytest.mark.release
@pytest.mark.parametrize("optimizer", [[], ["--use_8bit_adam", "--num_vectors", "4"]])
def test_ten_kills_and_the_same_bits(small_model, photos, tmp_path, processes, optimizer):
    compare_with_kills(small_model, photos, tmp_path, processes, 10, optimizer)


@pytest.mark.release
def test_sdxl_after_three_kills(photos, tmp_path, processes):
    sdxl = save_small_sdxl(tmp_path / "sdxl")
    compare_with_kills(sdxl, photos, tmp_path, processes, 3, [])


def compare_with_kills(model, photos, tmp_path, processes, kills, more):
    """A run killed so often ends with the rows and the state of one that was left alone."""
    common = ["--max_train_steps", str(TOTAL_STEPS), "--checkpointing_steps", "3", *more]
    log = tmp_path / "log.txt"

    def start(output_dir, *extra):
        flags = flags_for(model, photos, output_dir, *common, *extra)
        process = processes.Process(target=run_command, args=(flags, log))
        process.start()
        return process

    alone = start(tmp_path / "alone")
    alone.join()
    assert alone.exitcode == 0, log.read_text()

    killed, chance, steps = tmp_path / "killed", random.Random(0), [0]
    for _ in range(kills):
        process = start(killed, "--resume_from_checkpoint", "latest")
        kill_after_a_new_checkpoint(process, killed, steps[-1], chance)
        steps.append(newest_step(killed))
    last = start(killed, "--resume_from_checkpoint", "latest")
    last.join()
    assert last.exitcode == 0, log.read_text()

    assert len(steps) == kills + 1 and all(a < b for a, b in itertools.pairwise(steps)), steps
    assert learned_rows(killed).tobytes() == learned_rows(tmp_path / "alone").tobytes()
    whole, resumed = (checkpoints.load_latest(tmp_path / name) for name in ("alone", "killed"))
    assert whole.step == resumed.step == TOTAL_STEPS
    for name, tensor in whole.tensors.items():
        assert tensor.tobytes() == resumed.tensors[name].tobytes(), name
