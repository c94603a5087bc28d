"""DVAR's rule by hand, and the callback that applies it."""

import numpy as np
import pytest
import torch

import tiutils
from tiutils import diffusion, embedding_files, stopping
from tiutils.errors import InputError


def falling_then_flat(steps, seed=0):
    """A loss that falls for 300 steps and then only wobbles a little."""
    along = np.arange(steps)
    return np.exp(-along / 100) + 0.01 * np.random.default_rng(seed).normal(size=steps)


def test_the_ratio_by_hand():
    # all: mean 2, variance (1 + 1 + 0 + 0) / 4; the last two do not vary
    assert stopping.variance_ratio([1.0, 3.0, 2.0, 2.0], window=2) == 0
    # the last two: mean 2.5, variance 1/4; all: mean 2, variance (4 + 0 + 1 + 1) / 4 = 3/2
    assert stopping.variance_ratio([0.0, 3.0, 2.0, 3.0], 2) == pytest.approx(0.25 / 1.5)
    assert stopping.variance_ratio([5.0] * 9, 3) == 0, "what never varied has come to rest"


def test_it_waits_until_the_window_has_left_the_fall():
    losses = falling_then_flat(2000)
    stops = [n for n in range(1, 2000) if stopping.should_stop(losses[:n])]
    # a window of 310 that begins at step s holds exp(-s / 100) of the fall, its variance the square
    assert 310 + 50 < stops[0] < 310 + 200
    assert not stopping.should_stop(losses[:310])


def test_a_loss_that_keeps_falling_is_not_stopped():
    steady = np.linspace(1, 0, 1000)
    # the window's variance is (310 / n)² of all: below 0.15 only once n > 310 / sqrt(0.15)
    assert not stopping.should_stop(steady[:790])
    assert stopping.should_stop(steady[:810])


@pytest.mark.parametrize("every", [2, 5, 10])
def test_looking_every_few_steps_gives_nearly_the_same_answer(every):
    losses = falling_then_flat(2000)
    at_every_step = next(n for n in range(2000) if stopping.should_stop(losses[:n]))
    seldom = losses[::every]
    count = next(n for n in range(len(seldom)) if stopping.should_stop(seldom[:n], every=every))
    assert abs(count * every - at_every_step) <= 30


@pytest.fixture(scope="module")
def run(small_model, photos, tmp_path_factory):
    """A run of six steps, watched every second one, whose learning rate does harm."""
    watch = stopping.EarlyStopping(2, draws=4)
    folder = tmp_path_factory.mktemp("run")
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(small_model), train_data_dir=str(photos),
        placeholder_token="<t>", initializer_token="toy", max_train_steps=6, save_steps=2,
        train_batch_size=2, learning_rate=1e-2, output_dir=str(folder),
    )  # fmt: skip
    seen = {}

    def rows_of(progress):
        seen[progress.step] = progress.training.vectors()

    result = tiutils.train(config, callbacks=[watch, rows_of])
    return watch, result, seen, folder


def test_the_callback_keeps_the_rows_with_the_lowest_loss(run):
    watch, result, seen, _ = run
    assert list(watch.losses) == [2, 4, 6] and result.steps == 6
    assert watch.best_step == min(watch.losses, key=watch.losses.get)
    np.testing.assert_array_equal(watch.best_rows, seen[watch.best_step])


def test_the_fixed_loss_is_the_training_loss_of_the_fixed_batch(run):
    watch, result, _, folder = run
    batch = watch.batch
    assert batch.plan.seed == stopping.SEED and batch.plan.batch_size == 4
    with torch.no_grad():
        expected = diffusion.losses_at(result.models, batch, 0, 0, 4).mean().item()
    assert watch.losses[6] == pytest.approx(expected, rel=1e-6)
    assert stopping.fixed_loss(result.models, batch, at_once=3) == pytest.approx(expected, rel=1e-5)
    last = embedding_files.read(folder / "learned_embeds.safetensors")
    np.testing.assert_array_equal(last.vectors, run[2][6])


def test_the_callback_stops_the_run(small_model, photos, tmp_path):
    watch = stopping.EarlyStopping(1, draws=2, window=3, threshold=10)  # stops as soon as it may
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(small_model), train_data_dir=str(photos),
        placeholder_token="<t>", initializer_token="toy", max_train_steps=50,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    result = tiutils.train(config, callbacks=[watch])
    assert result.steps == 4 and "by request" in result.stopped


@pytest.mark.parametrize("wrong", [{"every": 0}, {"draws": 0}, {"window": 0}, {"threshold": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match="above zero"):
        stopping.EarlyStopping(**wrong)
