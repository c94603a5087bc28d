"""DVAR's rule by hand, and the callback that applies it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiutils
from tiutils import batches, concept, diffusion
from tiutils.cli.main import backend
from tiutils.errors import InputError
from tiutils.io import checkpoints, embeddings
from tiutils.io.run_folder import read_record
from tiutils.runs import early_stopping, inputs


def falling_then_flat(steps, seed=0):
    """A loss that falls for 300 steps and then only wobbles a little."""
    along = np.arange(steps)
    return np.exp(-along / 100) + 0.01 * np.random.default_rng(seed).normal(size=steps)


def test_the_ratio_by_hand():
    # all: mean 2, variance (1 + 1 + 0 + 0) / 4; the last two do not vary
    assert early_stopping.variance_ratio([1.0, 3.0, 2.0, 2.0], window=2) == 0
    # the last two: mean 2.5, variance 1/4; all: mean 2, variance (4 + 0 + 1 + 1) / 4 = 3/2
    assert early_stopping.variance_ratio([0.0, 3.0, 2.0, 3.0], 2) == pytest.approx(0.25 / 1.5)
    assert early_stopping.variance_ratio([5.0] * 9, 3) == 0, "what never varied has come to rest"


def test_it_waits_until_the_window_has_left_the_fall():
    losses = falling_then_flat(2000)
    stops = [n for n in range(1, 2000) if early_stopping.should_stop(losses[:n])]
    # a window of 310 that begins at step s holds exp(-s / 100) of the fall, its variance the square
    assert 310 + 50 < stops[0] < 310 + 200
    assert not early_stopping.should_stop(losses[:310])


def test_a_loss_that_keeps_falling_is_not_stopped():
    steady = np.linspace(1, 0, 1000)
    # the window's variance is (310 / n)² of all: below 0.15 only once n > 310 / sqrt(0.15)
    assert not early_stopping.should_stop(steady[:790])
    assert early_stopping.should_stop(steady[:810])


@pytest.mark.parametrize("every", [2, 5, 10])
def test_looking_every_few_steps_gives_nearly_the_same_answer(every):
    losses = falling_then_flat(2000)
    at_every_step = next(n for n in range(2000) if early_stopping.should_stop(losses[:n]))
    seldom = losses[::every]
    count = next(
        n for n in range(len(seldom)) if early_stopping.should_stop(seldom[:n], every=every)
    )
    assert abs(count * every - at_every_step) <= 30


@pytest.fixture(scope="module")
def run(small_model, photos, tmp_path_factory):
    """A run of six steps, watched every second one, whose learning rate does harm."""
    watch = early_stopping.EarlyStopping(2, num_samples=4)
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


def test_the_fixed_loss_is_the_training_loss_of_the_fixed_batch(run, photos):
    watch, result, _, folder = run
    config = tiutils.TrainingConfig(train_batch_size=2)
    made = diffusion.encode_dataset(result.models, concept.load(photos), "<t>", config)
    batch = diffusion.fixed_batch(made, 4)
    assert batch.plan.seed == batches.SEED and batch.plan.batch_size == 4
    with torch.no_grad():
        expected = diffusion.losses_at(result.models, batch, 0, 0, 4).mean().item()
    assert watch.losses[6] == pytest.approx(expected, rel=1e-6)
    assert diffusion.fixed_loss(result.models, batch, at_once=3) == pytest.approx(
        expected, rel=1e-5
    )
    last = embeddings.read(folder / "learned_embeds.safetensors")
    np.testing.assert_array_equal(last.vectors, run[2][6])


def test_the_callback_stops_the_run(small_model, photos, tmp_path):
    watch = early_stopping.EarlyStopping(
        1, num_samples=2, window=3, threshold=10
    )  # stops as soon as it may
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(small_model), train_data_dir=str(photos),
        placeholder_token="<t>", initializer_token="toy", max_train_steps=50,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    result = tiutils.train(config, callbacks=[watch])
    assert result.steps == 4 and "by request" in result.stopped


def config_of(small_model, photos, folder, **flags):
    flags = {
        "max_train_steps": 20, "checkpointing_steps": 3, "early_stopping": True,
        "early_stopping_steps": 2, "early_stopping_patience": 4,
    } | flags  # fmt: skip
    return tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(small_model), train_data_dir=str(photos),
        placeholder_token="<t>", initializer_token="toy", output_dir=str(folder),
        train_batch_size=2, **flags,
    )  # fmt: skip


def train(framework, config, callbacks=()):
    return backend("run", framework).train(config, callbacks)


@pytest.mark.slow
def test_both_frameworks_take_the_same_fixed_losses(small_model, photos, tmp_path):
    losses, sensitivities = {}, {}
    for framework in ("pytorch", "flax"):
        config = config_of(
            small_model,
            photos,
            tmp_path / framework,
            max_train_steps=13,
            early_stopping_window=12,
            early_stopping_patience=None,
        )
        stopping = train(framework, config).stopping
        losses[framework], sensitivities[framework] = stopping.losses, stopping.sensitivities
    assert list(losses["flax"]) == list(losses["pytorch"]) == [2, 4, 6, 8, 10, 12]
    ours, theirs = (sensitivities[name] for name in ("pytorch", "flax"))
    assert list(ours) == list(theirs) == [2, 12], "beside the first loss and the fifth after it"
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=1e-3)
    np.testing.assert_allclose(
        list(losses["flax"].values()), list(losses["pytorch"].values()), rtol=1e-4
    )


@pytest.fixture(scope="module")
def falls_and_rises():
    """A fixed loss that is lowest at steps 6 and 8, in both frameworks; the small model's only falls."""

    def loss(training, num_samples):
        return abs(float(training.capture(0).tensors["optimizer.step"]) - 7)

    with pytest.MonkeyPatch.context() as patch:
        for framework in ("pytorch", "flax"):
            patch.setattr(backend("training", framework).Training, "fixed_loss", loss)
        yield


