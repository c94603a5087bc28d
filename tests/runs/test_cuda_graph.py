"""Steps that replay what was recorded: the same numbers as plain ones. The graph is a stand-in: here is no GPU."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training import make_training, relative_difference

import tiutils
from tiutils import diffusion, errors, training
from tiutils.config import TrainingConfig
from tiutils.io import checkpoints, embeddings
from tiutils.runs import cuda_graph, memory, run
from tiutils.runs.cuda_graph import CapturedStep


class Recorder:
    """As a graph does: replaying fills the tensors of the recording anew, from what lies in the buffers."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        work()  # the warm-up, which must leave nothing behind
        results = work()
        for tensor in results:
            tensor.fill_(torch.nan)  # recording computes nothing

        def replay():
            self.replayed += 1
            for tensor, value in zip(results, work(), strict=True):
                tensor.copy_(value)

        return replay, results


def both(small_model, photos, scaler=lambda: None, **flags):
    """A plain run and a recorded one, after the same steps."""
    flags = {"gradient_accumulation_steps": 2, "max_train_steps": 8} | flags
    plain, recorded = (make_training(small_model, photos, scaler(), **flags) for _ in "ab")
    expected = training.train_rows(plain)
    recorder = Recorder()
    got = training.train_rows(recorded, take_step=CapturedStep(recorder))
    assert (recorder.recorded, recorder.replayed) == (1, 8)
    assert got.losses == expected.losses
    one, other = plain.capture(8), recorded.capture(8)
    assert one.scalars == other.scalars and one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name], err_msg=name)
    return plain, recorded


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"gradient_accumulation_steps": 1, "norm_control": 0.0, "timestep_sampling": "uniform"},
        {"lr_scheduler": "cosine", "lr_warmup_steps": 3, "max_grad_norm": 1e-3, "num_vectors": 2},
        {"seed": 7, "adam_weight_decay": 0.1},
        {"mixed_precision": "bf16"},
    ],
    ids=lambda flags: " ".join(flags),
)
def test_a_recorded_run_learns_the_same_bits(small_model, photos, flags):
    _, recorded = both(small_model, photos, **flags)
    assert recorded.rows.grad is None


def test_captions_and_masks_are_in_the_graph(small_model, photos, monkeypatch):
    make = training.encode_dataset

    def with_both(*parts, **settings):
        dataset = make(*parts, **settings)
        own = torch.arange(len(dataset.mean)) % 2 - 1  # every second view has a sentence
        masks = torch.rand(len(dataset.mean), 1, *dataset.mean.shape[2:])
        return dataclasses.replace(dataset, captions=own, masks=masks / masks.mean())

    torch.manual_seed(0)
    monkeypatch.setattr(training, "encode_dataset", with_both)
    plain, recorded = (make_training(small_model, photos) for _ in "ab")
    recorded.dataset = plain.dataset
    expected = training.train_rows(plain).losses
    assert training.train_rows(recorded, take_step=CapturedStep(Recorder())).losses == expected


def test_steps_with_too_large_a_scale_are_skipped(small_model, photos):
    """As in plain steps; the gradient of a skipped step must not reach the next."""

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)

    plain, _ = both(small_model, photos, scaler)
    assert plain.scaler.get_scale() < 2.0**127, "some were"


def test_python_draws_one_batch_a_step_and_nothing_while_replaying(
    small_model, photos, monkeypatch
):
    session, asked, draw = make_training(small_model, photos), [], cuda_graph.batch_at

    def counted(plan, step):
        asked.append(step)
        return draw(plan, step)

    monkeypatch.setattr(cuda_graph, "batch_at", counted)
    monkeypatch.setattr(diffusion, "batch_at", lambda *a: pytest.fail("a step drew by itself"))
    take = CapturedStep(Recorder())
    losses = [take(session, step) for step in (3, 4, 9)]
    assert asked == [3, 4, 9]
    assert len({loss.data_ptr() for loss in losses}) == 3, "a loss is the caller's to keep"
    places = [buffer.data_ptr() for buffer in take.buffers]
    take(session, 10)
    assert places == [buffer.data_ptr() for buffer in take.buffers]
    arrays = vars(draw(session.dataset.plan, 10)).values()
    for buffer, array in zip(take.buffers, arrays, strict=True):
        np.testing.assert_array_equal(buffer, array)


def test_other_gradients_between_two_steps_are_nobodys_business(small_model, photos):
    """What is computed between replays, such as a validation's loss, has a gradient of its own."""
    plain, recorded = (make_training(small_model, photos) for _ in "ab")
    take = CapturedStep(Recorder())
    for step in range(3):
        training.training_step(plain, step)
        take(recorded, step)
        diffusion.losses_at(recorded.models, recorded.dataset, 50, 0, 1).sum().backward()
        recorded.rows.grad = None
    assert torch.equal(plain.rows, recorded.rows)


