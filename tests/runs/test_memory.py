"""What fits, which switches make it fit, and going on where memory runs out all the same."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import make_training, relative_difference

import tiutils
from tiutils import errors, models, training
from tiutils.cli.main import main
from tiutils.config import TrainingConfig
from tiutils.io import checkpoints, pretrained
from tiutils.runs import memory, run
from tiutils.runs.memory import GIB, SD15

CONFIG = TrainingConfig("photos", "<my-toy>", "toy", train_batch_size=4)


def chosen(gib, device="cuda", **changes):
    return memory.choose_plan(dataclasses.replace(CONFIG, **changes), SD15, device, int(gib * GIB))[
        0
    ]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_table_has_a_row_for_every_combination_of_switches(family):
    rows = memory.table()[family]["rows"]
    keys = {(r["precision"], r["gradient_checkpointing"], r["quantize"]) for r in rows}
    assert len(rows) == len(keys) == 2 * 2 * 3
    for row in rows:
        assert row["activations"][1] > 0 and min(row["time"]) >= 0


def test_weights_by_hand():
    """859.5 million weights in half precision, 123 million of the text encoder in float32."""
    row = memory.table()["sd15"]["rows"][0]
    plan = memory.predicted(dataclasses.replace(CONFIG, train_batch_size=1))
    expected = 4 * (859_520_964 + 123_060_480) + sum(row["activations"])
    assert plan.peak_bytes == pytest.approx(expected, rel=1e-6)
    assert row["weights"] == pytest.approx(4 * (859_520_964 + 123_060_480), rel=1e-3)


def test_stable_diffusion_fits_into_two_and_a_half_gib():
    lean = dataclasses.replace(
        CONFIG, mixed_precision="fp16", train_batch_size=1, gradient_checkpointing=True
    )
    assert memory.predicted(lean).peak_bytes <= 2.5 * GIB


@given(gib=st.floats(0.1, 40), batch=st.integers(1, 8), accumulation=st.integers(1, 4),
       device=st.sampled_from(["cpu", "cuda"]), checkpointing=st.booleans(),
       precision=st.sampled_from(["no", "bf16"]))  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_what_is_chosen_fits_and_is_the_run_that_was_asked_for(
    gib, batch, accumulation, device, checkpointing, precision
):
    config = dataclasses.replace(
        CONFIG, train_batch_size=batch, gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing, mixed_precision=precision,
    )  # fmt: skip
    free = int(gib * GIB)
    ways = memory.plans(config, SD15, device)
    try:
        plan, fallbacks = memory.choose_plan(config, SD15, device, free)
    except errors.InputError:
        assert min(way.peak_bytes for way in ways) > free * (1 - memory.MARGIN)
        return
    assert plan.peak_bytes <= free * (1 - memory.MARGIN)
    fitting = [way for way in ways if way.peak_bytes <= free * (1 - memory.MARGIN)]
    same = [
        w
        for w in fitting
        if (w.mixed_precision, w.quantize) == (plan.mixed_precision, plan.quantize)
    ]
    assert plan.relative_time == min(way.relative_time for way in same), "the fastest"
    for way in (plan, *fallbacks):
        applied = way.applied(config)
        assert applied.samples_per_process == batch * accumulation
        assert applied.gradient_checkpointing or not checkpointing, "what was on stays on"
        assert (way.mixed_precision, way.quantize) == (plan.mixed_precision, plan.quantize)
    sizes = [way.peak_bytes for way in (plan, *fallbacks)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


def test_the_more_memory_the_fewer_switches(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    assert chosen(40).relative_time <= chosen(4).relative_time <= chosen(3).relative_time
    assert not chosen(40).gradient_checkpointing and chosen(3).gradient_checkpointing
    assert chosen(40).mixed_precision == "fp16" and chosen(40, "cpu").mixed_precision == "no"
    assert chosen(2.4).quantize == "8bit" and chosen(2.2).quantize == "4bit"
    assert chosen(40, quantize="4bit").quantize == "4bit", "what was asked for stays"


def test_what_cannot_fit_is_told_with_both_figures(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.InputError) as raised:
        chosen(1)
    assert "the leanest is fp16, batch 1 × 4, gradient checkpointing: about 2.3 GiB" in str(
        raised.value
    )
    assert "1.0 GiB are free" in str(raised.value) and "pip install bitsandbytes" in str(
        raised.value
    )


def test_a_models_folder_tells_its_shape(small_model):
    shape, parts = memory.size_of(small_model), models.load(small_model)
    sizes = [m.weight.numel() for m in parts.unet.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.linear == sum(sizes)
    assert shape.linear + shape.other == sum(p.numel() for p in parts.unet.parameters())
    assert shape.text == sum(p.numel() for p in parts.text_encoder.parameters())
    assert shape.activation_scale == (16 / 64) ** 2 * 16 / 320
    assert memory.size_of(small_model, 64).activation_scale == 4 * shape.activation_scale


def test_free_memory(monkeypatch):
    figures = namedtuple("memory", "available total")(6 * GIB, 8 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: figures)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.free_bytes(torch.device("cpu")) == 6 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert memory.free_bytes(torch.device("cpu")) == 2 * GIB
    for name, size in (("memory_reserved", 3), ("memory_allocated", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 20))
    assert memory.free_bytes(torch.device("cuda", 0)) == 12, "with what PyTorch keeps for later"


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),  # oneDNN's, on a CPU
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."), True),  # XLA's
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (OSError("Unable to load weights from checkpoint file"), False),
    ],
)
def test_which_errors_are_out_of_memory(error, is_it):
    assert (errors.out_of_memory(error) is error) == is_it


def test_out_of_memory_is_found_behind_what_a_library_made_of_it():
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise OSError("Unable to load weights from checkpoint file for 'x'")  # noqa: B904
    except OSError as error:
        assert isinstance(errors.out_of_memory(error), MemoryError)
    circle = ValueError("round")
    circle.__cause__ = circle
    assert errors.out_of_memory(circle) is None


def short_of_memory(monkeypatch, unet, most):
    """The U-Net takes no more than `most` samples at once; returns the sizes that it was given."""
    seen, original = [], unet.forward

    def forward(latents, *rest, **named):
        seen.append(len(latents))
        if len(latents) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(latents, *rest, **named)

    monkeypatch.setattr(unet, "forward", forward)
    return seen


def train_sparingly(session, fallbacks):
    """The loop as a whole run has it: where memory runs out, the step anew with the next leaner plan."""
    take_step = functools.partial(memory.with_memory_retry, fallbacks=fallbacks)
    return training.train_rows(session, take_step=take_step)


def test_the_step_that_did_not_fit_is_begun_anew_with_the_next_plan(
    small_model, photos, monkeypatch, caplog
):
    flags = {"train_batch_size": 4, "max_train_steps": 8, "fit": True}
    short, plain = (make_training(small_model, photos, **flags) for _ in "ab")
    _, fallbacks = memory.choose_plan(short.config, SD15, "cpu", 100 * GIB)
    start = short.rows.detach().clone()
    seen = short_of_memory(monkeypatch, short.models.unet, 1)
    result, expected = train_sparingly(short, fallbacks), training.train_rows(plain)
    assert seen == [4, 2, *[1] * 4 * 8], "two plans were too large, the third was kept"
    assert (result.step, result.stopped, len(result.losses)) == (8, None, 8)
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    assert relative_difference(short.rows, plain.rows, start) <= 1e-3
    assert (short.config.train_batch_size, short.config.gradient_accumulation_steps) == (1, 4)
    said = [line for line in caplog.messages if "out of memory in step 1 (CUDA out of" in line]
    assert len(said) == 2 and "continuing with float32, batch 1 × 4: about" in said[1]


def test_checkpointing_is_switched_on_in_the_midst_of_a_run(small_model, photos, monkeypatch):
    short, plain = (make_training(small_model, photos, fit=True) for _ in "ab")
    lean = dataclasses.replace(short.config, gradient_checkpointing=True)
    start, step = short.rows.detach().clone(), training.training_step

    def once(session, number):
        if number == 3 and not session.config.gradient_checkpointing:
            raise MemoryError
        return step(session, number)

    monkeypatch.setattr(training, "training_step", once)
    train_sparingly(short, [memory.predicted(lean)])
    training.train_rows(plain, callbacks=[lambda p: p.step == 3])
    monkeypatch.setattr(training, "training_step", step)
    training.train_rows(plain, start=3)
    assert short.models.unet.is_gradient_checkpointing and short.models.text_encoder.training
    assert relative_difference(short.rows, plain.rows, start) <= 1e-4


def test_other_errors_are_left_alone(small_model, photos, monkeypatch):
    def fail(session, number):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(training, "training_step", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        train_sparingly(make_training(small_model, photos, fit=True), [])


@pytest.fixture
def config(small_model, photos, tmp_path):
    return TrainingConfig(
        str(photos), "<my-toy>", "toy", pretrained_model_name_or_path=str(small_model),
        output_dir=str(tmp_path / "out"), train_batch_size=2, max_train_steps=4,
    )  # fmt: skip


def test_onednn_out_of_memory_takes_the_next_leaner_plan(small_model, photos, monkeypatch, caplog):
    short = make_training(small_model, photos, train_batch_size=4, max_train_steps=2, fit=True)
    _, fallbacks = memory.choose_plan(short.config, SD15, "cpu", 100 * GIB)
    original = short.models.unet.forward

    def forward(latents, *rest, **named):
        if len(latents) > 2:
            raise RuntimeError("could not create a primitive")
        return original(latents, *rest, **named)

    monkeypatch.setattr(short.models.unet, "forward", forward)
    assert train_sparingly(short, fallbacks).step == 2
    assert "out of memory in step 1 (could not create a primitive): continuing" in caplog.text


@pytest.mark.parametrize(
    ("fit", "said"), [(False, "; add --fit, which chooses"), (True, "nothing leaner is left")]
)
def test_out_of_memory_keeps_what_was_done(config, monkeypatch, fit, said):
    step = training.training_step

    def fail(session, number):
        if number == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(session, number)

    monkeypatch.setattr(training, "training_step", fail)
    with pytest.raises(errors.InputError, match="out of memory in step 3") as raised:
        tiutils.train(dataclasses.replace(config, fit=fit))
    assert said in str(raised.value)
    assert checkpoints.load_latest(config.output_dir).step == 2
    monkeypatch.setattr(training, "training_step", step)
    again = dataclasses.replace(config, fit=True, resume_from_checkpoint="latest")
    assert tiutils.train(again).steps == 4


def test_out_of_memory_while_loading_names_the_flag(config, monkeypatch):
    def load(*args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(run, "load", load)
    with pytest.raises(errors.InputError, match=r"out of memory \(CUDA.*; add --fit"):
        tiutils.train(config)


@pytest.mark.parametrize("framework", ["pytorch", "flax"])
def test_weights_that_memory_is_short_for_are_no_damaged_model(
    config, monkeypatch, capsys, framework
):
    """diffusers calls a file unreadable when it was memory that ran out."""

    def load(*args, **named):
        try:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        except RuntimeError:
            raise OSError("Unable to load weights from checkpoint file for 'x'")  # noqa: B904

    if framework == "flax":
        pytest.importorskip("jax")
        monkeypatch.setattr("tiutils.flax.networks.weights.load_into", load)
    else:
        monkeypatch.setattr(models.AutoencoderKL, "from_pretrained", load)
    model = ["--pretrained_model_name_or_path", str(config.pretrained_model_name_or_path)]
    flags = ["--train_data_dir", str(config.train_data_dir), "--placeholder_token", "<n>"]
    flags += ["--initializer_token", "toy", "--output_dir", str(config.output_dir)]
    draw = ["--prompt", "a toy", "--output_dir", f"{config.output_dir}-pictures"]
    for command in (["train", *flags], ["generate", *draw]):
        assert main([*command, *model, "--framework", framework]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("tiutils: out of memory (") and "can't allocate memory" in said
        assert "Unable to load" not in said


def test_fit_on_the_command_line(config, tmp_path, monkeypatch, capsys):
    flags = [f"--{n}={getattr(config, n)}" for n in ("train_data_dir", "placeholder_token")]
    flags += ["--initializer_token=toy", "--max_train_steps=2", f"--output_dir={tmp_path / 'fit'}"]
    flags += [f"--pretrained_model_name_or_path={config.pretrained_model_name_or_path}", "--fit"]
    cut = ["--train_batch_size=1", "--gradient_accumulation_steps=4"]
    assert main(["train", *flags, *cut]) == 0
    said = capsys.readouterr().err
    assert said.count("--fit: ") == 1 and "float32, batch 4 × 1: about 0.0 GiB of" in said
    record = json.loads((tmp_path / "fit" / "run.json").read_text())["flags"]
    assert (record["train_batch_size"], record["gradient_accumulation_steps"]) == (4, 1)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert main(["train", *flags[:-1], "--fit", f"--output_dir={tmp_path / 'none'}"]) == 2
    assert "--fit found nothing that fits" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_each_switch_buys():
    config = dataclasses.replace(
        CONFIG, mixed_precision="fp16", gradient_checkpointing=True, use_8bit_adam=True
    )
    lines = memory.explain(config).splitlines()
    assert lines[0] == "a step is expected to take 2.9 GiB"
    assert lines[1].startswith("without --mixed_precision it would take 5.4")
    assert lines[2].startswith("without --gradient_checkpointing it would take 5.")
    assert "--use_8bit_adam it would take the same" in lines[-1]


def test_pictures_that_do_not_fit_do_not_end_the_run(config, monkeypatch, caplog):
    def draw(*args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("tiutils.runs.run.inference.generate", draw)
    drawing = dataclasses.replace(config, validation_prompt="a <my-toy>", validation_steps=2)
    assert tiutils.train(drawing).steps == 4
    assert "could not draw after 2 steps (CUDA out of memory" in caplog.text
    assert "--num_validation_images" in caplog.text


def test_the_pages_table_is_what_is_chosen():
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) GiB \| .* \| ([\d.]+) GiB \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for free, takes in rows:
        assert f"{chosen(float(free)).peak_bytes / GIB:.1f}" == takes


def test_shape_of_a_model_whose_blocks_see_the_prompt_alone():
    """The bundled model's weights, counted from its configuration, are those in its file."""
    folder = pretrained.BUNDLED_MODEL
    shape = memory.size_of(folder)
    with safetensors.safe_open(folder / "unet/diffusion_pytorch_model.safetensors", "np") as file:
        sizes = {name: np.prod(file.get_slice(name).get_shape()) for name in list(file.keys())}
    assert shape.linear + shape.other == sum(sizes.values())
    assert shape.activation_scale == pytest.approx((16 / 64) ** 2 * 80 / 320)
