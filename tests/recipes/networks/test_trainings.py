"""Every training, stopped and continued, and what they share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_world import TINY, compose_things

from data.recipes import make
from data.recipes.networks import (
    latents,
    pool,
    train_evaluator,
    train_text,
    train_unet,
    train_vae,
    train_words,
    training,
)


def test_crops_of_tensors_are_crops_of_arrays():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    of_array = train_vae.crops(pictures, np.random.default_rng(1))
    of_tensor = train_vae.crops(torch.from_numpy(pictures), np.random.default_rng(1))
    assert of_array.shape == (5, 6, 6, 3)
    assert (of_tensor.numpy() == of_array).all()


def test_noise_on_a_cpu_is_numpys():
    got = training.normal(np.random.default_rng(7), (2, 3))
    assert (got.numpy() == np.random.default_rng(7).standard_normal((2, 3), np.float32)).all()


def stop_after(monkeypatch, steps: int) -> None:
    """Let the time be up once `steps` steps are done."""
    descend = training.Run.descend

    def counted(run, *arguments):
        descend(run, *arguments)
        if run.step == steps:
            monkeypatch.setattr(training, "UNTIL", -math.inf)

    monkeypatch.setattr(training.Run, "descend", counted)


def in_order(name: str):
    """The training called `name`; what it needs has run."""
    if name == "unet":
        latents.build(TINY)
    if name == "words":
        compose_things()
    return {
        "vae": train_vae.train,
        "text": train_text.train,
        "evaluator": train_evaluator.train,
        "unet": train_unet.train,
        "words": train_words.train,
    }[name](TINY)


@pytest.mark.release
@pytest.mark.slow
def test_each_training_stopped_and_gone_on_with_ends_in_the_same_bits(stocked, monkeypatch):
    # oneDNN rounds a small convolution in another way the first time than later in one process
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    for name in make.TRAININGS:
        path = TINY.folder / f"{name}.pt"
        in_order(name)
        straight = torch.load(path, weights_only=True)
        assert straight["step"] == 6
        assert make.done(name, TINY)
        path.unlink()
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            with pytest.raises(training.OutOfTime, match="stopped at step 2 of 6"):
                in_order(name)
        assert torch.load(path, weights_only=True)["step"] == 2
        assert not make.done(name, TINY)
        in_order(name)
        resumed = torch.load(path, weights_only=True)
        for part in ("module", "average"):
            for key, value in straight[part].items():
                assert torch.equal(resumed[part][key], value), (name, part, key)


@pytest.mark.release
@pytest.mark.slow
def test_what_suits_a_gpu_computes_the_same(stocked, monkeypatch):
    """The paths that only a GPU takes, taken on the CPU."""
    for name in ("vae", "text"):
        in_order(name)
    latents.build(TINY)
    pictures, words = pool.Pictures(TINY), train_unet.HiddenStates(TINY)
    chosen, dropped = np.array([3, 39, 0, 3]), np.array([False, False, True, False])
    remembered = words.take(chosen, dropped)
    monkeypatch.setattr(training, "on_gpu", lambda: True)
    monkeypatch.setattr(training, "has_bfloat16", lambda: False)
    monkeypatch.setattr(training, "speed_up", lambda module: None)
    monkeypatch.setattr(train_text, "LENGTH", 76)  # this tokenizer spells
    assert (pool.Pictures(TINY).take(chosen).numpy() == pictures.take(chosen)).all()
    again = train_unet.HiddenStates(TINY)
    whole = train_text.token_ids(TINY, list(again.numbers), 77)
    assert torch.equal(again.ids, whole[: len(again.ids)]), "padded as the tokenizer pads"
    torch.testing.assert_close(
        again.take(chosen, dropped).float(), remembered, atol=5e-3, rtol=5e-3
    )
    first, second = (training.normal(np.random.default_rng(1), (9,)) for _ in range(2))
    assert torch.equal(first, second), "noise depends on the step's seed alone"
    (TINY.folder / "vae.pt").unlink()
    for name in ("vae", "evaluator", "unet"):
        assert in_order(name).step == 6


def test_a_loss_that_is_not_a_number_is_never_saved(stocked):
    module = torch.nn.Linear(2, 1)
    run = training.Run(module, TINY.folder / "broken.pt", 1, rate=1.0)
    broken = lambda step: module.weight.sum() * math.nan  # noqa: E731
    with pytest.raises(FloatingPointError, match="before step 1"):
        training.loop(run, broken, lambda step, steps: 1.0, keep=0.9)
    assert not (TINY.folder / "broken.pt").exists()


def test_a_training_with_minutes_takes_the_steps_that_fit(stocked, monkeypatch):
    """One step takes a second: of three minutes, eight seconds are gone when the pace is known."""
    clock = [1000.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "PACE", (4, 8))
    module = torch.nn.Linear(2, 1)
    told = []

    def step(number: int) -> torch.Tensor:
        clock[0] += 1
        return module.weight.sum()

    def rate(number: int, steps: int) -> float:
        told.append(steps)
        return 0.1

    run = training.Run(module, TINY.folder / "timed.pt", 20, rate=1.0)
    training.loop(run, step, rate, keep=0.9, minutes=3)
    want = 8 + int(training.SPARE * (180 - 8))
    assert run.steps == run.step == want
    assert told[:8] == [20] * 8 and set(told[8:]) == {want}
    again = training.Run(module, TINY.folder / "timed.pt", 20, rate=1.0)
    assert (again.step, again.steps) == (want, want), "what was planned is remembered"
    monkeypatch.setattr(training, "UNTIL", clock[0] + 60)
    run = training.Run(module, TINY.folder / "late.pt", 20, rate=1.0)
    training.loop(run, step, rate, keep=0.9, minutes=3)
    assert run.step == 8 + int(training.SPARE * (60 - 8)), "and not past the end of all"


def test_timesteps_dwell_on_shapes():
    rng = np.random.default_rng(0)
    times = train_unet.draw_times(rng, 20_000)
    low, high = train_unet.SHAPES
    inside = ((times >= low) & (times < high)).mean()
    assert inside == pytest.approx(0.4 + 0.6 * 0.5, abs=0.02)
    assert (times.min(), times.max()) == (0, 999)