def test_what_cannot_be_recorded_leaves_the_run_as_it_was(small_model, photos):
    session = make_training(small_model, photos)
    before = session.capture(0)

    def fail(work):
        work()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    session.config = dataclasses.replace(session.config, capture=True)
    take = CapturedStep(fail)
    result = training.train_rows(
        session, take_step=lambda t, s: memory.with_memory_retry(t, s, fallbacks=[], take_step=take)
    )
    assert result.out_of_memory and "replace --capture with --fit" in result.stopped
    after = session.capture(0)
    assert before.scalars == after.scalars and list(before.tensors) == list(after.tensors)
    np.testing.assert_array_equal(before.tensors["rows"], after.tensors["rows"])


def test_recording_on_the_device(monkeypatch):
    """Which of PyTorch's functions are called, in which order: warmed up aside, recorded once, not run again."""
    said, current = [], SimpleNamespace(wait_stream=lambda other: said.append("wait for aside"))

    class Graph:
        def replay(self):
            said.append("replay")

    @contextlib.contextmanager
    def within(name):
        said.append(f"in {name}")
        yield
        said.append(f"out of {name}")

    aside = SimpleNamespace(wait_stream=lambda other: said.append("aside waits"))
    stand_ins = {
        "Stream": lambda: aside, "current_stream": lambda: current, "CUDAGraph": Graph,
        "stream": lambda stream: within("aside"), "graph": lambda graph: within("graph"),
        "synchronize": lambda: said.append("synchronize"),
    }  # fmt: skip
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    replay, results = cuda_graph.record(lambda: said.append("work") or ("made",))
    replay()
    assert results == ("made",)
    assert said == [
        "aside waits", "in aside", "work", "work", "work", "out of aside", "wait for aside", "synchronize",
        "in graph", "work", "out of graph", "replay",
    ]  # fmt: skip


# As a whole run has it


@pytest.fixture
def config(small_model, photos, tmp_path):
    return TrainingConfig(
        str(photos), "<my-toy>", "toy", pretrained_model_name_or_path=str(small_model),
        output_dir=str(tmp_path / "out"), train_batch_size=2, max_train_steps=6, checkpointing_steps=2,
        validation_prompt="a <my-toy>", validation_steps=2, num_validation_images=1,
        early_stopping=True, early_stopping_steps=2, early_stopping_window=4, save_as_full_pipeline=True,
    )  # fmt: skip


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """The inputs pass as they would where there is a GPU; the graph is the stand-in."""
    check, recorder = run.read_inputs, Recorder()
    monkeypatch.setattr(run, "read_inputs", lambda c, **k: check(c, **k | {"device": "cuda"}))
    monkeypatch.setattr(cuda_graph, "CapturedStep", lambda: CapturedStep(recorder))
    return recorder


def test_a_whole_run_stopped_and_resumed(config, as_if_on_a_gpu, tmp_path):
    plain = tiutils.train(config)
    assert as_if_on_a_gpu.recorded == 0
    there = dataclasses.replace(config, capture=True, output_dir=str(tmp_path / "recorded"))
    stopped = tiutils.train(there, [lambda progress: progress.step == 3])
    assert stopped.steps == 3 and checkpoints.load_latest(there.output_dir).step == 3
    resumed = tiutils.train(dataclasses.replace(there, resume_from_checkpoint="latest"))
    assert (as_if_on_a_gpu.recorded, as_if_on_a_gpu.replayed) == (2, 6)
    assert resumed.steps == 6 and resumed.best_step == plain.best_step
    # the U-Net lies in another order, so that floats are added in another
    assert [*stopped.losses, *resumed.losses] == pytest.approx(plain.losses, rel=1e-4)
    for steps in (2, 4, 6):
        assert (tmp_path / "recorded" / f"validation-steps-{steps}.png").exists()
    one, other = (embeddings.read(r.embedding_path).vectors for r in (plain, resumed))
    start = torch.from_numpy(embeddings.read(stopped.embedding_path).vectors)
    assert relative_difference(torch.from_numpy(one), torch.from_numpy(other), start * 0) < 1e-4
    weight = resumed.models.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "flags, said",
    [
        ({}, "--capture needs a GPU with CUDA, which PyTorch does not see here"),
        (
            {"gradient_checkpointing": True},
            "--capture cannot be used with --gradient_checkpointing",
        ),
        ({"fit": True}, "--capture cannot be used with --fit"),
        ({"quantize": "4bit", "save_as_full_pipeline": False}, "cannot be used with --quantize"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_where_it_cannot_act_it_is_refused(config, flags, said):
    with pytest.raises(errors.InputError, match=said):
        tiutils.train(dataclasses.replace(config, capture=True, **flags))


def test_several_processes_are_refused(config):
    with pytest.raises(errors.InputError, match=r"records the steps of one process.*are 2;"):
        config = dataclasses.replace(config, capture=True)
        run.read_inputs(config, device="cuda", num_processes=2)