@pytest.fixture(scope="module", params=["pytorch", pytest.param("flax", marks=pytest.mark.slow)])
def stopped(small_model, photos, tmp_path_factory, request, falls_and_rises):
    """A run that stops by itself, and the rows it had after each step."""
    config = config_of(small_model, photos, tmp_path_factory.mktemp(request.param) / "run")
    seen = {}
    watch = [lambda progress: seen.update({progress.step: progress.training.vectors()})]
    return request.param, config, train(request.param, config, watch), seen


def rows_in(folder):
    return embeddings.read(Path(folder) / "learned_embeds.safetensors")


def test_the_run_ends_and_leaves_the_best_rows(stopped):
    _, config, result, seen = stopped
    assert result.stopped is None, "it is finished"
    assert result.stopping.losses == {2: 5, 4: 3, 6: 1, 8: 1, 10: 3}
    assert (result.steps, result.best_step) == (10, 6), "the first of the lowest, and 4 steps more"
    record = read_record(config.output_dir)
    assert record["fixed_losses"] == {"2": 5.0, "4": 3.0, "6": 1.0, "8": 1.0, "10": 3.0}
    assert list(record["prompt_sensitivity"]) == ["2"]
    for step, value in result.stopping.sensitivities.items():
        assert (
            record["prompt_sensitivity"][str(step)] == pytest.approx(value, abs=1e-6) and value > 0
        )
    saved = rows_in(config.output_dir)
    np.testing.assert_array_equal(saved.vectors, seen[result.best_step])
    assert saved.metadata["steps"] == str(result.best_step)
    state = checkpoints.load_latest(config.output_dir)
    np.testing.assert_array_equal(state.tensors["rows"], seen[result.steps])
    assert state.step == result.steps, "the checkpoint is of the last step, not of the best"


@pytest.mark.parametrize("killed_after", [4, 7])
def test_resume_gives_the_same_stop_and_the_same_best_step(stopped, tmp_path, killed_after):
    framework, config, whole, _ = stopped

    def kill(progress):
        if progress.step == killed_after:
            raise KeyboardInterrupt  # no last checkpoint: as far as the run knows, it was killed

    config = replace(config, output_dir=str(tmp_path / "run"), resume_from_checkpoint="latest")
    with pytest.raises(KeyboardInterrupt):
        train(framework, config, [kill])
    resumed = train(framework, config)
    assert resumed.stopping.losses == whole.stopping.losses
    assert resumed.stopping.sensitivities == whole.stopping.sensitivities
    assert (resumed.steps, resumed.best_step) == (whole.steps, whole.best_step)
    np.testing.assert_array_equal(
        rows_in(config.output_dir).vectors, rows_in(whole.output_dir).vectors
    )
    again = train(framework, config)
    assert again.losses == [] and again.steps == whole.steps, "a run that is over stays over"
    np.testing.assert_array_equal(
        rows_in(config.output_dir).vectors, rows_in(whole.output_dir).vectors
    )


def test_a_run_that_diverges_leaves_its_best_rows(small_model, photos, tmp_path, falls_and_rises):
    config = config_of(small_model, photos, tmp_path / "run")
    seen = {}

    def poison(progress):
        seen[progress.step] = progress.training.vectors()
        if progress.step == 7:
            progress.training.rows.data.fill_(float("nan"))

    result = train("pytorch", config, [poison])
    assert result.diverged and f"the rows of step {result.best_step} are kept" in result.stopped
    np.testing.assert_array_equal(rows_in(config.output_dir).vectors, seen[result.best_step])


