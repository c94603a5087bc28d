"""Settings: the script's flags, its arithmetic and its schedules; and numbers that cannot be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from diffusers.optimization import get_scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tiutils.config import LR_SCHEDULERS, SamplingConfig, TrainingConfig, learning_rate_at
from tiutils.errors import InputError
from tiutils.runs.inputs import check_config, check_device

GOOD = TrainingConfig("photos", "<my-toy>", "toy", learning_rate=5e-3)
KINDS = {field.name: str(field.type).split(" |")[0] for field in dataclasses.fields(TrainingConfig)}
INTEGERS = [name for name, kind in KINDS.items() if kind == "int"]
FLOATS = [name for name, kind in KINDS.items() if kind == "float"]
ZERO_MAKES_SENSE = {
    "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "seed", "dataloader_num_workers",
    "norm_control", "average_rows", "direction_prior",
}  # fmt: skip


def refused(**flags):
    with pytest.raises(InputError) as caught:
        check_config(dataclasses.replace(GOOD, **flags))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_pass():
    check_config(GOOD)


@pytest.mark.parametrize(
    ("flags", "devices"),
    [({"mixed_precision": "fp16"}, {"cuda", "mps"}), ({"capture": True}, {"cuda"}), ({}, None)],
)
def test_switches_that_not_every_device_has(flags, devices):
    for device in ("cpu", "cuda", "mps"):
        if devices is None or device in devices:
            check_device(dataclasses.replace(GOOD, **flags), device, 1)
        else:
            with pytest.raises(InputError, match=f"--{next(iter(flags))} .*needs a GPU"):
                check_device(dataclasses.replace(GOOD, **flags), device, 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0; it must be 1 or more"),
        ({"batch_size": 10**6}, "batch_size is 1000000; it must be 100000 or less"),
        ({"num_inference_steps": 1000}, "num_inference_steps is 1000; it must be 999 or less"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan; it must be a number"),
    ],
)
def test_sampling_that_cannot_work_is_refused_as_it_is_set(setting, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SamplingConfig(), **setting)


def test_there_are_numbers_to_test():
    assert {"num_vectors", "resolution", "max_train_steps", "checkpoints_total_limit"} < set(
        INTEGERS
    )
    assert set(FLOATS) == {
        "learning_rate", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon",
        "max_grad_norm", "norm_control", "direction_prior",
    }  # fmt: skip


@pytest.mark.parametrize("name", INTEGERS + FLOATS)
def test_impossible_numbers_are_refused_by_name(name):
    bad = [-1, -(2**70)] if name in INTEGERS else [-1e-9, math.nan, math.inf, -math.inf]
    for value in [*bad, True, "1"] + [0] * (name not in ZERO_MAKES_SENSE):
        message = refused(**{name: value})
        assert message.startswith(f"--{name} is {value!r}; it must be "), message


@pytest.mark.parametrize("name", sorted(ZERO_MAKES_SENSE))
def test_zero_where_it_makes_sense(name):
    check_config(dataclasses.replace(GOOD, **{name: 0}))


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2"])
def test_a_decay_is_below_one(name):
    assert refused(**{name: 1.0}) == f"--{name} is 1.0; it must be at least 0 and below 1"
    check_config(dataclasses.replace(GOOD, **{name: 0.999999}))


def test_a_seed_fits_the_key_of_a_batch():
    check_config(dataclasses.replace(GOOD, seed=2**63 - 1))
    assert "below 9223372036854775808" in refused(seed=2**63)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind == "bool"])
def test_a_switch_is_true_or_false(name):
    for value in (1, "yes", None):
        assert refused(**{name: value}) == f"--{name} is {value!r}; it must be true or false"


@pytest.mark.parametrize("name", INTEGERS)
def test_a_count_is_whole(name):
    assert f"--{name} is 2.5; it must be a whole number" in refused(**{name: 2.5})


def test_a_path_is_as_good_as_a_name():
    check_config(dataclasses.replace(GOOD, train_data_dir=Path("photos"), output_dir=Path("out")))
    assert refused(output_dir=3) == "--output_dir is 3; it must be text"
    assert refused(output_dir=None) == "--output_dir is None; it must be text"


@pytest.mark.parametrize("name", ["train_data_dir", "placeholder_token", "initializer_token"])
def test_what_must_be_given(name):
    assert refused(**{name: ""}).startswith(f"--{name} is missing")


@pytest.mark.parametrize(
    "name, choices",
    {
        "learnable_property": "object, style",
        "mixed_precision": "no, fp16, bf16",
        "quantize": "8bit, 4bit",
        "lr_scheduler": "constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial",
    }.items(),
)
def test_choices(name, choices):
    assert refused(**{name: "none"}) == f"--{name} is 'none'; it must be one of {choices}"


@pytest.mark.parametrize(
    "name, package",
    {
        "use_8bit_adam": "bitsandbytes",
        "quantize": "bitsandbytes",
        "enable_xformers_memory_efficient_attention": "xformers",
    }.items(),
)
def test_a_package_that_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    message = refused(**{name: "8bit" if name == "quantize" else True})
    assert f"--{name} needs {package}" in message and f"pip install {package}" in message


def test_the_access_token_is_not_shown():
    assert "hf_secret" not in repr(dataclasses.replace(GOOD, hub_token="hf_secret"))


# The script's arithmetic


@given(
    photos=st.integers(1, 9),
    repeats=st.integers(1, 12),
    batch=st.integers(1, 16),
    accumulation=st.integers(1, 5),
    epochs=st.integers(1, 4),
    processes=st.integers(1, 4),
)
@settings(deadline=None)
def test_epochs_and_repeats_give_the_scripts_step_count(
    photos, repeats, batch, accumulation, epochs, processes
):
    """Its lines, with a real DataLoader, sharded by accelerate as `prepare` does."""
    train_dataloader = DataLoader(range(photos * repeats), batch_size=batch, shuffle=True)
    shard = BatchSamplerShard(train_dataloader.batch_sampler, processes, process_index=0)
    num_update_steps_per_epoch = math.ceil(len(shard) / accumulation)
    expected = epochs * num_update_steps_per_epoch

    config = dataclasses.replace(
        GOOD,
        repeats=repeats,
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
    )
    assert config.total_steps(photos, processes) == expected
    assert dataclasses.replace(config, max_train_steps=7).total_steps(photos, processes) == 7


def test_without_epochs_and_steps_there_is_a_default():
    assert GOOD.total_steps(5) == 500


def test_scale_lr_multiplies_as_the_script_does():
    config = dataclasses.replace(
        GOOD, learning_rate=1e-4, train_batch_size=3, gradient_accumulation_steps=5
    )
    assert config.peak_learning_rate(2) == 1e-4
    assert dataclasses.replace(config, scale_lr=True).peak_learning_rate(2) == 1e-4 * 3 * 5 * 2


@pytest.mark.parametrize("width, flags, peak", [
    (256, {}, 5e-3),
    (767, {"scale_lr": True}, 5e-3 * 4 * 2),
    (768, {}, 5e-4 * 4 * 2),
    (1024, {"train_batch_size": 1, "gradient_accumulation_steps": 3}, 5e-4 * 3 * 2),
    (768, {"scale_lr": True}, 5e-4 * 4 * 2),
    (768, {"optimizer": "directional"}, 1e-2),
    (768, {"learning_rate": 1e-4}, 1e-4),
    (256, {"learning_rate": 1e-4, "optimizer": "directional"}, 1e-4),
])  # fmt: skip
def test_the_learning_rate_suits_the_models_width(width, flags, peak):
    config = dataclasses.replace(GOOD, **({"learning_rate": None} | flags))
    settled = config.with_learning_rate(width)
    assert settled.peak_learning_rate(2) == pytest.approx(peak)
    assert settled.with_learning_rate(width) == settled


def test_there_is_no_learning_rate_before_the_model_is_known():
    with pytest.raises(ValueError, match="no learning rate yet"):
        dataclasses.replace(GOOD, learning_rate=None).peak_learning_rate()


def schedule_of_diffusers(config, total, processes=1):
    """The learning rate of each step, as the script sets it up and accelerate steps it."""
    peak = config.peak_learning_rate(processes)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps * processes,
        num_training_steps=total * processes,
        num_cycles=config.lr_num_cycles,
    )
    rates = []
    for _ in range(total):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if len(rates) < total:  # beyond, diffusers' polynomial may divide by zero
            for _ in range(processes):
                scheduler.step()
    return rates


@pytest.mark.parametrize("name", LR_SCHEDULERS)
@given(
    total=st.integers(1, 40),
    warmup=st.integers(0, 45),
    cycles=st.integers(1, 5),
    processes=st.integers(1, 3),
    scale_lr=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_schedules_equal_those_of_diffusers(name, total, warmup, cycles, processes, scale_lr):
    config = dataclasses.replace(
        GOOD, lr_scheduler=name, lr_warmup_steps=warmup, lr_num_cycles=cycles, scale_lr=scale_lr
    )
    ours = [learning_rate_at(config, step, total, processes) for step in range(total)]
    reference = schedule_of_diffusers(config, total, processes)
    assert ours == pytest.approx(reference, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", LR_SCHEDULERS[1:])
@pytest.mark.parametrize("total", [20, 500, 5000])
def test_the_usual_warm_up_is_a_tenth_of_the_run(name, total):
    config = dataclasses.replace(GOOD, lr_scheduler=name)
    rates = [learning_rate_at(config, step, total) for step in range(total)]
    assert rates.index(max(rates)) == total // 10 and max(rates) == config.learning_rate
    if name != "constant_with_warmup":
        assert rates[-1] < rates[total // 10] / 10
    as_given = dataclasses.replace(config, lr_warmup_steps=total // 10)
    assert rates == [learning_rate_at(as_given, step, total) for step in range(total)]


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_a_schedule_is_never_negative_and_ends(name):
    """Also after the last step, where a resumed run with fewer steps may look."""
    config = dataclasses.replace(GOOD, lr_scheduler=name, lr_warmup_steps=3)
    rates = [learning_rate_at(config, step, 10) for step in range(15)]
    assert all(0 <= rate <= config.learning_rate for rate in rates)