def test_without_the_flag_nothing_of_it_is_in_the_run_state(run):
    state = checkpoints.load_latest(run[3])
    assert run[1].best_step is None
    assert not {"best_rows", "stopping.losses"} & set(state.tensors)


def test_what_was_not_finite_is_never_the_best():
    watch = early_stopping.EarlyStopping(1)
    losses = iter([float("nan"), 2.0, float("nan"), 1.0])
    training = SimpleNamespace(
        fixed_loss=lambda num_samples: next(losses), vectors=lambda: np.ones((1, 2))
    )
    assert [watch(SimpleNamespace(step=k, training=training)) for k in (1, 2, 3, 4)] == [False] * 4
    assert watch.best_step == 4


@pytest.mark.parametrize("sensitivities, losses, kept", [
    ([1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0], 4),
    ([1.0, 0.9, 0.79, 0.5], [4.0, 3.0, 2.0, 1.0], 2),
    ([1.0, 0.7, 0.9, 0.7], [4.0, 1.0, 3.0, 2.0], 3),
    ([0.7, 0.6, 0.5, 0.4], [4.0, 3.0, 2.0, 5.0], 3),
    ([0.5, 0.5, 0.8, 0.5], [1.0, 1.0, 9.0, 1.0], 3),
    ([float("nan")] * 4, [4.0, 3.0, 1.0, 2.0], 3),
], ids=["all listen", "deaf at last", "deaf between", "all deaf", "one listens", "not known"])  # fmt: skip
def test_a_step_at_which_the_word_is_deaf_is_kept_only_if_none_listens(
    monkeypatch, sensitivities, losses, kept
):
    monkeypatch.setattr(early_stopping, "LOSSES_PER_SENSITIVITY", 1)
    watch = early_stopping.EarlyStopping(1, sensitivity=True)
    monkeypatch.setattr(watch, "_sensitivity", lambda training: sensitivities[training.step - 1])
    for step, loss in enumerate(losses, 1):
        training = SimpleNamespace(
            step=step,
            fixed_loss=lambda num_samples, loss=loss: loss,
            vectors=lambda step=step: np.full((1, 2), step, np.float32),
        )
        watch(SimpleNamespace(step=step, training=training))
    assert watch.best_step == kept and (watch.best_rows == kept).all()
    resumed = early_stopping.EarlyStopping(1, sensitivity=True)
    resumed.restore(watch.add_to(checkpoints.RunState(len(losses), {}, {})))
    assert resumed.best_step == kept
    assert [resumed.listens_at(n) for n in (1, 2, 3, 4)] == [
        not value < early_stopping.SENSITIVE for value in sensitivities
    ]


def test_between_two_measurements_the_older_one_counts():
    watch = early_stopping.EarlyStopping(10, sensitivity=True)
    watch.sensitivities = {10: 1.0, 60: 0.5}
    assert [watch.listens_at(step) for step in (10, 50, 60, 90)] == [True, True, False, False]


def test_a_model_that_hears_no_sentence_is_named(caplog):
    watch = early_stopping.EarlyStopping(1, sensitivity=True)
    plan = batches.BatchPlan(0, 1, (1,), 1, (4, 2, 2))
    training = SimpleNamespace(
        fixed_loss=lambda num_samples: 1.0, vectors=lambda: np.ones((1, 2)),
        predictions=lambda prompts, noise, timestep: np.tile(noise, (len(prompts), 1, 1, 1)),
        dataset=SimpleNamespace(plan=plan), placeholder=SimpleNamespace(token="<t>"),
        config=SimpleNamespace(plain_word="toy"),
    )  # fmt: skip
    for step in (1, 2):
        assert not watch(SimpleNamespace(step=step, training=training))
    assert caplog.text.count("no prompt sensitivity") == 1
    assert watch.record() == {"fixed_losses": {1: 1.0, 2: 1.0}, "prompt_sensitivity": {}}


@pytest.mark.parametrize("flags, fits", [
    ({"max_train_steps": 310}, False), ({"max_train_steps": 311}, True),
    ({"max_train_steps": 311, "early_stopping_window": 400}, False),
    ({"max_train_steps": 50, "early_stopping_patience": 40}, True),
    ({"max_train_steps": 20, "early_stopping_patience": 40}, False),
])  # fmt: skip
def test_fewer_steps_than_the_window_are_refused(small_model, photos, tmp_path, flags, fits):
    config = config_of(small_model, photos, tmp_path, **{"early_stopping_patience": None, **flags})
    if fits:
        inputs.read_inputs(config, device="cpu")
    else:
        with pytest.raises(InputError, match=r"looks back over .* steps, but the run has only"):
            inputs.read_inputs(config, device="cpu")


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"num_samples": 0}, {"window": 0}, {"threshold": 0}, {"patience": -1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match="above zero"):
        early_stopping.EarlyStopping(**wrong)
